"""One update's gradient: the same however the batch is split, and equal to what transformers' own loss gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from conftest import labelled_rows
from tunesmith.models.model import Model
from tunesmith.recipe import Full, LoRA, Parameters, Training
from tunesmith.training import loop
from tunesmith.training.loop import Trainer

Layout = Callable[[np.ndarray, np.ndarray], Iterator[np.ndarray]]
EXACT = {"rtol": 1e-9, "atol": 1e-15}


def whole(lengths: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    yield rows


def eights(lengths: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    yield from np.array_split(rows, 4)


def singles(lengths: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    yield from rows[:, None]


def uneven(lengths: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    yield from np.split(rows[::-1], [1, 4, 21])


LAYOUTS: dict[str, Layout] = {"4x8": eights, "32x1": singles, "1+3+17+11": uneven}
CASES = [
    ("classify", Full()),
    ("classify", LoRA(rank=4)),
    ("generate", Full()),
    ("generate", LoRA(rank=4)),
]


def case_name(value: Any) -> str:
    return value if isinstance(value, str) else value.kind


def examples(form: str) -> list[dict[str, Any]]:
    """32 examples of mixed lengths; conversations also of mixed weights and numbers of answer tokens."""
    if form == "classify":
        return labelled_rows(32)
    plain: list[dict[str, Any]] = [*tiny.question_rows(20)]
    for n in range(12):
        turns = [
            {"role": "user", "content": "tell me more " * (1 + n % 3)},
            {"role": "assistant", "content": "the film was very good", "weight": (0, 0.5, 1)[n % 3]},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "great " * (n + 1), "weight": 0.25 + n / 8},
        ]
        plain.append({"messages": turns})
    return plain


def model_for(form: str, parameters: Parameters, encoder: Path, decoder: Path) -> Model:
    folder = encoder if form == "classify" else decoder
    model = tiny.build(folder, form, parameters, Training(dropout=0.0))  # type: ignore[arg-type]
    with torch.no_grad():  # LoRA's B starts at zero, which would leave A without a gradient
        for name, parameter in model.trainable():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def one_update(trainer: Trainer) -> tuple[list[torch.Tensor], float]:
    """The gradient that reaches the optimizer, divided as the loop divides it, and the loss that is reported."""
    seen: list[torch.Tensor] = []
    step = trainer.optimizer.step

    def spy(learning_rate: float, scale: float) -> None:
        optimizer = trainer.optimizer
        seen.extend(
            of_all_rows(trainer, name, master.grad) * scale
            for name, master in zip(optimizer.names, optimizer.masters, strict=True)
            if master.grad is not None
        )
        step(learning_rate, scale)

    trainer.optimizer.step = spy  # type: ignore[method-assign]
    trainer.run()
    return seen, trainer.on_event.of(loop.Step)[0].loss  # type: ignore[attr-defined]


def of_all_rows(trainer: Trainer, name: str, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of a table of which only some rows are updated; any other as it is."""
    if name not in trainer.tables:
        return gradient
    table = trainer.tables[name]
    found = gradient.new_zeros(table.layer.weight.shape)
    found[table.ids_A] = gradient
    return found


def updated(
    model: Model, values: list[dict[str, Any]], folder: Path, **settings: Any
) -> tuple[list[torch.Tensor], float]:
    trainer = tiny.trainer(model, values, folder, batch_size=len(values), max_steps=1, max_grad_norm=1e9, **settings)
    return one_update(trainer)


@pytest.fixture(autouse=True)
def wide_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norm casts to fp32, in which 1e-9 could not be shown: the same norm in the dtype of its input."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture
def make(tiny_encoder: Path, tiny_decoder: Path) -> Callable[[str, Parameters], Model]:
    return lambda form, parameters: model_for(form, parameters, tiny_encoder, tiny_decoder)


@pytest.mark.parametrize(("form", "parameters"), CASES, ids=case_name)
def test_the_gradient_does_not_depend_on_the_layout(
    form: str, parameters: Parameters, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name, layout in {"1x32": whole, **LAYOUTS}.items():
        monkeypatch.setattr(loop, "micro_batches", lambda lengths, rows, *_, layout=layout: layout(lengths, rows))
        found[name] = updated(make(form, parameters), examples(form), tmp_path / name)
    expected, loss = found["1x32"]
    assert len(expected) > 10 and all(g.abs().max() > 0 for g in expected[-4:])
    for name in LAYOUTS:
        gradients, same_loss = found[name]
        assert same_loss == pytest.approx(loss, rel=1e-12)
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("micro_tokens", [16, 100, 333, 100_000])
def test_the_gradient_does_not_depend_on_micro_tokens(
    micro_tokens: int, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's own splitting, longest first, against one rectangle."""
    split = updated(make("generate", Full()), examples("generate"), tmp_path / "split", micro_tokens=micro_tokens)
    monkeypatch.setattr(loop, "micro_batches", lambda lengths, rows, *_: whole(lengths, rows))
    together = updated(make("generate", Full()), examples("generate"), tmp_path / "whole")
    for one, other in zip(split[0], together[0], strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_mean_over_micro_batches_would_be_seen(make: Any, tmp_path: Path) -> None:
    """What transformers#37766 did: average the micro-batches' means. These data tell it from the truth."""
    model = make("generate", Full())
    true, _ = updated(model, examples("generate"), tmp_path)
    model = make("generate", Full())
    trainer = tiny.trainer(model, examples("generate"), tmp_path / "wrong", batch_size=32)
    for rows in np.array_split(np.arange(32), 4):
        loss = trainer.objective.loss(model, trainer._batch(trainer.train, rows))
        (loss.total / loss.weight / 4).backward()
    wrong = list(tiny.gradients(model).values())
    differences = [float((one - other).norm() / other.norm()) for one, other in zip(wrong, true, strict=True)]
    assert max(differences) > 0.01


@pytest.mark.parametrize("parameters", [Full(), LoRA(rank=4)], ids=case_name)
def test_supervised_equals_the_loss_of_transformers(parameters: Parameters, make: Any, tmp_path: Path) -> None:
    """Labels with -100 outside the answers, and the mask, as the documentation of transformers has it."""
    values = tiny.question_rows(8)
    mine, my_loss = updated(make("generate", parameters), values, tmp_path)
    model = make("generate", parameters)
    batch = loop.collate(tiny.tokens(model, values, tmp_path / "again"), range(8), model.pad_id)
    assert batch.loss_weights is not None
    labels = torch.where(batch.loss_weights > 0, batch.input_ids, -100)
    network: Any = model.network
    stock = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), labels=labels).loss
    stock.backward()
    assert my_loss == pytest.approx(float(stock.detach()), rel=1e-6)  # transformers computes its loss in fp32
    for one, other in zip(mine, tiny.gradients(model).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_supervised_equals_a_written_out_formula(make: Any, tmp_path: Path) -> None:
    """Sum over tokens of weight x -log p, over the sum of weights; each example alone and unpadded, in fp64."""
    values = examples("generate")
    mine, my_loss = updated(make("generate", Full()), values, tmp_path)
    model = make("generate", Full())
    data = tiny.tokens(model, values, tmp_path / "again")
    network: Any = model.network
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for row in range(len(data)):
        ids = torch.from_numpy(data.tokens(row).astype(np.int64))
        weights = torch.from_numpy(data.weights(row).astype(np.float64))
        log_p = torch.log_softmax(network(input_ids=ids[None]).logits[0, :-1], -1)
        total = total - (weights[1:] * log_p[torch.arange(len(ids) - 1), ids[1:]]).sum()
        weight += float(weights[1:].sum())
    (total / weight).backward()
    assert my_loss == pytest.approx(float((total / weight).detach()), rel=1e-12)
    for one, other in zip(mine, tiny.gradients(model).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-14)


def test_classify_equals_the_loss_of_the_stock_model(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    values = labelled_rows(8)
    model = tiny.build(tiny_bert, "classify", training=Training(dropout=0.0))
    mine, my_loss = updated(model, values, tmp_path)
    model = tiny.build(tiny_bert, "classify", training=Training(dropout=0.0))
    model.network.save_pretrained(tmp_path / "stock")  # type: ignore[operator]
    stock = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "stock", dtype=torch.float64, attn_implementation="eager"
    )
    texts, targets = [v["text"] for v in values], torch.tensor([tiny.LABELS.index(v["label"]) for v in values])
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt")
    output = stock(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], labels=targets)
    output.loss.backward()
    assert my_loss == pytest.approx(float(output.loss.detach()), rel=1e-12)
    theirs = [p.grad for p in stock.parameters() if p.grad is not None]
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-14)


def test_label_smoothing_reaches_the_loss(tiny_encoder: Path, tmp_path: Path) -> None:
    values = labelled_rows(8)
    model = tiny.build(tiny_encoder, "classify", training=Training(dropout=0.0))
    data = tiny.tokens(model, values, tmp_path / "tokens")
    batch = loop.collate(data, range(8), model.pad_id)
    expected = nn.functional.cross_entropy(model.class_logits(batch), batch.labels, label_smoothing=0.2)
    _, loss = updated(model, values, tmp_path / "run", label_smoothing=0.2)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)


def test_padding_that_is_eos_is_masked_by_length(tiny_decoder: Path, tmp_path: Path) -> None:
    """Where pad and EOS are one token, the EOS of each answer is learned and no padding is (trl#1623)."""
    model = tiny.build(tiny_decoder, "generate")
    assert model.pad_id in model.eos_ids
    data = tiny.tokens(model, tiny.question_rows(6), tmp_path)
    batch = loop.collate(data, range(6), model.pad_id, 16)
    assert batch.loss_weights is not None
    assert not batch.loss_weights[~batch.attention_mask].any()
    for n in range(6):
        carried = batch.input_ids[n][batch.loss_weights[n] > 0]
        assert (carried == model.pad_id).sum() == 1 and carried[-1] == model.pad_id
