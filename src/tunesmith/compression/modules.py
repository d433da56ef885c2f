"""Modules with narrow weights in the place of a model's linear layers and its input embedding, and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tunesmith.compression import kernels, narrowing
from tunesmith.compression.settings import GROUP, QuantizationKind
from tunesmith.compression.smoothing import smoothed
from tunesmith.errors import ResourceError, UsageError
from tunesmith.models.model import Model

FILE = "narrow.safetensors"
UNEVEN = 0.0175
"""Between 0.008 and 0.016 is lost to 8 bits of what MiniLM's layers read, and of what SmolLM2's attention puts out,
where that costs nothing; of the products of gates, 0.019 to 0.045, where it costs 1 % of its perplexity."""
EMBEDDING, VOCABULARY = "embedding", "vocabulary head"


class NarrowLinear(nn.Module):
    """``y = x W' + b`` with ``W`` in 8 or 4 bits. Nothing of it trains.

    The way it multiplies is chosen when it first does (:mod:`tunesmith.compression.kernels`); what the chosen way has
    no use for is let go then, so a module that has run cannot be saved.
    """

    def __init__(
        self,
        kind: str,
        values: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        activations: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.kind = kind
        # Called `weight` and of an integer type, since transformers asks layers for the type of their `weight`.
        self.weight = nn.Parameter(values, requires_grad=False)
        self.scale: torch.Tensor
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features = values.shape[0]
        self.in_features = values.shape[1] * (2 if scale.dim() == 2 else 1)
        # Doubles: the shape of numbers that calibration fixes, kept in the file beside the weights.
        self.activations: torch.Tensor
        if kind == "int8-static":
            self.register_buffer("activations", torch.tensor(activations, dtype=torch.float64))
        self._chosen: kernels.Chosen | None = None

    @property
    def way(self) -> str | None:
        """How it multiplies; ``None`` before it first did."""
        return None if self._chosen is None else self._chosen.name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N), in the dtype of ``x``."""
        if self._chosen is None:
            self._choose()
        assert self._chosen is not None
        y = self._chosen.product(x.reshape(-1, self.in_features).float())
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _choose(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            low, high = self.activations.tolist() if self.kind == "int8-static" else (0.0, 0.0)
            self._chosen = kernels.choose(kernels.Narrow(self.kind, self.weight.data, self.scale, low, high))
            if not self._chosen.keeps_values:
                self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)

    @property
    def packed_bytes(self) -> int:
        """What the form of the weights takes that the chosen way has made for itself; 0 if it reads the kept ones."""
        each = 0.0 if self._chosen is None else self._chosen.bytes_a_weight
        return int(self.in_features * self.out_features * each)

    def extra_repr(self) -> str:
        """Its shape and kind, as torch prints modules."""
        return f"{self.in_features}, {self.out_features}, {self.kind}, by {self.way}"


class NarrowEmbedding(nn.Module):
    """A table of vectors in 8 bits, a scale for each."""

    def __init__(self, values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, factor: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(values, requires_grad=False)
        self.scale: torch.Tensor
        self.register_buffer("scale", scale)
        self.dtype = dtype
        self.factor = factor  # Gemma's embeddings are multiplied by this
        self.num_embeddings, self.embedding_dim = values.shape

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) to (..., d)."""
        found = self.weight[ids].float() * self.scale[ids].unsqueeze(-1)
        found = found.to(self.dtype)
        return found if self.factor is None else found * self.factor.to(found.dtype)


@dataclass(frozen=True)
class Layer:
    """Something that is quantized as a whole, or left alone: a transformer's layer, the embedding, the output.

    Attributes:
        name: For people: ``layer 3``, ``embedding``, ``vocabulary head``.
        modules: Dotted names in the network.
    """

    name: str
    modules: tuple[str, ...]


def layers_of(model: Model) -> list[Layer]:
    """What of a model can be quantized. Heads of tasks are small and decide: they are not in it.

    Raises:
        UsageError: Nothing of the model can be.
    """
    names = {module: name for name, module in model.network.named_modules(remove_duplicate=True)}
    found = []
    for number, block in enumerate(model.blocks()):
        inside = tuple(names[module] for module in block.modules() if type(module) is nn.Linear)
        if inside:
            found.append(Layer(f"layer {number}", inside))
    if not found:
        raise UsageError(
            f"no linear layer of {model.name} can be quantized: its layers are of other kinds",
            fix="models whose layers are `torch.nn.Linear` can be (BERT, Llama, Qwen, T5, ...); GPT-2's are not",
        )
    transformer: Any = model.transformer()
    table = transformer.get_input_embeddings()
    if table in names and isinstance(table, nn.Embedding) and table.max_norm is None:
        found.append(Layer(EMBEDDING, (names[table],)))
    head = transformer.get_output_embeddings()
    if model.form in ("generate", "seq2seq") and head in names and type(head) is nn.Linear:
        found.append(Layer(VOCABULARY, (names[head],)))
    return found


@dataclass(frozen=True)
class Inputs:
    """What a linear layer read while a model worked on calibration rows.

    Attributes:
        low_K: The smallest of each number.
        high_K: The largest.
        rounding: Share of a token's numbers, in the norm, that is lost where they are rounded to 8 bits; the mean.
    """

    low_K: torch.Tensor
    high_K: torch.Tensor
    rounding: float

    @property
    def largest_K(self) -> torch.Tensor:
        """The largest magnitude of each number."""
        return torch.maximum(self.low_K.abs(), self.high_K.abs())


Calibration = Mapping[str, Inputs]
"""By the dotted names of the linear layers."""


def narrow_layers(
    model: Model, layers: Sequence[Layer], kind: QuantizationKind, calibration: Calibration | None = None
) -> None:
    """Put narrow modules in the place of those of some layers, as :func:`narrow_modules` makes them."""
    for name, module in narrow_modules(model, layers, kind, calibration).items():
        replace(model.network, name, module)
    model.packable_length = 0


def narrow_modules(
    model: Model, layers: Sequence[Layer], kind: QuantizationKind, calibration: Calibration | None = None
) -> dict[str, nn.Module]:
    """Narrow modules for some layers, and the norms that feed them if these must change; the model stays as it is.

    The embedding is in 8 bits whatever the kind, the vocabulary head at least; what is tied stays tied. Where the kind
    rounds activations and calibration has seen them, outliers are moved into weights
    (:mod:`tunesmith.compression.smoothing`). About 16 bits of what they read (``int8-weights``) keep: the vocabulary
    head, whose outliers cannot move into a table that is the embedding too (8 bits cost SmolLM2 1 % of its perplexity
    there); layers that read numbers too uneven for 8, by more than :data:`UNEVEN`; with ``int8-static`` also what
    calibration has not seen.

    Args:
        model: Without adapters.
        layers: Of :func:`layers_of`.
        kind: The number format.
        calibration: What linear layers read; static kinds need it.

    Returns:
        Dotted name of what is to be replaced -> its replacement.

    Raises:
        UsageError: A matrix does not fit the format.
    """
    network, calibration = model.network, calibration or {}
    made: dict[str, nn.Module] = {}
    shared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # a tied matrix, narrowed once
    factors: dict[str, torch.Tensor] = {}
    inside = {name for layer in layers for name in layer.modules}
    if kind in ("int8", "int8-static"):
        for group in smoothed(model, {name: inputs.largest_K for name, inputs in calibration.items()}):
            if inside.issuperset(group.readers):
                made[group.norm] = group.smoothed_norm(network)
                factors |= dict.fromkeys(group.readers, group.factor_K)
    for layer in layers:
        for name in layer.modules:
            module: Any = network.get_submodule(name)
            if isinstance(module, nn.Embedding):
                values, scale = shared.setdefault(id(module.weight), narrowing.to_int8(module.weight))
                made[name] = _embedding_of(module, values, scale)
            elif layer.name == VOCABULARY:
                values, scale = shared.setdefault(id(module.weight), narrowing.to_int8(module.weight))
                made[name] = _linear_of(module, kind if kind == "fp8" else "int8-weights", values, scale, None, None)
            else:
                factor_K, inputs = factors.get(name), calibration.get(name)
                uneven = factor_K is None and inputs is not None and inputs.rounding > UNEVEN
                unseen = kind == "int8-static" and inputs is None
                own = "int8-weights" if unseen or (uneven and kind in ("int8", "int8-static")) else kind
                values, scale = _narrowed(module, name, kind, factor_K)
                made[name] = _linear_of(module, own, values, scale, inputs, factor_K)
    device = next(network.parameters()).device
    return {name: module.to(device).eval() for name, module in made.items()}


def _narrowed(
    module: nn.Linear, name: str, kind: QuantizationKind, factor_K: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of a layer's weights."""
    if kind == "int4-weights":
        if module.in_features % GROUP:
            raise UsageError(
                f"{name} reads {module.in_features} numbers, which groups of {GROUP} do not divide",
                where="quantize.to",
                fix="use int8-weights, or name its layer in `quantize.keep`",
            )
        return narrowing.to_int4(module.weight, GROUP)
    if kind == "fp8":
        return narrowing.to_fp8(module.weight)
    return narrowing.to_int8(module.weight if factor_K is None else module.weight * factor_K.to(module.weight))


def _linear_of(
    module: nn.Linear,
    kind: str,
    values: torch.Tensor,
    scale: torch.Tensor,
    inputs: Inputs | None,
    factor_K: torch.Tensor | None,
) -> NarrowLinear:
    low, high = 0.0, 0.0
    if inputs is not None:
        by = torch.ones_like(inputs.low_K) if factor_K is None else factor_K.to(inputs.low_K)
        low, high = float((inputs.low_K / by).min()), float((inputs.high_K / by).max())
    return NarrowLinear(kind, values, scale, module.bias, (low, high))


def _embedding_of(module: Any, values: torch.Tensor, scale: torch.Tensor) -> NarrowEmbedding:
    return NarrowEmbedding(values, scale, module.weight.dtype, getattr(module, "embed_scale", None))


def replace(network: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another, by its dotted name."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, new)


# --- in files ------------------------------------------------------------------------------------------------------


def save_narrow(model: Model, folder: Path) -> None:
    """Write configuration and weights of a network with narrow modules, which has not run yet; tied ones once."""
    transformer: Any = model.transformer()
    transformer.config.save_pretrained(folder)
    if getattr(transformer, "generation_config", None) is not None:
        transformer.generation_config.save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[int, str] = {}
    same: dict[str, str] = {}
    for name, tensor in model.network.state_dict().items():
        first = seen.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if first != name and tensors[first].shape == tensor.shape:
            same[f"same:{name}"] = first
            continue
        tensors[name] = tensor.detach().contiguous().cpu()
    save_file(tensors, folder / FILE, metadata={"format": "pt", **same})


def kept_kinds(model: Model) -> dict[str, str]:
    """Dotted name -> kind, of every narrow module; embeddings have the kind ``embedding``."""
    found = {}
    for name, module in model.network.named_modules():
        if isinstance(module, NarrowLinear):
            found[name] = module.kind
        elif isinstance(module, NarrowEmbedding):
            found[name] = EMBEDDING
    return found


def load_narrow(model: Model, kinds: Mapping[str, str], folder: Path) -> None:
    """Make the modules of an empty network narrow, and fill all of it from the file that :func:`save_narrow` wrote.

    Raises:
        ResourceError: The file does not fit the network.
    """
    path = folder / FILE

    try:
        with safe_open(path, framework="pt") as file:
            same = {key[5:]: first for key, first in (file.metadata() or {}).items() if key.startswith("same:")}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"cannot read the quantized weights: {error}", where=str(path)) from error
    tensors |= {name: tensors[first] for name, first in same.items() if first in tensors}
    try:
        for name, kind in kinds.items():
            new = _empty(model.network.get_submodule(name), kind, tensors, name)
            replace(model.network, name, new.to(model.device).eval())
        model.network.load_state_dict(tensors, strict=True, assign=False)
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ResourceError(f"the quantized weights do not fit the model: {error}", where=str(path)) from error
    _tie(model.network, same)


def _empty(module: Any, kind: str, tensors: Mapping[str, torch.Tensor], name: str) -> nn.Module:
    values, scale = (torch.empty_like(tensors[f"{name}.{part}"]) for part in ("weight", "scale"))
    if kind == EMBEDDING:
        return _embedding_of(module, values, scale)
    return NarrowLinear(kind, values, scale, module.bias)


def _tie(network: nn.Module, same: Mapping[str, str]) -> None:
    """Let tensors that are one in the file be one in memory."""
    for name, first in same.items():
        (owner, _, own), (other, _, part) = name.rpartition("."), first.rpartition(".")
        shared = network.get_submodule(other)._parameters.get(part)
        if shared is not None and own in network.get_submodule(owner)._parameters:
            network.get_submodule(owner)._parameters[own] = shared
