"""Every kind of adapter on an encoder with a head and on a decoder: learns, resumes, loads in plain PEFT, merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import tiny
from conftest import labelled_rows
from tunesmith.errors import UsageError
from tunesmith.models.merging import merge
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.parameters.settings import AdapterKind, Parameters, PromptKind
from tunesmith.recipe import Adapter, LoRA, Prompt, Training
from tunesmith.training.loop import evaluate_loss

CHOICES: dict[str, Parameters] = {
    **{kind: Adapter(kind=kind, **tiny.ADAPTER_SIZES.get(kind, {})) for kind in get_args(AdapterKind)},
    **{kind: Prompt(kind=kind, tokens=4) for kind in get_args(PromptKind)},
    "dora": LoRA(rank=4, dora=True),
    "rslora": LoRA(rank=4, rslora=True),
    "lora+": LoRA(rank=4, lr_ratio=4.0),
    "pissa": LoRA(rank=4, init="pissa"),
    "olora": LoRA(rank=4, init="olora"),
    "biases too": LoRA(rank=4, bias="all"),
    "rspissa": LoRA(rank=4, init="pissa", rslora=True),
    "patterns": LoRA(rank=4, rank_pattern={"query|q_proj": 2}, alpha_pattern={"query|q_proj": 3.0}, init="pissa"),
}
RATES = {
    "prompt-tuning": 0.1,
    "prefix-tuning": 0.1,
    "randlora": 1e-3,
    "olora": 5e-3,
    "rslora": 5e-3,
    "rspissa": 2e-3,
    "fourierft": 1e-3,
}
CASES = [
    (objective, name)
    for objective in ("classify", "supervised")
    for name in CHOICES
    if (objective, name) != ("classify", "prefix-tuning")  # refused: see tests/unit/test_parameters.py
]
STEPS = 6
STILL = Training(dropout=0.0)
"""Six updates are few: what dropout does to them must not hide what they teach."""


def built(case: tuple[str, str], request: pytest.FixtureRequest) -> Model:
    objective, name = case
    if objective == "classify":
        return tiny.build(
            request.getfixturevalue("tiny_encoder"), "classify", CHOICES[name], STILL, dtype=torch.float32
        )
    return tiny.build(request.getfixturevalue("tiny_decoder"), "generate", CHOICES[name], STILL, dtype=torch.float32)


def trainer_of(case: tuple[str, str], model: Model, folder: Path) -> Any:
    rows: list[dict[str, Any]] = labelled_rows(32) if case[0] == "classify" else [*tiny.question_rows(32)]
    return tiny.trainer(
        model,
        rows,
        folder,
        kind=CHOICES[case[1]].kind,
        max_steps=STEPS,
        batch_size=32,
        learning_rate=RATES.get(case[1], 1e-2),
        schedule="constant",
        warmup=0.0,
        checkpoint_steps=STEPS // 2,
    )


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_it_learns_resumes_loads_in_plain_peft_and_merges(
    case: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = built(case, request)
    frozen = {name: p.detach().clone() for name, p in model.network.named_parameters() if not p.requires_grad}
    trainer = trainer_of(case, model, tmp_path)
    untrained = evaluate_loss(model, trainer.objective, trainer.train, 4096)["loss"]
    trainer.run()
    assert evaluate_loss(model, trainer.objective, trainer.train, 4096)["loss"] < untrained
    assert all(torch.equal(p, frozen[name]) for name, p in model.network.named_parameters() if name in frozen)
    again = built(case, request)
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{STEPS:08d}")
    trainer_of(case, again, tmp_path).run()
    for (name, one), (_, other) in zip(model.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other), name
    _assert_loads(model, tmp_path / "model", case[0])


def _assert_loads(model: Model, folder: Path, objective: str) -> None:
    """In Tunesmith and in PEFT alone the same hidden states; merged into the weights too, where that is possible."""
    model.network.eval()
    save_artefact(model, folder, task="text-classification", system_prompt=None)
    ids = torch.tensor(
        [model.tokenizer(text)["input_ids"][:4] for text in ("the film was very good", "a dull movie a")]
    )
    expected = states(model, ids, objective)
    assert json.loads((folder / "adapter_config.json").read_text()).get("init_lora_weights", True) is True
    loaded, _ = load_artefact(folder)
    torch.testing.assert_close(states(loaded, ids, objective), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(_in_plain_peft(model, folder, ids, objective), expected, rtol=1e-4, atol=1e-5)
    if model.virtual_tokens:
        with pytest.raises(UsageError, match="virtual tokens"):
            merge(loaded)
    else:
        merge(loaded)
        assert not loaded.has_adapters
        torch.testing.assert_close(states(loaded, ids, objective), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def states(model: Model, ids: torch.Tensor, objective: str) -> torch.Tensor:
    """Pooled vectors of an encoder, scores of a decoder: by the paths that training and evaluation use."""
    from tunesmith.data.batches import Batch

    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), None, None, [0, 1], ids.numel())
    if objective == "classify":
        network: Any = model.network
        return network.embed(ids, batch.attention_mask)
    return model.vocabulary_scores(model.hidden_states(batch))


@torch.no_grad()
def _in_plain_peft(model: Model, folder: Path, ids: torch.Tensor, objective: str) -> torch.Tensor:
    import peft
    import transformers

    kind = transformers.AutoModel if objective == "classify" else transformers.AutoModelForCausalLM
    options = {"add_pooling_layer": False} if objective == "classify" else {}
    base = kind.from_pretrained(model.folder, attn_implementation="eager", **options)
    network = peft.PeftModel.from_pretrained(base, folder).eval()
    output = network(input_ids=ids, attention_mask=torch.ones_like(ids))
    if objective == "classify":
        return output.last_hidden_state[:, -ids.shape[1] :].mean(1)
    return output.logits[:, -ids.shape[1] :]
