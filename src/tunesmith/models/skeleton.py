"""The network of a stage without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from tunesmith import parameters
from tunesmith.models.heads import Pooling, SentenceClassifier, pooling_of
from tunesmith.models.load import output_names
from tunesmith.models.model import Form, Model
from tunesmith.recipe import Parameters


def skeleton(
    folder: Path,
    config: Any,
    tokenizer: Any,
    form: Form,
    labels: Sequence[str] | None,
    settings: Parameters,
    *,
    pooling: Pooling | None = None,
) -> Model:
    """The network that a stage trains, with adapters and head but on the meta device: shapes without memory.

    Args:
        folder: Of the base model.
        config: Its configuration.
        tokenizer: Its tokenizer.
        form: How it answers.
        labels: Of the data.
        settings: What trains.
        pooling: As for :func:`tunesmith.models.load.load_model`.
    """
    pooling = pooling or pooling_of(folder)
    network: torch.nn.Module
    heads: tuple[str, ...] = ()
    with torch.device("meta"):
        if form == "seq2seq":
            network = transformers.AutoModelForSeq2SeqLM.from_config(config)
        elif form == "generate":
            network = transformers.AutoModelForCausalLM.from_config(config)
        elif form == "tag":
            config.num_labels = len(output_names(form, labels))
            network = transformers.AutoModelForTokenClassification.from_config(config)
            heads = tuple(name for name in ("classifier", "score") if hasattr(network, name))
        elif form == "mask":
            network = transformers.AutoModelForMaskedLM.from_config(config)
        elif pooling:
            pooler = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta") else {}
            encoder = transformers.AutoModel.from_config(config, **pooler)
            network = SentenceClassifier(encoder, pooling, config.hidden_size, len(output_names(form, labels)), 0.0)
            heads = ("classifier",)
        else:
            config.num_labels = len(output_names(form, labels))
            network = transformers.AutoModelForSequenceClassification.from_config(config)
            heads = tuple(name for name in ("classifier", "score") if hasattr(network, name))
        model = Model(network, tokenizer, form, folder.name, folder, 0, list(labels) if labels else None, [], heads)
        if settings.kind in ("none", "in-context"):
            network.requires_grad_(False)
        else:
            parameters.apply(model, settings)
    model.quantization = getattr(settings, "quantization", "none")
    return model
