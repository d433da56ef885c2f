"""Products with narrow weights: several ways to compute the same thing, of which the fastest right one is taken.

Which way is fast depends on the processor, and some are *wrong* on some: without VNNI, x86 adds pairs of products of
8-bit numbers into 16 bits that saturate, which ruins a model without a word. So each way is first compared with plain
floating-point arithmetic, then timed, on the very weights that it shall serve.

Activations are taken in :func:`levels` steps: 8 bits where the hardware adds products in 32 bits (VNNI, AMX, GPUs),
else 7, for which no pair can saturate: 127 * 128 * 2 < 2^15. Where weights alone are narrow an activation is two such
digits, 14 to 16 bits, so that the same 8-bit product computes it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.compression import narrowing

TOLERANCE = {"int8": 2e-2, "int8-static": 2e-2, "int8-weights": 1e-3, "int4-weights": 1e-2, "fp8": 2e-2}
"""Relative difference, in the norm, to the same product in floating point that rounding alone explains."""
TIMED_ROWS = (1, 8)
"""Tokens that ways are timed with: what generation feeds a layer at batch 1 and 8."""
Product = Callable[[torch.Tensor], torch.Tensor]
"""From (M, K) fp32 to (M, N) fp32, without the bias."""


@dataclass(frozen=True)
class Narrow:
    """Weights of a linear layer as they are kept.

    Attributes:
        kind: Of :data:`tunesmith.compression.settings.KINDS`.
        values: As :mod:`tunesmith.compression.narrowing` makes them.
        scale: Likewise.
        low: Smallest activation that calibration saw; static kinds only.
        high: Largest.
    """

    kind: str
    values: torch.Tensor
    scale: torch.Tensor
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """A way that was chosen, and what its own form of the weights takes; 0 if it reads the kept values."""

    name: str
    product: Product
    bytes_a_weight: float

    @property
    def keeps_values(self) -> bool:
        """Whether the kept values are still needed."""
        return self.bytes_a_weight == 0


def levels(device: torch.device) -> int:
    """Steps between the smallest and the largest activation of a token: 255, or 127 where sums might saturate."""
    if device.type != "cpu":
        return 255
    # From torch 2.11 on; one that does not tell gets the 7 bits that are right anywhere.
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return 255 if has.get("avx512_vnni") or has.get("amx_int8") else 127


_winners: dict[tuple[Any, ...], str] = {}
"""Shape, kind and machine settings -> the way that won: layers of one shape are timed once a process."""


def choose(narrow: Narrow) -> Chosen:
    """The fastest way to multiply by these weights that is right on this machine."""
    key = (narrow.kind, tuple(narrow.values.shape), narrow.values.device, torch.get_num_threads())
    if key in _winners:
        for name, make, size in _ways(narrow):
            if name == _winners[key]:
                return Chosen(name, make(narrow), size)
    sample = _sample(narrow)
    wanted = _wide_product(narrow)(sample)
    best: Chosen | None = None
    shortest = float("inf")
    for name, make, size in _ways(narrow):
        try:
            product = make(narrow)
            right = _difference(product(sample), wanted) <= TOLERANCE[narrow.kind]
        except (RuntimeError, NotImplementedError, AttributeError):  # this build of torch, or this device, lacks it
            continue
        if right and (seconds := _seconds(product, sample)) < shortest:
            best, shortest = Chosen(name, product, size), seconds
    assert best is not None  # the plain product is right by definition
    _winners[key] = best.name
    return best


def _ways(narrow: Narrow) -> Iterator[tuple[str, Callable[[Narrow], Product], float]]:
    """Name, maker, and bytes a weight of a form of its own (0: it reads the kept values)."""
    on_cpu = narrow.values.device.type == "cpu"
    if narrow.kind == "fp8":
        yield "scaled_mm", _scaled_mm, 0
    elif narrow.kind == "int8-static":
        if on_cpu:
            yield "fbgemm", _static_fbgemm, 1
    elif narrow.kind == "int8":
        if on_cpu:
            yield "fbgemm", _dynamic_fbgemm, 1
            if levels(narrow.values.device) == 255:  # it has no bit to give away else
                yield "fbgemm, symmetric", _symmetric_fbgemm, 1
            yield "onednn", _dynamic_onednn, 1
        yield "int_mm", _int_mm, 0
    else:
        if on_cpu:
            yield "fbgemm, two digits", _two_digits, 1
        if narrow.kind == "int8-weights":
            yield "int8pack", _int8pack, 0
        elif on_cpu:
            yield "int4pack", _int4pack, 0.5
    yield "plain", _wide_product, 0


def _sample(narrow: Narrow) -> torch.Tensor:
    """Activations with an outlier in each row, as transformers have them; equal numbers would saturate soonest."""
    generator = torch.Generator().manual_seed(0)
    width = narrow.values.shape[1] * (2 if narrow.kind == "int4-weights" else 1)
    sample = torch.randn(max(TIMED_ROWS), width, generator=generator).to(narrow.values.device)
    if narrow.kind == "int8-static":
        return sample.clamp(-1, 1) * min(abs(narrow.low), abs(narrow.high))
    sample[:, 0] = 8.0
    sample[0] = torch.rand(width, generator=generator).to(sample) * 8.0  # one-sided: the largest sums
    return sample


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    wanted = wanted.double()
    return float(torch.linalg.vector_norm(found.double() - wanted) / torch.linalg.vector_norm(wanted).clamp(min=1e-12))


def _seconds(product: Product, sample: torch.Tensor) -> float:
    """The shortest of a few trials, summed over the batch sizes."""
    total = 0.0
    for rows in TIMED_ROWS:
        product(sample[:rows])
        trials = []
        for _ in range(5):
            started = time.perf_counter()
            product(sample[:rows])
            trials.append(time.perf_counter() - started)
        total += min(trials)
    return total


# --- the ways ----------------------------------------------------------------------------------------------------


def _rounded(narrow: Narrow) -> Product:
    """What a kind does to activations, in floating point."""
    if narrow.kind == "int8":
        return rounded_rows
    if narrow.kind == "int8-static":
        low, step = narrow.low, _static_step(narrow)
        return lambda x: ((x.clamp(narrow.low, narrow.high) - low) / step).round() * step + low
    if narrow.kind == "fp8":

        def eight_bits(x: torch.Tensor) -> torch.Tensor:
            values, scale = narrowing.to_fp8(x)
            return values.float() * scale[:, None]

        return eight_bits
    return lambda x: x


def _wide_product(narrow: Narrow) -> Product:
    """The reference: weights are widened for each product."""
    rounded = _rounded(narrow)
    return lambda x: nn.functional.linear(rounded(x), narrowing.widened(narrow.values, narrow.scale))


def rounded_rows(x: torch.Tensor) -> torch.Tensor:
    """Activations (..., K) fp32 as the kind ``int8`` rounds them."""
    digits, low, step = _digits(x)
    return digits.round() * step + low


def _digits(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row as numbers 0 to :func:`levels`, not yet rounded, with its smallest value (..., 1) and its step."""
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    step = ((high - low) / levels(x.device)).clamp_(min=1e-12)
    return (x - low) / step, low, step


def _static_step(narrow: Narrow) -> float:
    return max((narrow.high - narrow.low) / levels(narrow.values.device), 1e-12)


def _fbgemm(packed: Any) -> Product:
    """Products of digits, (M, K) fp32 that are rounded here, with 8-bit weights: (M, N) fp32."""
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return lambda digits: multiply(digits, 1.0, 0, packed)


def _packed(values: torch.Tensor, scale: torch.Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this way; then another is chosen
        zeros = torch.zeros(len(scale), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(values, scale.float(), zeros, 0)
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            return torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = before


def _row_sums(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return values.sum(1, dtype=torch.int64).float() * scale.float()


def _dynamic_fbgemm(narrow: Narrow) -> Product:
    packed, sums_N = _packed(narrow.values, narrow.scale), _row_sums(narrow.values, narrow.scale)
    multiply, single = _fbgemm(packed), torch.ops.quantized.linear_dynamic
    in_7_bits = levels(narrow.values.device) < 255

    def product(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:  # torch's own dynamic product does the same in one call
            return single(x, packed, in_7_bits)
        digits, low, step = _digits(x)
        return torch.addcmul(low * sums_N, multiply(digits), step)

    return product


def _symmetric_fbgemm(narrow: Narrow) -> Product:
    """Steps around zero, from each row's largest magnitude down: fewer passes over activations."""
    packed = _packed(narrow.values, narrow.scale)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    single = torch.ops.quantized.linear_dynamic
    most = levels(narrow.values.device) // 2

    def product(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            return single(x, packed)
        largest = torch.linalg.vector_norm(x, float("inf"), 1, keepdim=True).clamp_(min=1e-12)
        return multiply(x / largest, 1 / most, most, packed).mul_(largest)

    return product


def _static_fbgemm(narrow: Narrow) -> Product:
    multiply, sums_N = _fbgemm(_packed(narrow.values, narrow.scale)), _row_sums(narrow.values, narrow.scale)
    low, step = narrow.low, _static_step(narrow)
    offset_N = low * sums_N

    def product(x: torch.Tensor) -> torch.Tensor:
        digits = x.clamp(narrow.low, narrow.high).sub_(low).div_(step)
        return torch.add(offset_N, multiply(digits), alpha=step)

    return product


def _two_digits(narrow: Narrow) -> Product:
    """An activation as a whole digit and the rest as another, both through one 8-bit product.

    Weights in 4 bits are taken in 8 with one scale a row; the comparison with the plain product says if that is right.
    """
    values, scale = narrow.values, narrow.scale
    if narrow.kind == "int4-weights":
        values, scale = narrowing.to_int8(narrowing.widened(values, scale))
    multiply, sums_N, base = _fbgemm(_packed(values, scale)), _row_sums(values, scale), levels(values.device)

    def product(x: torch.Tensor) -> torch.Tensor:
        digits, low, step = _digits(x)
        first = digits.floor()
        found = multiply(torch.cat([first, (digits - first).mul_(base)]))
        whole = torch.add(found[: len(x)], found[len(x) :], alpha=1 / base)
        return torch.addcmul(low * sums_N, whole, step)

    return product


def _dynamic_onednn(narrow: Narrow) -> Product:
    multiply, sums_N = torch.ops.onednn.qlinear_pointwise, _row_sums(narrow.values, narrow.scale)
    packed = torch.ops.onednn.qlinear_prepack(narrow.values, None)
    scale_N, zeros_N = narrow.scale.float(), torch.zeros(len(narrow.scale), dtype=torch.int64)

    def product(x: torch.Tensor) -> torch.Tensor:
        digits, low, step = _digits(x)
        whole = digits.round_().to(torch.uint8)
        found = multiply(whole, 1.0, 0, packed, scale_N, zeros_N, None, 1.0, 0, torch.float32, "none", [], "")
        return torch.addcmul(low * sums_N, found, step)

    return product


def _int_mm(narrow: Narrow) -> Product:
    """The product of whole numbers that torch has on every device; cuBLAS wants more than 16 rows."""
    values_KN, sums_N, scale_N = narrow.values.t(), _row_sums(narrow.values, narrow.scale), narrow.scale.float()
    least = 17 if narrow.values.is_cuda else 1
    half = (levels(narrow.values.device) + 1) // 2  # digits have no sign, the numbers of this product have

    def product(x: torch.Tensor) -> torch.Tensor:
        digits, low, step = _digits(x)
        whole = digits.round_().sub_(half).to(torch.int8)
        rows = len(whole)
        whole = nn.functional.pad(whole, (0, 0, 0, max(0, least - rows)))
        found = torch._int_mm(whole, values_KN)[:rows].float() * scale_N
        return torch.addcmul((low + half * step) * sums_N, found, step)

    return product


def _int8pack(narrow: Narrow) -> Product:
    scale_N = narrow.scale.float()
    return lambda x: torch._weight_int8pack_mm(x, narrow.values, scale_N)


def _int4pack(narrow: Narrow) -> Product:
    values = narrowing.unpacked(narrow.values).to(torch.int32) + 8
    group = values.shape[1] // narrow.scale.shape[1]
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    scale = narrow.scale.float().t()
    scales_and_zeros = torch.stack([scale, torch.zeros_like(scale)], dim=2).contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales_and_zeros)


def _scaled_mm(narrow: Narrow) -> Product:
    values_KN, scale_1N = narrow.values.t(), narrow.scale.float()[None]

    def product(x: torch.Tensor) -> torch.Tensor:
        values, scale = narrowing.to_fp8(x)
        found: torch.Tensor = torch._scaled_mm(
            values, values_KN, scale_a=scale[:, None], scale_b=scale_1N, out_dtype=torch.bfloat16
        )
        return found.float()

    return product
