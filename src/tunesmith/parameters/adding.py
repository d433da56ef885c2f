"""What all kinds share that add parameters through PEFT: wrap the model, keep the head training, say what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import quiet
from tunesmith.models.model import TEXT_HEADS, Model
from tunesmith.parameters.fused_lora import fuse
from tunesmith.parameters.head import train_head

if TYPE_CHECKING:
    import peft


def task_type(model: Model) -> str | None:
    """PEFT's name for what the model does, which decides on the wrapper; ``None`` is its plain one."""
    if isinstance(model.network, SentenceClassifier):
        return "FEATURE_EXTRACTION"
    if model.form in TEXT_HEADS:
        return "SEQ_CLS"
    return {"tag": "TOKEN_CLS", "generate": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}.get(model.form)


def add(model: Model, config: peft.PeftConfig, *, targets: str | list[str] | None = None) -> Any:
    """Freeze the base and add what a configuration describes; a new head trains beside it.

    The added parameters get the base's dtype: PEFT's own default, fp32 adapters on a bf16 base, would run their
    products in fp32. The optimizer keeps fp32 masters instead.

    Args:
        model: Without adapters.
        config: PEFT's.
        targets: What the recipe called the targets, for errors.

    Returns:
        PEFT's wrapper, which is part of the model now.

    Raises:
        RecipeError: No module matches the targets, or the settings do not suit the model's sizes.
    """
    import peft

    model.network.requires_grad_(False)
    if model.form == "tag" and getattr(config, "target_modules", None) == "all-linear":
        # For tokens PEFT's `all-linear` would take in the head, which it then cannot train as a whole.
        adapters: Any = config
        adapters.target_modules = set(_linear_below_head(model))
    try:
        with quiet():
            adapted: Any = peft.get_peft_model(cast(Any, model.wrapped), config, autocast_adapter_dtype=False)
    except (ValueError, TypeError, AssertionError) as error:
        raise _as_recipe_error(error, model, config, targets) from error
    fuse(adapted)
    model.wrap(adapted)
    if isinstance(model.network, SentenceClassifier):
        train_head(model)
    return adapted


def _linear_below_head(model: Model) -> Iterator[str]:
    """Full names of the layers that PEFT's `all-linear` means, without those of the head."""
    from transformers.pytorch_utils import Conv1D

    for name, module in model.wrapped.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name.partition(".")[0] not in model.head_names:
            yield name


def targets_of(settings: str | list[str]) -> str | list[str]:
    """Targets as PEFT takes them: one plain name is a list of one, for a text would be a regular expression there."""
    if isinstance(settings, str) and settings != "all-linear" and settings.isidentifier():
        return [settings]
    return settings


def _as_recipe_error(
    error: Exception, model: Model, config: peft.PeftConfig, targets: str | list[str] | None
) -> RecipeError:
    kind = type(config).__name__.removesuffix("Config")
    if targets is not None and re.search(
        r"not found in the base|were targeted|`peft_config.target_modules`", str(error)
    ):
        linear = linear_names(model.wrapped)
        return RecipeError(
            f"no module of {model.name} matches the targets {targets!r} of {kind}",
            where="parameters.targets",
            fix=f"linear layers here: {', '.join(linear)}; or `all-linear`",
        )
    return RecipeError(
        f"{kind} does not suit {model.name}: {error}",
        where="parameters",
        fix="change `rank`, `targets` or `options`, or use `kind: lora`",
    )


def linear_names(network: nn.Module) -> list[str]:
    """Last names of the linear layers, each once."""
    return sorted(_last_names(name for name, module in network.named_modules() if isinstance(module, nn.Linear)))


def _last_names(names: Iterable[str]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}
