"""Which layers suffer from being quantized, and how few must be left alone to keep to a quality budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.compression import kernels
from tunesmith.compression.modules import (
    Calibration,
    Inputs,
    Layer,
    NarrowLinear,
    layers_of,
    narrow_modules,
    replace,
)
from tunesmith.compression.settings import QuantizationKind
from tunesmith.data.rows import Row
from tunesmith.evaluation.metrics import METRICS, available, primary, statistics
from tunesmith.events import Progress
from tunesmith.models.model import Model
from tunesmith.prediction import answering
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.setting import Setting

RELATIVE = ("bits_per_byte", "perplexity", "masked_loss", "rmse", "mae")
"""Metrics without a fixed range: a budget for them is a share of their value."""
_TINY = 1e-12


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        kept: Names of the layers that are left as they are.
        metric: What the budget is counted in.
        original: Its value with the original on the validation rows.
        value: The same with the layers that were chosen.
        met: Whether the loss is within the budget.
    """

    kept: list[str]
    metric: str
    original: float
    value: float
    met: bool


def respond(model: Model, rows: Sequence[Row], setting: Setting) -> Outputs:
    """How a model takes rows. It is not let write: instead of written answers, how likely the right ones are."""
    if setting.task.answer != "text":
        return answering.answer(model, rows, setting)
    nats = answering.reference_nats(model, rows, setting)
    sizes = np.asarray([max(1, len(setting.task.target_text(row).encode())) for row in rows], dtype=np.float64)
    return Outputs(texts=[""] * len(rows), nats=nats, reference_bytes=sizes)


def calibrate(model: Model, layers: Sequence[Layer], rows: Sequence[Row], setting: Setting) -> Calibration:
    """What each linear layer reads while the model works on some rows."""
    seen: dict[str, Inputs] = {}
    tokens: dict[str, int] = {}

    def watching(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x_MK = inputs[0].detach().flatten(0, -2).float()
            lost_MK = kernels.rounded_rows(x_MK) - x_MK
            lost = float((lost_MK.norm(dim=1) / x_MK.norm(dim=1).clamp(min=_TINY)).mean())
            found = Inputs(x_MK.amin(0), x_MK.amax(0), lost)
            before, count = seen.get(name, found), tokens.get(name, 0)
            share = len(x_MK) / (count + len(x_MK))
            seen[name] = Inputs(
                torch.minimum(before.low_K, found.low_K),
                torch.maximum(before.high_K, found.high_K),
                before.rounding + share * (found.rounding - before.rounding),
            )
            tokens[name] = count + len(x_MK)

        return watch

    packable, model.packable_length = model.packable_length, 0
    handles = []
    for layer in layers:
        for name in layer.modules:
            module = model.network.get_submodule(name)
            if type(module) is torch.nn.Linear:
                handles.append(module.register_forward_pre_hook(watching(name)))
    try:
        respond(model, rows, setting)
    finally:
        for handle in handles:
            handle.remove()
        model.packable_length = packable
    return seen


@dataclass(frozen=True)
class Format:
    """How layers are narrowed.

    Attributes:
        kind: The number format.
        calibration: What linear layers read; empty where the kind asks for none.
    """

    kind: QuantizationKind
    calibration: Calibration


@contextmanager
def narrowed(model: Model, layers: Sequence[Layer], form: Format) -> Iterator[None]:
    """A model with some layers quantized, for a while."""
    made = narrow_modules(model, layers, form.kind, form.calibration)
    before = {name: model.network.get_submodule(name) for name in made}
    packable, model.packable_length = model.packable_length, 0
    try:
        for name, module in made.items():
            replace(model.network, name, module)
        yield
    finally:
        for name, module in before.items():
            replace(model.network, name, module)
        model.packable_length = packable


def sensitivities(
    model: Model, layers: Sequence[Layer], form: Format, rows: Sequence[Row], setting: Setting
) -> dict[str, float]:
    """How far the answers move when one layer alone is quantized; layer -> :func:`distance`, the largest first."""
    original = respond(model, rows, setting)
    found = {}
    for number, layer in enumerate(layers):
        with narrowed(model, [layer], form):
            found[layer.name] = distance(original, respond(model, rows, setting))
        setting.on_event(Progress(what="probing layers", done=number + 1, total=len(layers), unit="layers"))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def distance(before: Outputs, after: Outputs) -> float:
    """How far answers to the same rows lie apart, 0 if nowhere.

    Of probabilities the mean Kullback-Leibler divergence in nats (each label its own question where they do not add up
    to 1); of likelihoods the mean change a byte or token; of scores the mean change over their standard deviation; of
    spans the share of rows that change.
    """
    if before.probabilities is not None and after.probabilities is not None:
        p, q = np.clip(before.probabilities, _TINY, 1), np.clip(after.probabilities, _TINY, 1)
        if not np.allclose(before.probabilities.sum(axis=1), 1, atol=1e-3):
            p, q = np.stack([p, np.clip(1 - p, _TINY, 1)]), np.stack([q, np.clip(1 - q, _TINY, 1)])
            return float((p * np.log(p / q)).sum(axis=0).mean())
        return float((p * np.log(p / q)).sum(axis=1).mean())
    if before.nats is not None and after.nats is not None:
        sizes = before.reference_bytes if before.reference_bytes is not None else before.tokens
        total = float(np.sum(sizes)) if sizes is not None else float(len(before.nats))
        return float(np.abs(after.nats - before.nats).sum() / max(total, 1.0))
    for name in ("scores", "gaps"):
        one, other = getattr(before, name), getattr(after, name)
        if one is not None and other is not None:
            return float(np.abs(other - one).mean() / max(float(np.std(one)), _TINY))
    assert before.spans is not None and after.spans is not None
    return float(np.mean([one != other for one, other in zip(before.spans, after.spans, strict=True)]))


def search(
    model: Model,
    sensitivity: Mapping[str, float],
    form: Format,
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    *,
    budget: float,
    kept: Sequence[str],
) -> Found:
    """Leave the fewest of the most sensitive layers alone that keep the loss within the budget.

    The number is found by halving, which takes it that leaving more alone never makes it worse. What is chosen has
    been measured, so at most a few layers more are left alone than must be.

    Args:
        model: The original.
        sensitivity: Layer -> how sensitive it is, the most sensitive first.
        form: How layers are narrowed.
        rows: Validation rows: the test rows must not choose.
        right: What would have been right on them.
        setting: How it is asked.
        budget: Loss of the primary metric that is allowed, relative for :data:`RELATIVE`.
        kept: Layers that are left alone in any case.
    """
    layers = {layer.name: layer for layer in layers_of(model)}
    order = [name for name in sensitivity if name not in kept]
    before = respond(model, rows, setting)
    metric = next(name for name in primary(right) if name in available(before, right))
    original = _value(before, right, metric)

    def value_with(left: int) -> float:
        chosen = [layers[name] for name in order[left:]]
        with narrowed(model, chosen, form):
            return _value(respond(model, rows, setting), right, metric)

    def within(value: float) -> bool:
        sign = 1 if METRICS[metric].higher_is_better else -1
        lost = sign * (original - value)
        return lost <= budget * (abs(original) if metric in RELATIVE else 1.0) + _TINY

    low, high = 0, len(order)  # with all left alone nothing is lost
    values = {len(order): original}
    while low < high:
        middle = (low + high) // 2
        values[middle] = value_with(middle)
        setting.on_event(Progress(what="searching", done=len(values) - 1, total=None, unit="trials"))
        if within(values[middle]):
            high = middle
        else:
            low = middle + 1
    return Found([*kept, *order[:high]], metric, original, values[high], within(values[high]))


def _value(outputs: Outputs, right: Truth, metric: str) -> float:
    found = statistics(outputs, right, only=metric)[metric]
    sums = np.asarray(found.contributions.sum(axis=0), dtype=np.float64).reshape(1, -1)
    return float(found.combine(sums)[0])


def ways_of(model: Model) -> dict[str, int]:
    """How the narrow layers multiply here -> how many do."""
    counts: dict[str, int] = {}
    for module in model.network.modules():
        if isinstance(module, NarrowLinear) and module.way:
            counts[module.way] = counts.get(module.way, 0) + 1
    return counts
