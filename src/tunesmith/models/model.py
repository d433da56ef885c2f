"""A model as the rest of the house sees it: a network, its tokenizer, and what it is for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from tunesmith.data.batches import Batch
from tunesmith.data.shots import Shown
from tunesmith.models import packing, virtual_tokens, visibility
from tunesmith.models.frozen import WIDTH_MULTIPLE, FrozenPrefix
from tunesmith.models.heads import SentenceClassifier, pool
from tunesmith.models.image_classifier import ImageClassifier
from tunesmith.models.narrow_tensor import is_narrow, widened
from tunesmith.parameters.settings import Quantization, Quantizer

Form = Literal["classify", "multi-label", "score", "ordinal", "tag", "generate", "seq2seq", "mask"]
"""How a model answers: with a head that tells classes apart, decides for each label by itself, gives a number, or says
for each grade whether the truth lies above it; with a head on every token; by writing on (causal models), by writing
what a decoder of its own makes of what an encoder has read (encoder-decoder models: T5, BART), or by filling in masked
tokens."""

TEXT_HEADS: tuple[Form, ...] = ("classify", "multi-label", "score", "ordinal")
"""Forms with a head on the text as a whole."""

IGNORED = -100
"""Label that transformers' models leave out of account."""


@dataclass
class Model:
    """A loaded network with everything that belongs to it.

    Attributes:
        network: The transformers model, a PEFT model around it, a :class:`SentenceClassifier` or, for pictures, an
            :class:`ImageClassifier`.
        tokenizer: Its fast tokenizer; ``None`` for pictures.
        form: How it answers.
        name: What the recipe called the base model.
        folder: Where the base model was loaded from.
        max_length: Longest example in tokens.
        labels: Class names, in the order of the head's outputs or of the answers to choose from; of spans, from which
            the outputs follow (:func:`tunesmith.data.tagging.tag_names`).
        eos_ids: Token ids that end an answer.
        thresholds: From which probability on each label is given; ``None``: of several labels from 0.5, of classes
            the likeliest.
        scale: While a head for scores is trained: mean and standard deviation of the scores; its outputs are
            standardised. Afterwards they are scores (:func:`tunesmith.models.score_heads.fold_scale`).
        head_names: Dotted names of the modules that are the task's head; new, and trained in any case.
        packable_length: Batches whose longest row has at most so many tokens are computed without padding
            (:mod:`tunesmith.models.packing`).
        shown: Examples to put into every prompt (in-context learning).
        rates: Name of a parameter -> factor of its learning rate, where it is not 1.
        quantization: How the weights of the frozen base are kept.
        quantizer: By which library.
        wide: While it is built: the base's weights before they were quantized, by their layers' names, where the
            adapter begins with what they lost.
        first_weights: What an adapter began with, where the base had to give it away
            (:mod:`tunesmith.models.plain_lora`).
        prefix: The frozen layers below all that trains, while it is trained.
        new_tokens: What was added to the tokenizer (:mod:`tunesmith.models.new_tokens`).
        undecayed: Names of parameters without weight decay.
    """

    network: nn.Module
    tokenizer: Any
    form: Form
    name: str
    folder: Path
    max_length: int
    labels: list[str] | None = None
    eos_ids: list[int] = field(default_factory=list)
    head_names: tuple[str, ...] = ()
    thresholds: list[float] | None = None
    scale: tuple[float, float] = (0.0, 1.0)
    packable_length: int = 0
    shown: Shown | None = None
    rates: dict[str, float] = field(default_factory=dict)
    quantization: Quantization = "none"
    quantizer: Quantizer = "torchao"
    wide: dict[str, torch.Tensor] = field(default_factory=dict)
    first_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    prefix: FrozenPrefix | None = None
    new_tokens: tuple[str, ...] = ()
    undecayed: set[str] = field(default_factory=set)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point weight: that of the base."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    @property
    def pad_id(self) -> int:
        """A token to fill rows with. Often EOS too, so padding is known by length, never by this id."""
        pad = None if self.reads_pictures else self.tokenizer.pad_token_id
        return int(pad if pad is not None else (self.eos_ids[0] if self.eos_ids else 0))

    @property
    def end_id(self) -> int | None:
        """The EOS that answers are taught with: the tokenizer's, if it ends them."""
        own = None if self.reads_pictures else self.tokenizer.eos_token_id
        return int(own) if own in self.eos_ids else next(iter(self.eos_ids), None)

    @property
    def reads_pictures(self) -> bool:
        """Whether pictures go in, not text."""
        return isinstance(self.network, ImageClassifier)

    @property
    def total_parameters(self) -> int:
        """All parameters, shared ones counted once; of bitsandbytes' 4 bits two stand in one number."""
        return sum(
            math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else p.numel()
            for p in self.network.parameters()
        )

    @property
    def trainable_parameters(self) -> int:
        """Parameters that training may change."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors that training may change, in a fixed order."""
        return ((name, p) for name, p in self.network.named_parameters() if p.requires_grad)

    @property
    def wrapped(self) -> nn.Module:
        """The transformers model without the head of ours: in PEFT's wrapper if it has adapters."""
        network = self.network
        return network.encoder if isinstance(network, SentenceClassifier | ImageClassifier) else network

    def wrap(self, network: nn.Module) -> None:
        """Put another network in the place of :attr:`wrapped`: one with adapters around it, or one without them."""
        if isinstance(self.network, SentenceClassifier):
            self.network.encoder = network
        else:
            self.network = network

    @property
    def has_adapters(self) -> bool:
        """Whether PEFT has added parameters: by its wrapper, since the network within has a ``peft_config`` too."""
        return hasattr(self.wrapped, "get_base_model")

    @property
    def virtual_tokens(self) -> int:
        """How many learned tokens stand before every text."""
        return virtual_tokens.count(self.wrapped)

    def transformer(self) -> nn.Module:
        """The transformers model itself, with adapters injected but without PEFT's wrapper or the sentence head."""
        network: Any = self.wrapped
        return cast(nn.Module, network.get_base_model() if self.has_adapters else network)

    def blocks(self) -> list[nn.Module]:
        """The transformer's layers, from input to output; those of an encoder come before its decoder's."""
        network: Any = self.transformer()
        if self.form == "seq2seq":
            return layers_of(network.get_encoder()) + layers_of(network.get_decoder())
        return layers_of(network)

    def packs(self, longest: int) -> bool:
        """Whether a batch whose longest row has so many tokens is computed without padding."""
        return longest <= self.packable_length

    def train(self) -> None:
        """Go into training mode, except for the frozen layers at the input."""
        self.network.train()
        if self.prefix is not None:
            self.prefix.rest()

    def run(self, network: nn.Module, batch: Batch, **inputs: Any) -> Any:
        """Call the network, or a part of it, on a batch: frozen layers are passed over if it brings their states."""
        with self._beginning_with(batch.known_states):
            return network(**inputs)

    def packed(self, batch: Batch, body: nn.Module | None = None) -> torch.Tensor:
        """Last hidden states of a batch, (B, S, d), computed without most of its padding; likewise.

        Args:
            batch: The texts.
            body: Another network of the same kind, in the place of the model's own.
        """
        states_BSd, width = batch.known_states, 1 if self.prefix is None else WIDTH_MULTIPLE
        if self.prefix is not None and self.prefix.whole and states_BSd is not None:
            return states_BSd
        with self._beginning_with(states_BSd):
            body = body or decoder_of(self.transformer())
            return packing.hidden_states(body, batch.input_ids, batch.attention_mask, width)

    def _beginning_with(self, states_BSd: torch.Tensor | None) -> AbstractContextManager[None]:
        return nullcontext() if self.prefix is None or states_BSd is None else self.prefix.passed_over(states_BSd)

    def read(self, batch: Batch) -> torch.Tensor:
        """Run the model on a batch in the way in which it answers. What comes out begins with a dimension of B or N."""
        if self.form == "generate":
            if self.scores_are_plain():
                return self.hidden_states(batch)
            return cast(torch.Tensor, self.run(self.network, batch, **self.causal_inputs(batch)).logits)
        if self.form == "tag":
            return self.token_logits(batch, *batch.attention_mask.nonzero(as_tuple=True))
        if self.form == "mask":
            return self.encoded(batch)
        return self.class_logits(batch)

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        if batch.pixels is not None:
            return {"pixels_BCHW": batch.pixels}
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    def class_logits(self, batch: Batch) -> torch.Tensor:
        """Scores of the classes, (B, C) in at least fp32."""
        network: Any = self.network
        if self.packs(batch.input_ids.shape[1]) and isinstance(network, SentenceClassifier):
            logits: torch.Tensor = network.head(self.packed(batch), batch.attention_mask)
        else:
            output = self.run(network, batch, **self._inputs(batch))
            logits = output if isinstance(output, torch.Tensor) else output.logits
        return logits if logits.dtype == torch.float64 else logits.float()

    def sentence_vectors(self, batch: Batch) -> torch.Tensor:
        """One vector a text, (B, d): the sentence encoder's own pooling, else the mean over the tokens."""
        inputs = self._inputs(batch)
        if isinstance(self.network, SentenceClassifier):
            if self.packs(batch.input_ids.shape[1]):
                return pool(self.packed(batch), batch.attention_mask, self.network.pooling)
            return self.network.embed(**inputs)
        network: Any = self.transformer()
        reader = network.get_encoder() if self.form == "seq2seq" else decoder_of(network)
        return pool(reader(**inputs).last_hidden_state, batch.attention_mask, "mean")

    def causal_inputs(self, batch: Batch) -> dict[str, Any]:
        """What a causal model is given for a batch.

        The mask is left out: rows are padded on the right, so a causal model's real tokens never see the padding, and
        without a mask the attention is cheaper. Only rows of several texts (``batch.extra["segments"]``, see
        :mod:`tunesmith.models.visibility`) need one.
        """
        rows, before = len(batch.input_ids), self.virtual_tokens
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": before > 0}
        if before:
            layers = virtual_tokens.keys_and_values(self.wrapped)
            inputs["past_key_values"] = virtual_tokens.cache_of(layers, rows)
        segments = batch.extra.get("segments")
        if segments is None:
            return inputs
        segments = nn.functional.pad(segments, (0, batch.input_ids.shape[1] - segments.shape[1]), value=-1)
        allowed = visibility.allowed(segments)
        places = visibility.positions(allowed) + before
        keys = nn.functional.pad(places, (before, 0))
        keys[:, :before] = torch.arange(before, device=keys.device)
        allowed = nn.functional.pad(allowed, (before, 0), value=True)
        mask = visibility.masks(cast(Any, self.transformer()).config, allowed, places, keys)
        return inputs | {"attention_mask": mask, "position_ids": places}

    def token_logits(self, batch: Batch, rows_N: torch.Tensor, columns_N: torch.Tensor) -> torch.Tensor:
        """Scores of the tags at N places of (B, S), (N, C) in at least fp32."""
        network: Any = self.transformer()
        parts = {name for name, _ in network.named_children()} - {network.base_model_prefix}
        plain = parts <= {"dropout", *self.head_names}  # of other heads (ModernBERT's) we do not know what they compute
        if plain and self.packs(batch.input_ids.shape[1]):
            hidden_BSd = self.packed(batch)
            logits = network.get_submodule(*self.head_names)(network.dropout(hidden_BSd[rows_N, columns_N]))
        else:
            output = self.run(self.network, batch, **self._inputs(batch))
            logits = output.logits[rows_N, columns_N]
        return cast(torch.Tensor, logits if logits.dtype == torch.float64 else logits.float())

    def target_logits(self, batch: Batch, targets_BT: torch.Tensor) -> torch.Tensor:
        """Scores of the vocabulary for each token of the targets of an encoder-decoder model, (B, T, V).

        The decoder reads the targets moved by one place behind its start token, in the way of the model's family.

        Args:
            batch: What the encoder reads.
            targets_BT: Token ids; negative where there is none.
        """
        output = self.network(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=targets_BT.masked_fill(targets_BT < 0, IGNORED),
            use_cache=False,
        )
        return cast(torch.Tensor, output.logits)

    def hidden_states(self, batch: Batch, decoder: nn.Module | None = None) -> torch.Tensor:
        """Last hidden states of a causal model, (B, S, d); or of another decoder of the same kind."""
        decoder = decoder or decoder_of(self.transformer())
        if self.packs(batch.input_ids.shape[1]) and "segments" not in batch.extra:
            return self.packed(batch, decoder)
        return cast(torch.Tensor, self.run(decoder, batch, **self.causal_inputs(batch)).last_hidden_state)

    def encoded(self, batch: Batch) -> torch.Tensor:
        """Last hidden states of an encoder, (B, S, d)."""
        encoder = decoder_of(self.transformer())
        if self.packs(batch.input_ids.shape[1]):
            return self.packed(batch)
        return cast(torch.Tensor, self.run(encoder, batch, **self._inputs(batch)).last_hidden_state)

    def vocabulary_head(self) -> nn.Module:
        """The module that maps hidden states to scores of the vocabulary."""
        return cast(nn.Module, cast(Any, self.transformer()).get_output_embeddings())

    def vocabulary_weight(self) -> torch.Tensor:
        """Weights of that head, (V, d), in the dtype that the model computes with."""
        weight: Any = self.vocabulary_head().weight
        return widened(weight) if is_narrow(weight) else cast(torch.Tensor, weight)

    def vocabulary_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the vocabulary, (..., V) in at least fp32, from last hidden states (..., d)."""
        scores = self.vocabulary_head()(hidden)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        config = cast(Any, self.transformer()).config
        if getattr(config, "logit_scale", None):  # Cohere
            scores = scores * config.logit_scale
        if getattr(config, "logits_scaling", None):  # Granite
            scores = scores / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:  # Gemma 2 (arXiv 2408.00118)
            scores = torch.tanh(scores / cap) * cap
        return cast(torch.Tensor, scores)

    def scores_are_plain(self) -> bool:
        """Whether the vocabulary scores are just ``hidden @ weight.T``, so that a loss may compute them itself."""
        config = cast(Any, self.transformer()).config
        scaled = any(
            getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        )
        head = self.vocabulary_head()
        return not scaled and type(head) is nn.Linear and head.bias is None


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The largest list of modules of one class in a network, or sequence of them where there is no list."""
    rows = [m for m in network.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    alike = [row for row in rows if len({type(module) for module in row}) == 1]
    lists = [list(row) for row in alike if isinstance(row, nn.ModuleList)] or [list(row) for row in alike]
    return max(lists, key=lambda layers: sum(p.numel() for m in layers for p in m.parameters()), default=[])


def decoder_of(network: nn.Module) -> nn.Module:
    """The part of a causal model below its vocabulary head."""
    return cast(nn.Module, cast(Any, network).base_model)
