"""The layers below everything that trains: they make the same of the same text each time, so once is enough.

Two things make that exact. They compute as in evaluation, also while the model trains: dropout there would be noise in
what nothing learns from. And they give a text the same states whatever other texts are computed beside it, to the bit
in fp32 on the CPUs tried: see :data:`WIDTH_MULTIPLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tunesmith.data.batches import Batch
from tunesmith.models import packing

if TYPE_CHECKING:
    from tunesmith.models.model import Model

WIDTH_MULTIPLE = 16
"""Texts are padded to a multiple of this in attention. MKL adds up a row of a product in the same order whatever the
other rows are, if there are ten of them or more; below that it takes other kernels."""

_PROBE_LENGTHS = (9, 6, 2)


class _Reached(Exception):
    """Ends a forward pass behind the last frozen layer; has what that layer gave."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@dataclass(frozen=True)
class FrozenPrefix:
    """The frozen layers at a model's input.

    Attributes:
        blocks: The layers, from the input up.
        parts: They and all that comes before them.
        width: Numbers of a token's state.
        dtype: Of a state.
        whole: Whether the last layer's output is the body's: nothing stands between it and the head.
        shape: Of pictures: that of the last layer's output for one of them. It is kept as one row.
    """

    blocks: Sequence[nn.Module]
    parts: Sequence[nn.Module]
    width: int = 0
    dtype: torch.dtype = torch.float32
    whole: bool = False
    shape: tuple[int, ...] | None = None

    def rest(self) -> None:
        """Put what is frozen into evaluation mode."""
        for part in self.parts:
            part.eval()

    def has_dropout(self) -> bool:
        """Whether it would drop anything in training mode."""
        modules = [module for part in self.parts for module in part.modules()]
        rates = [m.p if isinstance(m, nn.Dropout) else getattr(m, "attention_dropout", 0.0) for m in modules]
        return any(isinstance(rate, float) and rate > 0 for rate in rates)

    def states(self, read: Callable[[], Any]) -> torch.Tensor:
        """What the last layer gives while ``read`` runs the model on a batch, (B, S, d); nothing above it runs.

        Of pictures (B, 1, d), with all that it gives for a picture in one row.
        """
        output = self.output(read)
        return output if self.shape is None else output.flatten(1).unsqueeze(1)

    def output(self, read: Callable[[], Any]) -> torch.Tensor:
        """The same in the shape in which the layer gives it."""

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            layout = packing.layout()
            raise _Reached(hidden if layout is None else layout.padded(hidden))

        hook = self.blocks[-1].register_forward_hook(stop)
        try:
            read()
        except _Reached as reached:
            states: torch.Tensor = reached.output
            return states
        finally:
            hook.remove()
        raise RuntimeError("the model does not run its layers")

    @contextmanager
    def passed_over(self, states_BSd: torch.Tensor) -> Iterator[None]:
        """While it lasts the layers do nothing, and the last of them gives these states.

        Of pictures, what comes before the layers does nothing either: it is large there.
        """

        def hand_on(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return hidden

        def give(*_: Any, **__: Any) -> torch.Tensor:
            layout = packing.layout()
            if self.shape is not None:
                return states_BSd.view(-1, *self.shape)
            return states_BSd if layout is None else layout.packed(states_BSd)

        idle = self.blocks if self.shape is None else self.parts
        own = [block.__dict__.get("forward") for block in idle]
        for block in idle:
            block.forward = give if block is self.blocks[-1] else hand_on
        try:
            yield
        finally:
            for block, forward in zip(idle, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


def find(model: Model) -> FrozenPrefix | None:
    """The frozen layers at the input of a model whose parameters have been chosen; ``None`` if there are none.

    A trial shows that what trains has no part in their output, and that the layers above need nothing else of them.
    """
    count = frozen_layers(model)
    if not count:
        return None
    blocks = model.blocks()[:count]
    parts: list[nn.Module] = []
    _collect(model.network, blocks[-1], parts)
    prefix = FrozenPrefix(blocks, parts)
    return _trial_of_pictures(model, prefix) if model.reads_pictures else _trial(model, prefix)


def frozen_layers(model: Model) -> int:
    """Layers before the first parameter that trains, in the network's own order; 0 if one comes before them all.

    What trains in encoder-decoders and with virtual tokens is taken to come before them.
    """
    if model.form == "seq2seq" or model.virtual_tokens:
        return 0
    blocks = model.blocks()
    owner = {id(p): number for number, block in enumerate(blocks) for p in block.parameters()}
    behind = False
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            return owner.get(id(parameter), len(blocks) if behind else 0)
        behind = behind or id(parameter) in owner
    return 0  # nothing trains


def _collect(module: nn.Module, last: nn.Module, parts: list[nn.Module]) -> bool:
    """Add the modules up to ``last``, in the order of their registration; whether that was met."""
    for child in module.children():
        if child is last or all(inner is not last for inner in child.modules()):
            parts.append(child)
            if child is last:
                return True
        else:
            return _collect(child, last, parts)
    return False


def _trial(model: Model, prefix: FrozenPrefix) -> FrozenPrefix | None:
    """The prefix with what a small batch shows of it; ``None`` if that comes out different without the layers."""
    lengths_B = torch.tensor(_PROBE_LENGTHS, device=model.device)
    mask_BS = torch.arange(WIDTH_MULTIPLE, device=model.device) < lengths_B[:, None]
    ids_BS = torch.arange(1, mask_BS.numel() + 1, device=model.device).view(mask_BS.shape).masked_fill(~mask_BS, 0)
    batch = Batch(ids_BS, mask_BS, None, None, [0, 1, 2], sum(_PROBE_LENGTHS))
    was_training = model.network.training
    model.network.train()
    prefix.rest()
    try:
        states_BSd = prefix.states(lambda: model.read(batch))
        if states_BSd.requires_grad or states_BSd.shape[:2] != ids_BS.shape:
            return None
        model.network.eval()
        with torch.no_grad():
            expected = model.read(batch)
            with prefix.passed_over(states_BSd):
                found = model.read(batch)
            packs = model.packs(WIDTH_MULTIPLE)
            whole = packs and torch.equal(model.packed(batch)[mask_BS], states_BSd[mask_BS])
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # layers of another make
        return None
    finally:
        model.network.train(was_training)
    real = mask_BS if found.shape[:2] == mask_BS.shape else ...
    if not torch.equal(found[real], expected[real]):
        return None
    return replace(prefix, width=states_BSd.shape[-1], dtype=states_BSd.dtype, whole=whole)


def _trial_of_pictures(model: Model, prefix: FrozenPrefix) -> FrozenPrefix | None:
    """The same with two pictures of noise."""
    from PIL import Image

    network: Any = model.network
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pixels = network.prepare(Image.fromarray(noise))
    ids_B1 = torch.zeros(2, 1, dtype=torch.long)
    batch = Batch(ids_B1, torch.ones_like(ids_B1, dtype=torch.bool), None, None, [0, 1], 2)
    batch = replace(batch, pixels=torch.stack([pixels, pixels.flip(-1)])).to(model.device)
    was_training = network.training
    network.eval()
    try:
        output = prefix.output(lambda: model.read(batch))
        if output.requires_grad:
            return None
        found = replace(prefix, shape=tuple(output.shape[1:]), width=output[0].numel(), dtype=output.dtype)
        with torch.no_grad():
            expected = model.read(batch)
            with found.passed_over(output.flatten(1).unsqueeze(1)):
                same = torch.equal(model.read(batch), expected)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # layers of another make
        return None
    finally:
        network.train(was_training)
    return found if same else None
