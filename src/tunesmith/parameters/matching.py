"""Names and patterns of a recipe that match no module of the model are errors: PEFT goes on without them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model
from tunesmith.parameters.adding import linear_names, targets_of
from tunesmith.recipe import LoRA

ALL_LINEAR = "all-linear"
_NAMED = 20


def refuse_unmatched(model: Model, settings: LoRA) -> None:
    """Refuse names and patterns of LoRA's settings that match nothing.

    Raises:
        RecipeError: The first of them, with what the model has.
    """
    refuse_targets(model, settings.targets)
    modules = [name for name, _ in model.wrapped.named_modules() if name]
    linear = f"linear layers here: {_some(linear_names(model.wrapped))}"
    _refuse(model, "exclude", settings.exclude, modules, linear)
    everywhere = {*modules, *(name for name, _ in model.network.named_modules() if name)}
    _refuse(model, "modules_to_save", settings.modules_to_save, everywhere, f"modules here: {_last(everywhere)}")
    targeted = [name for name in _targeted(model.wrapped, settings.targets) if not _matches(settings.exclude, name)]
    for key, patterns in (("rank_pattern", settings.rank_pattern), ("alpha_pattern", settings.alpha_pattern)):
        for pattern in patterns:
            where = f"parameters.{key}"
            regex = _compiled(rf"(.*\.)?({pattern})$", pattern, where)
            if not any(regex.match(name) for name in targeted):
                raise _unmatched(model, where, pattern, f"layers with an adapter: {_last(targeted)}")


def refuse_targets(model: Model, targets: str | list[str]) -> None:
    """Refuse targets of which one, or the pattern, matches no module.

    Raises:
        RecipeError: With the linear layers of the model.
    """
    if targets == ALL_LINEAR:
        return
    modules = [name for name, _ in model.wrapped.named_modules() if name]
    fix = f"linear layers here: {_some(linear_names(model.wrapped))}; or `{ALL_LINEAR}`"
    _refuse(model, "targets", targets, modules, fix)


def _refuse(model: Model, key: str, given: str | list[str], modules: Collection[str], fix: str) -> None:
    """Refuse names in a list of which one matches nothing, or a pattern that does not."""
    where, settings = f"parameters.{key}", targets_of(given)
    if isinstance(settings, str):
        _compiled(settings, settings, where)
    for one in [settings] if isinstance(settings, str) else settings:
        wanted = settings if isinstance(settings, str) else [one]
        if not any(_matches(wanted, name) for name in modules):
            raise _unmatched(model, where, one, fix)


def _unmatched(model: Model, where: str, written: str, fix: str) -> RecipeError:
    key = where.rpartition(".")[2]
    return RecipeError(f"no module of {model.name} matches the {key} {written!r}", where=where, fix=fix)


def _matches(settings: str | list[str], name: str) -> bool:
    """Whether a module is meant, as PEFT reads names (the last parts of a full name) and patterns (the whole)."""
    settings = targets_of(settings)
    if isinstance(settings, str):
        return re.fullmatch(settings, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in settings)


def _targeted(network: nn.Module, targets: str | list[str]) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    if targets == ALL_LINEAR:
        return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name, _ in network.named_modules() if _matches(targets, name)]


def _compiled(expression: str, written: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        fix = "for a name, write it without signs; in a pattern `.` is any character and `.*` any text"
        raise RecipeError(f"{written!r} is no regular expression: {error}", where=where, fix=fix) from error


def _last(names: Iterable[str]) -> str:
    return _some(sorted({name.rsplit(".", 1)[-1] for name in names} - {str(n) for n in range(1000)}))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
