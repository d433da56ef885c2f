"""Virtual tokens before every text: prompt tuning, P-tuning and prefix tuning, through PEFT."""

from __future__ import annotations

from typing import Any, cast

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model
from tunesmith.parameters.adding import add, task_type
from tunesmith.recipe import Prompt


def apply(model: Model, settings: Prompt) -> None:
    """Freeze the base and put virtual tokens before every text. They take their places from the longest example.

    Raises:
        RecipeError: The model cannot: it reads its answer where the tokens would stand in the way, or has no room.
    """
    _refuse_impossible(model, settings)
    add(model, _config(model, settings))
    positions = getattr(cast(Any, model.transformer()).config, "max_position_embeddings", None)
    if positions:
        model.max_length = min(model.max_length, int(positions) - settings.tokens)


def _config(model: Model, settings: Prompt) -> Any:
    import peft

    shared: dict[str, Any] = {
        "task_type": task_type(model),
        "num_virtual_tokens": settings.tokens,
        "base_model_name_or_path": str(model.folder),
    }
    if settings.kind == "prefix-tuning":
        config: Any = cast(Any, model.transformer()).config
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        # PEFT takes the width of all query heads; models whose queries share keys have fewer.
        shared |= {"num_attention_heads": heads, "token_dim": heads * width}
        if settings.hidden:
            shared |= {"prefix_projection": True, "encoder_hidden_size": settings.hidden}
        return peft.PrefixTuningConfig(**shared)
    if settings.kind == "p-tuning":
        return peft.PromptEncoderConfig(**shared, encoder_hidden_size=cast(int, settings.hidden))
    if settings.init == "random":
        return peft.PromptTuningConfig(**shared)
    return peft.PromptTuningConfig(
        **shared,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=settings.init,
        tokenizer_name_or_path=str(model.folder),
    )


def _refuse_impossible(model: Model, settings: Prompt) -> None:
    config: Any = cast(Any, model.transformer()).config
    causal = hasattr(config, "num_key_value_heads") or model.form == "generate"
    reason = None
    if model.form == "seq2seq":
        reason = "virtual tokens are made for encoders or decoders here, and it is both", "`kind: lora`"
    elif model.form == "tag":
        reason = "each token of the text has a label, and virtual ones have none", "`kind: lora`"
    elif model.form == "mask":
        reason = (
            "the hidden words are looked for at the text's own places, which virtual ones would move",
            "`kind: lora`",
        )
    elif settings.kind == "prefix-tuning" and model.form != "generate":
        reason = "the model takes no keys and values from outside", "`kind: prompt-tuning`, or `kind: lora`"
    elif causal and task_type(model) == "SEQ_CLS":
        reason = (
            "the head of a decoder finds the last token by its id, and virtual tokens have none",
            "`objective: supervised`, or `kind: lora`",
        )
    elif settings.tokens + 8 > int(getattr(config, "max_position_embeddings", None) or 1 << 30):
        reason = f"the model has room for {config.max_position_embeddings} tokens in all", "fewer `tokens`"
    if reason:
        raise RecipeError(
            f"`{settings.kind}` with {settings.tokens} tokens cannot be used with {model.name}: {reason[0]}",
            where="parameters.kind",
            fix=f"use {reason[1]}",
        )
