"""Every objective with every kind of parameters: it learns, changes what it may and nothing else, saves and resumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from conftest import labelled_rows
from tunesmith.events import Step
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import Full, Head, Layers, LoRA, Parameters
from tunesmith.training.loop import evaluate_loss

KINDS: dict[str, Parameters] = {"full": Full(), "head": Head(), "layers": Layers(layers="last 1"), "lora": LoRA(rank=4)}
RATES = {"full": 3e-3, "head": 3e-2, "layers": 5e-3, "lora": 1e-2}
MODELS = {
    "sentence encoder": "tiny_encoder",
    "stock encoder": "lively_bert",
    "decoder": "tiny_decoder",
    "t5": "tiny_t5",
    "bart": "tiny_bart",
}
ROWS: dict[str, Any] = {
    "classify": labelled_rows, "tag": tiny.tagged_rows, "supervised": tiny.question_rows
}  # fmt: skip
TASK_OF = {"classify": "text-classification", "tag": "token-classification", "supervised": "text-generation"}
CASES = [
    *(("classify", model, kind) for model in ("sentence encoder", "stock encoder", "decoder") for kind in KINDS),
    *(("tag", model, kind) for model in ("stock encoder", "decoder") for kind in KINDS),
    # The head is refused by the recipe: there is nothing to train.
    *(("supervised", model, kind) for model in ("decoder", "t5", "bart") for kind in KINDS if kind != "head"),
]


@pytest.fixture(scope="module")
def lively_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With matrices four times as large: the first token of a fresh BERT hardly looks at the others."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path_factory.mktemp("lively") / "model"))
    tensors = load_file(folder / "model.safetensors")
    larger = {name: t * 4 if t.ndim == 2 and "embeddings" not in name else t for name, t in tensors.items()}
    save_file(larger, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def model_of(case: tuple[str, str, str], request: pytest.FixtureRequest) -> Model:
    objective, model, kind = case
    written = "seq2seq" if model in ("t5", "bart") else "generate"
    form: Any = written if objective == "supervised" else objective
    return tiny.build(request.getfixturevalue(MODELS[model]), form, KINDS[kind], dtype=torch.float32)


def trainer_of(case: tuple[str, str, str], model: Model, folder: Path, steps: int, **keys: Any) -> Any:
    values: list[dict[str, Any]] = [*ROWS[case[0]](48)]
    size = 48 if case[2] == "head" else 16  # random features say little: the noise of small batches would hide it
    settings = {"batch_size": size, "learning_rate": RATES[case[2]], "schedule": "constant", "warmup": 0.0} | keys
    return tiny.trainer(model, values, folder, kind=case[2], max_steps=steps, **settings)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_it_learns_saves_loads_and_resumes(
    case: tuple[str, str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = model_of(case, request)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    trains = {name for name, _ in model.trainable()}
    assert len(trains) > 0 and (len(trains) < len(before)) == (case[2] != "full")
    trainer = trainer_of(case, model, tmp_path / "whole", 24, checkpoint_steps=12, keep_checkpoints=3)
    untrained = evaluate_loss(model, trainer.objective, trainer.train, 4096)["loss"]
    trainer.run()
    assert evaluate_loss(model, trainer.objective, trainer.train, 4096)["loss"] < 0.997 * untrained
    changed = {name for name, p in model.network.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= trains and len(changed) >= 0.8 * len(trains)  # BERT's unused position rows may stay
    _assert_saved(case, model, tmp_path / "model")
    _assert_resumed(case, model, model_of(case, request), tmp_path / "whole")


def _assert_saved(case: tuple[str, str, str], model: Model, folder: Path) -> None:
    save_artefact(model, folder, task=TASK_OF[case[0]], system_prompt=None)
    again, _ = load_artefact(folder)
    model.network.eval()
    ids = torch.tensor([model.tokenizer("the film was very good")["input_ids"]])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.form == "seq2seq":
        inputs["labels"] = ids
    with torch.no_grad():
        one, other = model.network(**inputs), again.network(**inputs)
    assert torch.equal(getattr(one, "logits", one), getattr(other, "logits", other))


def _assert_resumed(case: tuple[str, str, str], trained: Model, fresh: Model, folder: Path) -> None:
    """From the middle checkpoint to the same bits."""
    shutil.rmtree(folder / "checkpoints" / "step-00000024")
    events = tiny.Events()
    trainer_of(case, fresh, folder, 24, events=events, checkpoint_steps=12, keep_checkpoints=3).run()
    assert [step.step for step in events.of(Step)] == list(range(13, 25))
    for (name, one), (_, other) in zip(trained.trainable(), fresh.trainable(), strict=True):
        assert torch.equal(one, other), name
