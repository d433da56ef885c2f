"""A training step without numbers: what it would compute, move and keep, counted on the real network's shapes.

The network stands on the meta device, where tensors have shapes and no memory. A forward and a backward pass run
through it as in training, with the same attention and the same layout of rows; every operation that they dispatch is
counted on its way. So what is counted holds for any architecture and any way to choose what trains: nothing is assumed
about layers.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunesmith.models import attention, packing
from tunesmith.models.model import Model, decoder_of

if TYPE_CHECKING:
    from tunesmith.planning.machine import Machine

_PLANNED = "tunesmith-planned"
FREE = ("view", "t.", "transpose", "permute", "detach", "expand", "unsqueeze", "squeeze", "slice.", "select.", "split")
"""Operations that only look at a tensor in another way."""


@dataclass(frozen=True)
class Layout:
    """The rows of one forward pass.

    Attributes:
        rows: How many texts.
        width: Tokens of each, padding included.
    """

    rows: int
    width: int

    @property
    def tokens(self) -> int:
        """T, all tokens."""
        return self.rows * self.width

    @property
    def pairs(self) -> int:
        """Pairs of tokens that attention looks at: the sum of squared widths."""
        return self.rows * self.width**2


@dataclass(frozen=True)
class Work:
    """What a pass costs. Amounts add up over passes; memory does not.

    Attributes:
        flops: Floating-point operations of matrix products.
        product_seconds: Time of these, each bound by arithmetic or by the memory bus, whichever is slower.
        element_seconds: Time of everything else that moves data.
        random_seconds: Time of drawing random numbers (dropout).
        operations: Kernels started.
        kept_bytes: What the forward pass leaves for the backward pass.
        peak_bytes: The most that exists at one time, without weights and their gradients.
    """

    flops: float = 0.0
    product_seconds: float = 0.0
    element_seconds: float = 0.0
    random_seconds: float = 0.0
    operations: float = 0.0
    kept_bytes: float = 0.0
    peak_bytes: float = 0.0

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """This and so many times the other."""
        names = [field.name for field in fields(Work)]
        return Work(*(getattr(self, name) + times * getattr(other, name) for name in names))


@dataclass(frozen=True)
class Step:
    """Forward and backward of one layout.

    Attributes:
        train: Both passes.
        forward: The forward pass alone, as it is in training.
    """

    train: Work
    forward: Work

    def plus(self, other: Step, times: float = 1.0) -> Step:
        """This and so many times the other."""
        return Step(self.train.plus(other.train, times), self.forward.plus(other.forward, times))


NOTHING = Step(Work(), Work())


@dataclass(frozen=True)
class Scaled:
    """The cost of passes of any size: a part a pass, a part a token, and a part a pair of tokens."""

    a_pass: Step
    a_token: Step
    a_pair: Step

    @staticmethod
    def through(found: Sequence[tuple[Layout, Step]]) -> Scaled:
        """Solve cost = a + b tokens + c pairs for three layouts."""
        sizes = np.array([[1.0, layout.tokens, layout.pairs] for layout, _ in found])
        parts = []
        for shares in np.linalg.inv(sizes):
            part = NOTHING
            for share, (_, measured) in zip(shares, found, strict=True):
                part = part.plus(measured, float(share))
            parts.append(part)
        return Scaled(*parts)

    def work(self, tokens: float, pairs: float, *, passes: float = 1, forward: bool = False) -> Work:
        """Of so many tokens and pairs in so many passes."""
        whole = NOTHING.plus(self.a_pass, passes).plus(self.a_token, tokens).plus(self.a_pair, pairs)
        found = whole.forward if forward else whole.train
        return Work(*(max(0.0, value) for value in vars(found).values()))


def scaled(model: Model, machine: Machine, largest: Layout) -> Scaled:
    """Dry runs of a network on the meta device: of its largest pass, of one with fewer rows and one with shorter ones.

    Layers that are alike cost alike, so a few of them are run and counted for all.
    """
    rows, width = max(2, largest.rows), max(2, largest.width)
    layouts = [Layout(rows, width), Layout(rows // 2, width), Layout(rows, width // 2)]
    groups = _alike(model)
    fewest = [min(1, len(group)) for group in groups]
    found = []
    for layout in layouts:
        with _only(model, groups, fewest):
            whole = base = step(model, machine, layout)
        for number, group in enumerate(groups):
            if len(group) > 1:
                more = [count + (n == number) for n, count in enumerate(fewest)]
                with _only(model, groups, more):
                    whole = whole.plus(step(model, machine, layout).plus(base, -1.0), len(group) - 1)
        found.append((layout, whole))
    return Scaled.through(found)


def without_first(model: Model, count: int, machine: Machine, largest: Layout) -> Scaled:
    """The same of a network whose first so many layers are passed over."""
    with _only(model, [model.blocks()[count:]], [len(model.blocks()) - count]):
        return scaled(model, machine, largest)


def _alike(model: Model) -> list[list[nn.Module]]:
    """The network's layers, in groups of neighbours with the same parameters of which the same train."""
    groups: list[list[nn.Module]] = []
    last: object = None
    if _layer_list(model) is None:
        return groups
    for block in model.blocks():
        sort = [(tuple(p.shape), p.requires_grad) for p in block.parameters()]
        if groups and sort == last:
            groups[-1].append(block)
        else:
            groups.append([block])
        last = sort
    return groups


def _layer_list(model: Model) -> nn.ModuleList | None:
    """The one list of all layers; ``None`` where there are several (encoder-decoders)."""
    blocks = set(map(id, model.blocks()))
    lists = [m for m in model.network.modules() if isinstance(m, nn.ModuleList) and set(map(id, m)) == blocks]
    return lists[0] if len(lists) == 1 else None


@contextmanager
def _only(model: Model, groups: list[list[nn.Module]], counts: list[int]) -> Iterator[None]:
    """Within it, the network has only so many layers of each group."""
    layers = _layer_list(model)
    if layers is None:
        yield
        return
    whole = dict(layers._modules)
    kept = [block for group, count in zip(groups, counts, strict=True) for block in group[:count]]
    layers._modules.clear()
    layers._modules.update({str(number): block for number, block in enumerate(kept)})
    try:
        yield
    finally:
        layers._modules.clear()
        layers._modules.update(whole)


def step(model: Model, machine: Machine, layout: Layout) -> Step:
    """Run one step of a network that stands on the meta device, and count.

    Args:
        model: With exactly the parameters that train requiring gradients.
        machine: Whose rates turn operations into time.
        layout: Of the rows.

    Raises:
        Exception: Whatever a network raises that computes with the values of tensors, which there are none of.
    """
    network = model.network
    counter = _Counter(machine, [*network.parameters(), *network.buffers()])
    with _taught_attention(model, counter), _counted_gradients(model, counter), counter:
        hidden = _hidden_states(model, layout, packed=machine.kind == "cpu" and not model.virtual_tokens)
        forward = counter.so_far(kept=counter.live - _bytes(hidden))
        if hidden.requires_grad:
            hidden.backward(torch.empty_like(hidden))
        return Step(counter.so_far(kept=forward.kept_bytes), forward)


def _hidden_states(model: Model, layout: Layout, *, packed: bool) -> torch.Tensor:
    """Last hidden states of meaningless tokens, in the layout that training would use."""
    network: Any = model.transformer()
    network.train()
    shape = (1, layout.tokens) if packed else (layout.rows, layout.width)
    ids = torch.empty(shape, dtype=torch.long, device="meta")
    mask = torch.empty(shape, dtype=torch.bool, device="meta")  # with a mask transformers looks at no positions
    if model.form == "seq2seq":
        output = network.base_model(input_ids=ids, decoder_input_ids=ids, use_cache=False)
    elif packed:
        with packing.laid_out(packing.Layout([packing.Rectangle(0, layout.rows, layout.width, None)], ids[0], mask)):
            output = decoder_of(network)(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False)
    else:
        output = decoder_of(network)(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


class _Counter(TorchDispatchMode):
    """Adds up what passes by, and follows the memory of tensors from their birth to their end."""

    def __init__(self, machine: Machine, already_there: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.machine = machine
        self.live = 0
        self._peak = 0
        self._alive: dict[int, int] = {}
        for tensor in already_there:  # views of it are no memory of their own
            self._follow(tensor.untyped_storage(), 0)
        self._sums = dict.fromkeys(("flops", "product_seconds", "element_seconds", "random_seconds", "operations"), 0.0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(output) if isinstance(tensor, torch.Tensor)]
        for tensor in made:
            self._born(tensor)
        name = func._schema.name.removeprefix("aten::") + "."
        if not name.startswith(FREE):
            read = [tensor for tensor in tree_leaves(args) if isinstance(tensor, torch.Tensor)]
            self._count(name, read, made)
        return output

    def _count(self, name: str, read: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        machine, sums = self.machine, self._sums
        moved = sum(_bytes(tensor) for tensor in (*read, *made)) / machine.copy
        sums["operations"] += 1
        flops = _product_flops(name, read)
        if flops:
            shortest = min(*read[-2].shape[-2:], *read[-1].shape[-2:])
            self.add_product(flops, read[-1].dtype, moved, shortest)
        elif name.startswith(("bernoulli", "native_dropout", "rand")):
            sums["random_seconds"] += sum(tensor.numel() for tensor in made[:1]) / machine.draws
        else:
            sums["element_seconds"] += moved

    def add_product(self, flops: float, dtype: torch.dtype, moved: float = 0.0, shortest: float = 512.0) -> None:
        """Count a product, bound by arithmetic or by the bus (the roofline, Williams et al. 2009)."""
        self._sums["flops"] += flops
        self._sums["product_seconds"] += max(flops / self.machine.products(dtype, shortest), moved)

    def _born(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._follow(storage, storage.nbytes())

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        self._alive[storage._cdata] = size
        self.live += size
        self._peak = max(self._peak, self.live)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.live -= self._alive.pop(key, 0)

    def so_far(self, *, kept: float) -> Work:
        """The sums up to now."""
        return Work(**self._sums, kept_bytes=kept, peak_bytes=self._peak)


def _product_flops(name: str, read: list[torch.Tensor]) -> float:
    """Two operations for each multiply-add of a matrix product; 0 for what is none."""
    if name.startswith(("mm.", "bmm.", "addmm", "baddbmm")):
        left, right = read[-2:]
        return 2.0 * left.numel() * right.shape[-1]
    return 0.0


def _bytes(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


@contextmanager
def _counted_gradients(model: Model, counter: _Counter) -> Iterator[None]:
    """Gradients of weights are planned apart: here each is forgotten as soon as it is there."""

    def forget(parameter: torch.Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(forget) for p in model.network.parameters() if p.requires_grad]
    embeddings: Any = model.transformer()
    hooks += [_begin_gradients(embeddings.get_input_embeddings())] if model.virtual_tokens else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _begin_gradients(embeddings: nn.Module) -> Any:
    """Virtual tokens train before the first layer: let gradients go as far down."""
    return embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_())


@contextmanager
def _taught_attention(model: Model, counter: _Counter) -> Iterator[None]:
    """The attention that such a machine trains with: batched products on a processor, a fused kernel on a GPU."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    network: Any = model.transformer()
    below: Any = decoder_of(network)
    configs: list[Any] = [network.config, *([below.config] if below.config is not network.config else [])]
    before = [config._attn_implementation for config in configs]
    fused = functools.partial(_fused_attention, counter=counter)
    AttentionInterface.register(_PLANNED, fused if counter.machine.kind == "cuda" else attention.batched_attention)
    AttentionMaskInterface.register(_PLANNED, lambda *args, **keys: None)
    try:
        if model.form != "seq2seq":  # whose relative positions come as a bias that neither knows
            for config in configs:
                config._attn_implementation = _PLANNED
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _fused_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    counter: _Counter,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What FlashAttention (arXiv 2205.14135) computes and keeps: no scores, so memory grows with the length alone."""
    causal = bool(getattr(module, "is_causal", True))
    mixed: torch.Tensor = _FusedAttention.apply(counter, causal, query, key, value)
    return mixed.transpose(1, 2).contiguous(), None


class _FusedAttention(torch.autograd.Function):
    """Two products forwards, and five backwards, where the scores are computed again."""

    @staticmethod
    def forward(
        ctx: Any, counter: _Counter, causal: bool, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        one = 2.0 * query.numel() * key.shape[2] * (0.5 if causal else 1.0)
        ctx.count = functools.partial(counter.add_product, dtype=query.dtype)
        ctx.one = one
        ctx.count(2 * one)
        return torch.empty_like(query)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        ctx.count(5 * ctx.one)
        return None, None, *(torch.empty_like(tensor) for tensor in ctx.saved_tensors)
