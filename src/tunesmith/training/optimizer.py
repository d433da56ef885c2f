"""AdamW with fp32 masters, and the schedule of its rate."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tunesmith.errors import MissingExtraError, ResourceError
from tunesmith.recipe import Training
from tunesmith.training import compiling
from tunesmith.training.read_rows import ReadRows


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on wide copies of narrow parameters.

    bf16 has 8 bits of precision: an update smaller than 1/256 of a weight would vanish. So weights narrower than fp32
    get an fp32 master that the optimizer changes, and gradients of several micro-batches are added up in fp32 too.
    Weights that are wide already are their own masters.

    Args:
        named_parameters: Names and tensors that train.
        settings: Decay, betas and epsilon.
        rates: Name -> factor of the learning rate, where it is not 1.
        undecayed: Names of matrices without weight decay.
        tables: Names of tables of word vectors -> their rows that are updated, where that is not all.
    """

    def __init__(
        self,
        named_parameters: Iterator[tuple[str, nn.Parameter]],
        settings: Training,
        rates: Mapping[str, float] | None = None,
        undecayed: Collection[str] = (),
        tables: Mapping[str, ReadRows] | None = None,
    ) -> None:
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            self.names.append(name)
            self.parameters.append(parameter)
        self._tables = dict(tables or {})
        self.masters = [self._master(name, parameter) for name, parameter in self.named()]
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            decays = master.ndim >= 2 and name not in undecayed
            groups.setdefault((decays, (rates or {}).get(name, 1.0)), []).append(master)
        self._adamw = _adamw(
            [
                {"params": masters, "weight_decay": settings.weight_decay if decayed else 0.0, "factor": factor}
                for (decayed, factor), masters in groups.items()
            ],
            settings,
        )

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors that train, sooner or later."""
        return zip(self.names, self.parameters, strict=True)

    def accumulate(self) -> None:
        """Move the gradients of one micro-batch onto the masters, in fp32."""
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if master is parameter or parameter.grad is None:
                continue
            if name in self._tables:
                self._tables[name].accumulate(parameter.grad, master)
            elif master.grad is None:
                master.grad = parameter.grad.to(master.dtype)
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def discard(self) -> None:
        """Forget all gradients."""
        for tensor in (*self.parameters, *self.masters):
            tensor.grad = None
        for table in self._tables.values():
            table.discard()

    def gradients(self) -> list[torch.Tensor]:
        """The accumulated gradients."""
        return [m.grad for m in self.masters if m.grad is not None]

    def step(self, learning_rate: float, scale: float) -> None:
        """Multiply the gradients by ``scale``, update the masters, copy them to the weights, forget the gradients."""
        torch._foreach_mul_(self.gradients(), scale)
        for group in self._adamw.param_groups:
            rate = learning_rate * group["factor"]
            group["lr"] = torch.tensor(rate) if isinstance(group["lr"], torch.Tensor) else rate
        self._adamw.step()
        narrow = []
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if name in self._tables:
                self._tables[name].put_back(master.detach())
            elif master is not parameter:
                narrow.append((parameter, master))
        if narrow:
            with torch.no_grad():
                torch._foreach_copy_([p for p, _ in narrow], [m for _, m in narrow])
        self.discard()

    def state(self) -> dict[str, torch.Tensor]:
        """Masters, moments and step counts as tensors by name."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if master is not parameter:
                tensors[f"master.{name}"] = master.detach()
            for key, value in self._adamw.state.get(master, {}).items():
                tensors |= {f"{part}.{name}": tensor.detach() for part, tensor in _parts(key, value).items()}
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if master is not parameter:
                with torch.no_grad():
                    master.copy_(tensors[f"master.{name}"])
            kept = {key: _whole(key, name, tensors, master) for key in ("step", *MOMENTS)}
            if kept["step"] is not None:
                self._adamw.state[master] = kept

    def _master(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if name in self._tables:
            return self._tables[name].master()
        if parameter.dtype in (torch.float32, torch.float64):
            return parameter
        return nn.Parameter(parameter.detach().to(torch.float32))


MOMENTS = ("exp_avg", "exp_avg_sq")


def _adamw(groups: list[dict[str, Any]], settings: Training) -> torch.optim.Optimizer:
    """Torch's, or torchao's with moments in 8 bits: in blocks of 256, but for tensors of fewer than 4,096 numbers.

    Raises:
        MissingExtraError: torchao is not installed.
        ResourceError: There is no compiler, which torchao's needs.
    """
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon, fused=True)
    if importlib.util.find_spec("torchao") is None:
        raise MissingExtraError("torchao", "quantization", "`optimizer: adamw-8bit`")
    if not compiling.has_compiler() and not torch.cuda.is_available():
        raise ResourceError(
            "`adamw-8bit` is compiled for this machine, and there is no C++ compiler",
            where="training.optimizer",
            fix="install g++, or use `optimizer: adamw`",
        )
    from torchao.optim import AdamW8bit

    return cast(torch.optim.Optimizer, AdamW8bit(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon))


def _parts(key: str, value: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint keeps of a number of the optimizer's: of 8 bits the codes and the scales of their blocks."""
    if hasattr(value, "codes"):
        return {f"{key}_codes": value.codes, f"{key}_scale": value.scale}
    return {key: value.reshape(value.shape)}


def _whole(key: str, name: str, tensors: Mapping[str, torch.Tensor], master: torch.Tensor) -> torch.Tensor | None:
    """The number put together again; ``None`` if it is not there."""
    if f"{key}.{name}" in tensors:
        value = tensors[f"{key}.{name}"]
        return value.clone() if key == "step" else value.to(master.device, copy=True)
    if f"{key}_codes.{name}" not in tensors:
        return None
    from torchao.optim.subclass_8bit import OptimState8bit

    codes, scale = tensors[f"{key}_codes.{name}"], tensors[f"{key}_scale.{name}"]
    signed, size = key == MOMENTS[0], codes.numel() // scale.numel()
    state = OptimState8bit.zeros(codes.shape, signed, size, master.device, master.dtype)
    state.codes.copy_(codes)
    state.scale.copy_(scale)
    return cast(torch.Tensor, state)


@dataclass(frozen=True)
class Schedule:
    """Learning rate by update: a linear warm-up, then linear or cosine decay to zero, or constant."""

    peak: float
    steps: int
    warmup: float
    kind: str

    def at(self, step: int) -> float:
        """Rate of update ``step``, counted from 0."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.peak * (step + 1) / warm
        left = (self.steps - step) / max(1, self.steps - warm)
        factor = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left)))}[self.kind]
        return self.peak * factor
