"""Every objective with every kind of parameters: trains, saves, loads to the same outputs here and in the plain
libraries, or is refused with a reason. No cell of the table ends in a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import peft
import pytest
import torch
import transformers

import tiny
from conftest import labelled_rows, sentences, write_jsonl
from tunesmith.data.batches import Batch
from tunesmith.data.prepare import PreparedData, prepare
from tunesmith.errors import RecipeError, UsageError
from tunesmith.events import nobody
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact
from tunesmith.parameters.settings import SHORT_FORMS, AdapterKind, PromptKind
from tunesmith.recipe_file import parse
from tunesmith.training.stages import tune_stages

SIZES: dict[str, dict[str, Any]] = {
    **tiny.ADAPTER_SIZES,
    "lora": {"rank": 4},
    "layers": {"layers": "last 1"},
    **{kind: {"tokens": 4} for kind in get_args(PromptKind)},
}
"""Sizes that suit tiny models."""
SHORT = [name for name in SHORT_FORMS if name not in ("prompt", "prefix")]
EVERY = ["full", "head", "layers", "lora", *get_args(AdapterKind), *get_args(PromptKind), *SHORT, "none", "in-context"]
FEW = ["full", "head", "layers", "lora", "ia3", "prompt-tuning", "qlora"]
"""One of each sort: objectives on models of one form find the same modules, so one of them is shown every kind."""

ROWS = 16


def text_rows(label: Callable[[int, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": row["text"], **label(n, row["label"])} for n, row in enumerate(labelled_rows(ROWS))]


def answered(name: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], **name(n)} for n, row in enumerate(tiny.question_rows(ROWS))]


PAIRS = answered(lambda n: {"chosen": "paris", "rejected": "london" if n % 2 else "oslo"})
OBJECTIVES: dict[str, tuple[str, str, list[dict[str, Any]], dict[str, Any]]] = {
    "classify": ("tiny_encoder", "text-classification", labelled_rows(ROWS), {}),
    "stock classify": ("tiny_bert", "text-classification", labelled_rows(ROWS), {}),
    "focal": ("tiny_decoder", "text-classification", labelled_rows(ROWS), {"objective": "focal"}),
    "tag": ("tiny_bert", "token-classification", tiny.tagged_rows(ROWS), {}),
    "supervised": ("tiny_decoder", "text-generation", [*tiny.question_rows(ROWS)], {}),
    "seq2seq": ("tiny_t5", "text-generation", [*tiny.question_rows(ROWS)], {}),
    "causal-lm": ("tiny_decoder", "language-modeling", [{"text": text} for text in sentences(ROWS)], {}),
    "masked-lm": ("tiny_masked", "language-modeling", [{"text": text} for text in sentences(ROWS)], {}),
    "contrastive": ("tiny_encoder", "text-classification", labelled_rows(ROWS), {"method": "few-shot"}),
    "dpo": ("tiny_decoder", "preference", PAIRS, {"objective": "dpo"}),
    "kto": ("tiny_decoder", "feedback", answered(lambda n: {"completion": "paris", "label": n % 2 == 0}), {}),
    "reward": ("tiny_encoder", "preference", PAIRS, {"objective": "reward"}),
    "distill": ("tiny_decoder", "text-generation", [*tiny.question_rows(ROWS)], {"method": "distillation"}),
    "multi-label": ("tiny_encoder", "multi-label-classification",
                    text_rows(lambda n, label: {"labels": [label, "odd"] if n % 2 else [label]}), {}),
    "mse": ("tiny_encoder", "text-regression", text_rows(lambda n, label: {"score": n % 5 / 4}), {}),
    "ordinal": ("tiny_bert", "text-regression", text_rows(lambda n, label: {"score": n % 3}), {"objective": "ordinal"}),
    "ppo": ("tiny_decoder", "prompts", answered(lambda n: {"answer": "paris"}),
            {"method": "verifiable-reward", "objective": "ppo"}),
    "grpo": ("tiny_decoder", "prompts", answered(lambda n: {"answer": "paris"}), {"method": "verifiable-reward"}),
}  # fmt: skip
"""Name -> model, task, rows, and what else the recipe says."""
SHOWN_THERE = [*get_args(AdapterKind)[1:], *get_args(PromptKind)[1:], "dora", "rslora", "lora+", "pissa", "olora"]
"""What ``test_adapters.py`` trains further, on an encoder with a head of ours and on a decoder."""
CHOSEN = {
    **dict.fromkeys(OBJECTIVES, FEW),
    **dict.fromkeys(("tag", "seq2seq", "masked-lm"), EVERY),
    **{name: [kind for kind in EVERY if kind not in SHOWN_THERE] for name in ("classify", "supervised")},
}
CASES = [(name, kind) for name, kinds in CHOSEN.items() for kind in kinds]
HEADS = {"classify", "stock classify", "focal", "tag", "multi-label", "mse", "ordinal"}
REFUSED: dict[str, set[str]] = {
    "head": set(OBJECTIVES) - HEADS,
    "prompt-tuning": {"focal", "tag", "seq2seq", "masked-lm", "contrastive"},
    "p-tuning": {"tag", "seq2seq", "masked-lm"},
    "prefix-tuning": {"tag", "seq2seq", "masked-lm"},
    "bitfit": {"supervised", "seq2seq"},  # Llama and T5 have no biases
    "none": set(OBJECTIVES),  # it belongs to `method: features`
    "in-context": {"classify", "tag", "seq2seq", "masked-lm"},
}
_prepared: dict[str, PreparedData] = {}


def recipe_of(objective: str, kind: str, base: Path, data: Path, more: dict[str, Any]) -> dict[str, Any]:
    _, task, _, keys = OBJECTIVES[objective]
    training: dict[str, Any] = {"max_steps": 2, "batch_size": 4} | more
    if objective in ("ppo", "grpo"):
        training |= {"rewards": [{"kind": "exact"}], "rollouts": {"max_new_tokens": 2}, "grpo": {"group": 2}}
    if objective == "distill":
        training |= {"distillation": {"teacher": str(base)}}
    return {
        "task": task, "model": str(base), "data": {"train": str(data)}, "precision": "fp32", "training": training,
        "parameters": {"kind": kind, **SIZES.get(kind, {})}, **keys,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tiny_masked(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder with a vocabulary head."""
    folder = tmp_path_factory.mktemp("masked")
    transformers.BertForMaskedLM.from_pretrained(tiny_bert).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_it_trains_saves_and_loads_or_is_refused(
    objective: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(OBJECTIVES[objective][0])
    if objective in REFUSED.get(kind, ()):
        with pytest.raises((RecipeError, UsageError)):
            tuned(objective, kind, base, tmp_path)
        return
    model = tuned(objective, kind, base, tmp_path)
    ids = torch.tensor(
        [model.tokenizer(text)["input_ids"][:4] for text in ("the film was very good", "a dull movie a")]
    )
    loaded, _ = load_artefact(tmp_path / "model")
    torch.testing.assert_close(read(loaded, ids), read(model, ids), rtol=1e-4, atol=1e-5)
    if model.quantization == "none":
        torch.testing.assert_close(plain(model, tmp_path / "model", ids), outputs(model.wrapped, ids), rtol=1e-4,
                                   atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_recomputed_activations_change_nothing(objective: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = request.getfixturevalue(OBJECTIVES[objective][0])
    models = []
    for switch in ("off", "on"):
        (tmp_path / switch).mkdir()
        models.append(tuned(objective, "lora", base, tmp_path / switch, recompute=switch, dropout=0.1))
    weights = [dict(model.network.state_dict()) for model in models]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def tuned(objective: str, kind: str, base: Path, folder: Path, **training: Any) -> Model:
    """What two updates leave."""
    data = write_jsonl(folder / "rows.jsonl", OBJECTIVES[objective][2])
    recipe = parse(recipe_of(objective, kind, base, data, training)).resolved()
    if objective not in _prepared:
        _prepared[objective] = prepare(recipe)
    rows = [_prepared[objective]] * len(recipe.stages)
    return tune_stages(folder, recipe, base, rows, nobody).model


@torch.no_grad()
def read(model: Model, ids: torch.Tensor) -> torch.Tensor:
    model.network.eval()
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), None, None, [0, 1], ids.numel())
    return model.target_logits(batch, ids) if model.form == "seq2seq" else model.read(batch)


@torch.no_grad()
def plain(model: Model, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What transformers, and PEFT if there is an adapter, make of the saved folder without any of our code."""
    kinds: dict[str, Any] = {
        "generate": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "mask": transformers.AutoModelForMaskedLM, "tag": transformers.AutoModelForTokenClassification,
    }  # fmt: skip
    kind, options = kinds.get(model.form, transformers.AutoModelForSequenceClassification), dict[str, Any]()
    if isinstance(model.network, SentenceClassifier):
        kind, options = transformers.AutoModel, {"add_pooling_layer": False}
    elif model.form not in ("generate", "seq2seq", "mask"):
        options["num_labels"] = model.network.get_submodule(model.head_names[0]).weight.shape[0]
    if not model.has_adapters:
        return outputs(kind.from_pretrained(folder, **options).eval(), ids)
    return outputs(peft.PeftModel.from_pretrained(kind.from_pretrained(model.folder, **options), folder).eval(), ids)


@torch.no_grad()
def outputs(network: Any, ids: torch.Tensor) -> torch.Tensor:
    """Scores, or the last hidden states of an encoder without a head of its own."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = network(**inputs, labels=ids) if network.config.is_encoder_decoder else network(**inputs)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state
