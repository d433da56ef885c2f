"""Adapters besides LoRA that PEFT keeps, each a row of a table."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model
from tunesmith.parameters.adding import add, targets_of, task_type
from tunesmith.parameters.matching import refuse_targets
from tunesmith.recipe import Adapter

CONFIGS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "ia3": ("IA3Config", None, {}),
    "vera": ("VeraConfig", "r", {}),
    "randlora": ("RandLoraConfig", "r", {}),
    "loha": ("LoHaConfig", "r", {"r": 8, "alpha": 16}),
    "lokr": ("LoKrConfig", "r", {"r": 8, "alpha": 16}),
    "oft": ("OFTConfig", "oft_block_size", {"oft_block_size": 32}),
    "hra": ("HRAConfig", "r", {}),
    "miss": ("MissConfig", "r", {}),
    "vblora": ("VBLoRAConfig", "r", {}),
    "fourierft": ("FourierFTConfig", "n_frequency", {}),
    "road": ("RoadConfig", "group_size", {}),
    "delora": ("DeloraConfig", "r", {}),
}
"""Kind -> name of PEFT's configuration, the setting that ``rank`` is, and our defaults where PEFT has no good one."""


def apply(model: Model, settings: Adapter) -> None:
    """Freeze the base and add the adapter; a new head trains beside it.

    Raises:
        RecipeError: A setting is unknown, no module matches ``targets``, or the model's sizes do not allow it.
    """
    import peft

    name, rank, defaults = CONFIGS[settings.kind]
    config_class = getattr(peft, name)
    known = {field.name for field in dataclasses.fields(config_class)}
    _refuse_unknown(settings, known)
    chosen = {**defaults, **settings.options}
    if settings.rank is not None:
        if rank is None:
            raise RecipeError(f"`{settings.kind}` has no rank", where="parameters.rank", fix="leave it out")
        chosen[rank] = settings.rank
    targets = settings.targets
    if targets == "auto":
        targets = "all-linear"
    if settings.kind == "ia3" and settings.targets == "auto":
        chosen = _ia3_targets(model) | chosen
    else:
        chosen["target_modules"] = targets_of(targets)
        if settings.kind == "ia3":
            chosen.setdefault("feedforward_modules", [])
        refuse_targets(model, targets)
    config = config_class(task_type=task_type(model), base_model_name_or_path=str(model.folder), **chosen)
    add(model, config, targets=targets)


def _ia3_targets(model: Model) -> dict[str, Any]:
    """Where IA3's factors go (arXiv 2205.05638, section 3.3): keys, values, and between the feed-forward's layers.

    Raises:
        RecipeError: PEFT does not know the architecture.
    """
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEED_FORWARD,
    )
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS,
    )

    config: Any = model.transformer().config
    if config.model_type not in TARGETS:
        raise RecipeError(
            f"where IA3's factors go in a model of the type {config.model_type} is not known",
            where="parameters.targets",
            fix="name the layers of keys and values, and of the feed-forward's second matrix in both "
            "`targets` and `options: {feedforward_modules: [...]}`",
        )
    return {
        "target_modules": TARGETS[config.model_type],
        "feedforward_modules": FEED_FORWARD[config.model_type],
    }


def _refuse_unknown(settings: Adapter, known: set[str]) -> None:
    for option in settings.options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            raise RecipeError(
                f"`{settings.kind}` has no setting {option!r}",
                where=f"parameters.options.{option}",
                fix=f"did you mean `{near[0]}`?" if near else f"settings of PEFT's: {', '.join(sorted(known))}",
            )
