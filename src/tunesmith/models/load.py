"""Step 3: from a folder to a model that can answer or be tuned.

Only safetensors are read, remote code stays off, and nothing is downloaded here: :mod:`tunesmith.catalog` did that.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tunesmith.data.render import eos_token_ids
from tunesmith.data.tagging import tag_names
from tunesmith.errors import RecipeError, ResourceError, UsageError
from tunesmith.models import attention
from tunesmith.models.heads import Pooling, SentenceClassifier, head_labels, pooling_of
from tunesmith.models.model import Form, Model

DEFAULT_MAX_LENGTH = 2048
Load = Callable[..., Any]
"""Makes a network of one of transformers' classes from the model's folder."""
PROBLEM_TYPES: dict[Form, str] = {
    "multi-label": "multi_label_classification",
    "score": "regression",
    "ordinal": "multi_label_classification",  # each output a question of its own
}
"""What transformers calls the forms that it would not guess; by it a plain model computes the right loss."""


def load_config(folder: Path) -> Any:
    """The model's configuration.

    Raises:
        ResourceError: The folder holds no readable ``config.json``, or asks for code of its own.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ResourceError(
            f"cannot read the model's configuration: {error}",
            where=str(folder),
            fix="a model folder needs config.json, tokenizer files and *.safetensors; models with code of their own "
            "are refused",
        ) from error


def natural_form(config: Any) -> Form:
    """What a model is made for: to generate (causal models), to write what it read (encoder-decoders), or for a head.

    Raises:
        UsageError: It is an encoder-decoder that does not turn text into text.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    architecture = (getattr(config, "architectures", None) or [""])[0]
    if config.is_encoder_decoder:
        if config.model_type not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            raise UsageError(
                f"{config.model_type} is an encoder-decoder model that does not turn text into text",
                fix="choose an encoder-decoder of text (T5, BART, Pegasus), an encoder (BERT) or a decoder (Llama)",
            )
        return "seq2seq"
    if architecture.endswith("ForCausalLM"):
        return "generate"
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "generate" if causal and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "classify"


def load_tokenizer(folder: Path) -> Any:
    """The model's fast tokenizer.

    Raises:
        ResourceError: There is none, or only a slow one (no character offsets).
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ResourceError(f"cannot load the tokenizer: {error}", where=str(folder)) from error
    if not tokenizer.is_fast:
        raise ResourceError(
            "the model has only a slow tokenizer", where=str(folder), fix="convert it to tokenizer.json"
        )
    return tokenizer


def longest_example(folder: Path, config: Any, wanted: int | None) -> int:
    """Longest example in tokens: as the recipe wants, else what the model takes, at most 2,048.

    Raises:
        RecipeError: More is wanted than the model has positions for. (Rotary and relative positions have no end.)
    """
    learned = getattr(config, "max_position_embeddings", None)
    positions = learned or getattr(config, "n_positions", None)
    endless = hasattr(config, "rope_parameters") or (hasattr(config, "relative_attention_num_buckets") and not learned)
    if wanted and positions and wanted > positions and not endless:
        raise RecipeError(
            f"the model reads at most {positions} tokens, and {wanted} are wanted",
            where="data.max_length",
            fix=f"use {positions} or less, or leave it out",
        )
    if wanted:
        return wanted
    limits = [DEFAULT_MAX_LENGTH]
    sentence = folder / "sentence_bert_config.json"
    if sentence.is_file():
        limits.append(int(json.loads(sentence.read_text(encoding="utf-8")).get("max_seq_length") or DEFAULT_MAX_LENGTH))
    # T5's positions are relative; `n_positions` is the length it was trained with.
    limits.append(int(positions or DEFAULT_MAX_LENGTH))
    return min(limits)


def load_model(
    folder: Path,
    *,
    name: str,
    form: Form | None = None,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    dropout: float | None = None,
    max_length: int | None = None,
    seed: int = 0,
    pooling: Pooling | None = None,
    empty: bool = False,
) -> Model:
    """Load a base model.

    Args:
        folder: A folder in transformers' format.
        name: What to call it.
        form: How it shall answer; default: what it is made for.
        labels: Class names, from which the outputs of a new head follow (:func:`output_names`).
        dtype: Of weights and activations. A head on a sentence encoder is kept in fp32 at least.
        device: Where to put it; default: the GPU if there is one.
        dropout: Overrides every dropout probability of the model.
        max_length: Longest example in tokens; default: as :func:`longest_example` has it.
        seed: Decides the new head's weights.
        pooling: Read the head from tokens pooled in this way; default: as the encoder's own files say, else the
            classification class that transformers has for the model.
        empty: Read no weights: somebody else fills the network.

    Raises:
        ResourceError: Files are missing or damaged.
        UsageError: The model cannot answer in this form.
    """
    config = load_config(folder)
    form = form or natural_form(config)
    if dropout is not None:
        set_dropout(config, dropout)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(seed)
    pooling = pooling or pooling_of(folder)
    network, heads = _build(folder, config, form, labels, dtype, pooling, empty)
    network.to(device or torch.device("cpu"))
    network.eval()
    model = Model(
        network=network,
        tokenizer=tokenizer,
        form=form,
        name=name,
        folder=folder,
        max_length=longest_example(folder, config, max_length),
        labels=list(labels) if labels and form != "score" else None,
        eos_ids=eos_token_ids(tokenizer, getattr(network, "generation_config", None)),
        head_names=heads,
    )
    if form not in ("tag", "generate") and pooling is None and natural_form(config) == "generate":
        # A decoder's stock classifier reads the last token that is not padding, which it knows by this id alone.
        cast(Any, network).config.pad_token_id = model.pad_id
    return model


def _build(
    folder: Path,
    config: Any,
    form: Form,
    labels: Sequence[str] | None,
    dtype: torch.dtype,
    pooling: Pooling | None,
    empty: bool,
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network for a form of answers, and the names of its modules that make up a head of its own."""
    import transformers

    attention.register()
    # Relative positions of an encoder-decoder come as an added bias, which the attention of ours knows not.
    own_attention = form != "seq2seq" and not torch.cuda.is_available()
    load = functools.partial(
        _without_weights if empty else _with_weights,
        folder,
        config=config,
        dtype=dtype,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=attention.NAME if own_attention else "sdpa",
    )
    try:
        with quiet():
            if form == "seq2seq":
                return load(transformers.AutoModelForSeq2SeqLM), ()
            if form == "generate":
                return load(transformers.AutoModelForCausalLM), ()
            if form == "mask":
                return (load(transformers.AutoModelForMaskedLM), ()) if empty else _masked_model(load)
            if form == "tag":
                return _tagger(load, config, labels)
            if pooling:
                return _pooled_classifier(load, folder, config, form, labels, dtype, pooling)
            return _stock_classifier(load, config, form, labels)
    except (OSError, ValueError) as error:
        raise ResourceError(f"cannot load the model: {error}", where=str(folder)) from error


def _masked_model(load: Load) -> tuple[nn.Module, tuple[str, ...]]:
    """An encoder with its vocabulary head; one that comes without (sentence encoders do) gets a new one.

    The output matrix of a new head is tied to the embeddings, so only a small layer before it begins at random.
    """
    import transformers

    network, found = load(transformers.AutoModelForMaskedLM, output_loading_info=True)
    owners = {name.rpartition(".")[0] for name in found["missing_keys"]}
    new = sorted(name for name in owners if name and not any(network.get_submodule(name).children()))
    return network, tuple(new)


def _tagger(load: Load, config: Any, labels: Sequence[str] | None) -> tuple[nn.Module, tuple[str, ...]]:
    import transformers

    _name_outputs(config, output_names("tag", labels))
    # A base that was tagged before may have a head of another size: it gets a new one.
    network = load(transformers.AutoModelForTokenClassification, ignore_mismatched_sizes=True)
    return network, _heads(network)


def _pooled_classifier(
    load: Load,
    folder: Path,
    config: Any,
    form: Form,
    labels: Sequence[str] | None,
    dtype: torch.dtype,
    pooling: Pooling,
) -> tuple[nn.Module, tuple[str, ...]]:
    """A head of ours on pooled tokens, in fp32 at least."""
    import transformers

    pooler = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta") else {}
    encoder = load(transformers.AutoModel, **pooler)
    outputs = len(output_names(form, labels))
    classifier = SentenceClassifier(encoder, pooling, config.hidden_size, outputs, _head_dropout(config))
    classifier.classifier.to(torch.promote_types(dtype, torch.float32))
    if labels and head_labels(folder, form) == list(labels):  # an earlier stage's result: its head is kept
        classifier.load_head(folder)
    return classifier, ("classifier",)


def _stock_classifier(
    load: Load, config: Any, form: Form, labels: Sequence[str] | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The classification class that transformers has for the model."""
    import transformers

    known, names = trained_labels(config), output_names(form, labels)
    _name_outputs(config, names)
    if form in PROBLEM_TYPES:
        config.problem_type = PROBLEM_TYPES[form]
    network = load(transformers.AutoModelForSequenceClassification, ignore_mismatched_sizes=True)
    if known not in (None, names):  # the head of another task: it says nothing about these labels
        for head in _heads(network):
            _begin_anew(network.get_submodule(head), float(getattr(config, "initializer_range", 0.02)))
    return network, _heads(network)


def _with_weights(folder: Path, kind: Any, **options: Any) -> Any:
    return kind.from_pretrained(folder, **options)


_OF_FILES = ("local_files_only", "use_safetensors", "ignore_mismatched_sizes")


def _without_weights(folder: Path, kind: Any, **options: Any) -> Any:
    """The network that a configuration describes, with whatever memory held before as its weights."""
    from transformers import GenerationConfig
    from transformers.initialization import no_init_weights

    options = {key: value for key, value in options.items() if key not in _OF_FILES}
    with no_init_weights():
        network = kind.from_config(options.pop("config"), **options)
    if (folder / "generation_config.json").is_file():
        network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return network


def output_names(form: Form, labels: Sequence[str] | None) -> list[str]:
    """A name for each output of a head."""
    if form == "tag":
        return tag_names(labels or [])
    if form == "score":
        return ["score"]
    if form == "ordinal":
        return [f"> {grade}" for grade in (labels or [])[:-1]]
    return list(labels or ["0"])


def _name_outputs(config: Any, names: Sequence[str]) -> None:
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {label: n for n, label in enumerate(names)}


def _heads(network: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in ("classifier", "score") if hasattr(network, name))


def trained_labels(config: Any) -> list[str] | None:
    """Labels of the classification head that a stock model comes with; ``None`` if it comes without."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if not architecture.endswith("ForSequenceClassification"):
        return None
    return [config.id2label[number] for number in sorted(config.id2label)]


def _begin_anew(head: nn.Module, deviation: float) -> None:
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _head_dropout(config: Any) -> float:
    for name in ("classifier_dropout", "hidden_dropout_prob", "dropout"):
        value = getattr(config, name, None)
        if isinstance(value, float | int):
            return float(value)
    return 0.1


def set_dropout(config: Any, probability: float) -> None:
    """Set every dropout probability that a configuration names (``hidden_dropout_prob``, ``attn_pdrop``, ...)."""
    for name, value in list(vars(config).items()):
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, probability)
    if getattr(config, "classifier_dropout", 0) is None:
        config.classifier_dropout = probability


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' bars, load reports and deprecations off the terminal; what matters is said by events."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
