"""What an export answers in its consumer's own library, beside what the run's model answers to the same texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.compression import llama_cpp
from tunesmith.errors import ResourceError
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import output_names, quiet
from tunesmith.models.model import Model
from tunesmith.models.saving import auto_class

LONGEST = 256
"""Tokens of a text that is compared: whole sequences are, so that an error at any place shows."""
WRITTEN = 20
"""Tokens that llama.cpp writes greedily."""
Scores = Callable[[Sequence[int]], torch.Tensor]
"""Tokens of one text -> scores: (S, V) of a model that writes, (C,) of a head, (S, C) of tags."""


@dataclass(frozen=True)
class Verified:
    """One library's answers beside the run's.

    Attributes:
        by: The library.
        version: Of it.
        rows: Texts compared.
        largest_difference: Of any score, absolute; ``None`` where the library gives no scores.
        largest_score: The largest score of the run's model, absolute, to compare that with.
        same_choice: Share of the places (tokens, texts) where both prefer the same.
        note: What else is to be said.
    """

    by: str
    version: str
    rows: int
    largest_difference: float | None
    largest_score: float | None
    same_choice: float
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        scores = (
            ""
            if self.largest_difference is None
            else f"scores differ by at most {self.largest_difference:.2g} (of {self.largest_score:.3g}), "
        )
        note = f"; {self.note}" if self.note else ""
        return f"{self.by} {self.version}, {self.rows} rows: {scores}{self.same_choice:.1%} the same choice{note}"


def own_scores(model: Model) -> Scores:
    """The scores of the run's model."""

    def ask(ids: Sequence[int]) -> torch.Tensor:
        rows = torch.tensor([list(ids)], device=model.device)
        with torch.inference_mode():
            found = model.network(input_ids=rows, attention_mask=torch.ones_like(rows))
        return (found if isinstance(found, torch.Tensor) else found.logits)[0].float().cpu()

    return ask


def compare(library: str, theirs: Scores, ours: Scores, texts: Sequence[Sequence[int]], note: str = "") -> Verified:
    """Both on the same texts."""
    largest, score, same, places = 0.0, 0.0, 0.0, 0
    for ids in texts:
        one, other = ours(ids[:LONGEST]), theirs(ids[:LONGEST])
        if one.shape != other.shape:
            raise ResourceError(
                f"{library} gives scores of shape {tuple(other.shape)} where the run gives {tuple(one.shape)}"
            )
        if not bool(torch.isfinite(other).all()):
            raise ResourceError(f"{library} gives scores that are no finite numbers")
        largest = max(largest, float((one - other).abs().max()))
        score = max(score, float(one.abs().max()))
        agreed = (one.argmax(-1) == other.argmax(-1)).float()
        same += float(agreed.sum())
        places += agreed.numel()
    return Verified(library, metadata.version(library), len(texts), largest, score, same / max(places, 1), note)


# --- the consumers ----------------------------------------------------------------------------------------------------


def in_transformers(model: Model, folder: Path, gguf: str | None = None) -> Scores:
    """Plain transformers reads the folder, or the GGUF file in it; a sentence encoder's head is applied by hand."""
    import transformers

    options: dict[str, Any] = {"dtype": model.dtype, "local_files_only": True}
    if gguf is not None:
        options["gguf_file"] = gguf
    with quiet():
        if isinstance(model.network, SentenceClassifier):
            return _sentence_scores(transformers.AutoModel.from_pretrained(folder, **options), model, folder)
        kind = getattr(transformers, f"AutoModelFor{auto_class(model.form)}")
        network: Any = kind.from_pretrained(folder, **options)
    return _scores_of(network.eval())


def in_peft(model: Model, folder: Path) -> Scores:
    """Plain PEFT puts the adapter on its base."""
    import peft
    import transformers

    with quiet():
        if isinstance(model.network, SentenceClassifier):
            base: Any = transformers.AutoModel.from_pretrained(model.folder, dtype=model.dtype, local_files_only=True)
            return _sentence_scores(peft.PeftModel.from_pretrained(base, folder), model, folder)
        kind = getattr(transformers, f"AutoModelFor{auto_class(model.form)}")
        outputs = {} if model.form == "generate" else {"num_labels": len(output_names(model.form, model.labels))}
        base = kind.from_pretrained(model.folder, dtype=model.dtype, local_files_only=True, **outputs)
        found: Any = peft.PeftModel.from_pretrained(base, folder)
    return _scores_of(found.eval())


def in_onnxruntime(path: Path) -> Scores:
    """ONNX Runtime reads the graph."""
    from tunesmith.compression.onnx_model import OnnxNetwork

    return _scores_of(OnnxNetwork(path))


def _scores_of(network: Any) -> Scores:
    def ask(ids: Sequence[int]) -> torch.Tensor:
        rows = torch.tensor([list(ids)])
        with torch.inference_mode():
            logits: torch.Tensor = network(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[0]
        return logits.float()

    return ask


def _sentence_scores(encoder: Any, model: Model, folder: Path) -> Scores:
    from safetensors.torch import load_file

    head = load_file(folder / "2_Dense" / "model.safetensors")
    assert isinstance(model.network, SentenceClassifier)
    pooling = model.network.pooling
    encoder.eval()

    def ask(ids: Sequence[int]) -> torch.Tensor:
        rows = torch.tensor([list(ids)])
        with torch.inference_mode():
            hidden = encoder(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state[0].float()
        pooled = hidden.mean(0) if pooling == "mean" else hidden[0]
        return head["linear.weight"].float() @ pooled + head["linear.bias"].float()

    return ask


# --- llama.cpp --------------------------------------------------------------------------------------------------------


def in_llama_cpp(model: Model, path: Path, texts: Sequence[Sequence[int]]) -> Verified:
    """Greedy tokens of llama.cpp beside those of the run's model.

    Where two tokens are almost equally likely rounding decides, and all after it may differ: what counts is how many
    come before the first difference.

    Raises:
        ResourceError: It cannot answer.
    """
    prompts = [list(ids[:LONGEST]) for ids in texts]
    same, places = 0, 0
    for prompt, theirs in zip(prompts, llama_cpp.greedy(path, prompts, WRITTEN), strict=True):
        equal = [one == other for one, other in zip(_greedy(model, prompt, len(theirs)), theirs, strict=True)]
        same += int(np.cumprod(equal).sum()) if equal else 0
        places += len(theirs)
    note = f"greedy, the first {same} of {places} tokens are the same" if places else "it wrote nothing"
    version = metadata.version(llama_cpp.PACKAGE)
    return Verified(f"llama.cpp ({llama_cpp.PACKAGE})", version, len(texts), None, None, same / max(places, 1), note)


def _greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens one by one, the end of an answer included."""
    ids = list(prompt)
    ask = own_scores(model)
    for _ in range(count):
        ids.append(int(ask(ids)[-1].argmax()))
    return ids[len(prompt) :]
