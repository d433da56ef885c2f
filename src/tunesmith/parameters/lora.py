"""Low-rank adapters through PEFT (Hu et al. 2021, arXiv 2106.09685), in PEFT's own format."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import quiet
from tunesmith.models.model import Model
from tunesmith.parameters.fused_lora import fuse
from tunesmith.parameters.head import train_head
from tunesmith.recipe import LoRA


def apply(model: Model, settings: LoRA) -> None:
    """Freeze the base and add adapters; a new head trains beside them.

    The adapters get the base's dtype: PEFT's own default, fp32 adapters on a bf16 base, would run their products in
    fp32. The optimizer keeps fp32 masters instead.

    Raises:
        RecipeError: No module matches ``targets``.
    """
    import peft

    wrapped = model.network.encoder if isinstance(model.network, SentenceClassifier) else model.network
    if isinstance(model.network, SentenceClassifier):
        task_type = peft.TaskType.FEATURE_EXTRACTION
    else:
        kinds = {"classify": "SEQ_CLS", "tag": "TOKEN_CLS", "generate": "CAUSAL_LM"}
        task_type = peft.TaskType[kinds[model.form]]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.scale),
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        # For tokens PEFT's `all-linear` would take in the head, which it then cannot train as a whole.
        exclude_modules=list(model.head_names) if model.form == "tag" else None,
        task_type=task_type,
        base_model_name_or_path=str(model.folder),
    )
    model.network.requires_grad_(False)
    try:
        with quiet():
            adapted: Any = peft.get_peft_model(cast(Any, wrapped), config, autocast_adapter_dtype=False)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in wrapped.named_modules() if isinstance(m, nn.Linear)})
        raise RecipeError(
            f"no module of {model.name} matches the LoRA targets {settings.targets!r}",
            where="parameters.targets",
            fix=f"linear layers here: {', '.join(linear)}; or `all-linear`",
        ) from error
    fuse(adapted)
    if isinstance(model.network, SentenceClassifier):
        model.network.encoder = adapted
        train_head(model)
    else:
        model.network = adapted


def learning_rate(form: str) -> float:
    """2e-4 for decoders (QLoRA, arXiv 2305.14314, table 9); 5e-4 for encoders (LoRA's own GLUE runs, table 9)."""
    return 2e-4 if form == "generate" else 5e-4
