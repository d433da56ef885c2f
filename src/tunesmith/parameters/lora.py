"""Low-rank adapters through PEFT (Hu et al. 2021, arXiv 2106.09685), in PEFT's own format."""

from __future__ import annotations

from typing import Any, cast

from tunesmith.models.model import Model
from tunesmith.models.new_tokens import ids_of, token_layers
from tunesmith.models.plain_lora import first_weights
from tunesmith.parameters.adding import add, targets_of, task_type
from tunesmith.parameters.beginnings import from_lost
from tunesmith.parameters.matching import refuse_unmatched
from tunesmith.recipe import LoRA


def apply(model: Model, settings: LoRA) -> None:
    """Freeze the base and add adapters; a new head trains beside them.

    Raises:
        RecipeError: A name or a pattern of the settings matches no module.
    """
    import peft

    refuse_unmatched(model, settings)
    on_meta = next(model.network.parameters()).is_meta  # sizes are counted: there are no weights to start from
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.scale),
        lora_dropout=settings.dropout,
        target_modules=targets_of(settings.targets),
        exclude_modules=targets_of(settings.exclude) or None,
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=cast(Any, dict(settings.alpha_pattern)),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=cast(Any, True if on_meta or settings.init in ("default", "loftq") else settings.init),
        # With a rho of 1 all layers keep their rank.
        eva_config=peft.EvaConfig(rho=1.0) if settings.init == "eva" and not on_meta else None,
        bias=settings.bias,
        modules_to_save=list(settings.modules_to_save) or None,
        trainable_token_indices=_rows(model) or None,
        task_type=cast(Any, task_type(model)),
        base_model_name_or_path=str(model.folder),
    )
    add(model, config, targets=settings.targets)
    if settings.init in ("pissa", "olora") and not on_meta:
        model.first_weights = first_weights(model.wrapped)
    if settings.init == "loftq" and not on_meta:
        from_lost(model.wrapped, model.wide)
    if settings.lr_ratio != 1.0:
        model.rates |= {name: settings.lr_ratio for name, _ in model.trainable() if "lora_B" in name}


def _rows(model: Model) -> dict[str, list[int]]:
    """The rows of new tokens by the layer that holds them; PEFT lets layers with one matrix share what is learned."""
    if not model.new_tokens:
        return {}
    layers = {id(layer.weight): name for name, layer in reversed(token_layers(model))}
    return {name.rsplit(".", 1)[-1]: ids_of(model) for name in layers.values()}
