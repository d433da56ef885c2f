"""What a recipe may say about which parameters train: one strict class a kind, and the short forms.

Nothing here imports torch: recipes are checked before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunesmith.strict import Part, Refusal

Quantization = Literal["none", "int8", "int4"]
Quantizer = Literal["torchao", "bitsandbytes"]
AdapterKind = Literal[
    "ia3", "vera", "randlora", "loha", "lokr", "oft", "hra", "miss", "vblora", "fourierft", "road", "delora"
]
PromptKind = Literal["prompt-tuning", "prefix-tuning", "p-tuning"]

SELECTION = (
    "`last 4`, `first 2`, `8` or `8-11` (layers, counted from 0 at the input), `head`, `embeddings`, `new tokens`, "
    "`norms`, `biases`, or a pattern on names such as `*.attention.*`"
)
NEEDS_WIDE_BASE: dict[str, tuple[Quantization, ...]] = {
    "hra": ("int8", "int4"),
    "delora": ("int8", "int4"),
    "vera": ("int8",),
    "oft": ("int8",),
    "miss": ("int8",),
}
"""Kinds that compute with the base's weights themselves, or that PEFT 0.21 refuses on torchao's int8 weights."""
_RANGE = re.compile(r"(last|first) ([1-9]\d*)|(\d+)(?:-(\d+))?")
_GROUPS = ("head", "embeddings", "new tokens", "norms", "biases")
NEW_TOKENS = (
    "Tokens to add to the tokenizer, as they stand in the texts. Of the embeddings only their rows train, unless all "
    "do; they begin as the mean of the pieces that the token was cut into."
)
NewTokens = list[Annotated[str, Field(min_length=1)]]


class Full(Part):
    """All parameters train."""

    kind: Literal["full"] = "full"
    new_tokens: NewTokens = Field(default=[], description=NEW_TOKENS)


class Head(Part):
    """Only the task's head trains; everything below it is frozen."""

    kind: Literal["head"] = "head"


class Layers(Part):
    """Chosen parts of the model and the task's head train."""

    kind: Literal["layers"] = "layers"
    layers: str | int | list[str | int] = Field(
        default="last 2", description=f"What trains, one or a list: {SELECTION}."
    )
    new_tokens: NewTokens = Field(default=[], description=NEW_TOKENS)

    @field_validator("layers")
    @classmethod
    def _known(cls, value: str | int | list[str | int]) -> str | int | list[str | int]:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise Refusal("nothing is chosen", fix=f"use one or more of {SELECTION}")
        for item in map(str, items):
            if not (_RANGE.fullmatch(item) or item in _GROUPS or re.search(r"[*?.\[]", item)):
                raise Refusal(f"{item!r} chooses nothing", fix=f"use {SELECTION}")
        return value

    @model_validator(mode="after")
    def _has_new_tokens(self) -> Layers:
        if "new tokens" in self.items and not self.new_tokens:
            raise Refusal("`new tokens` are chosen and there are none", fix="name them in `new_tokens`")
        return self

    @property
    def items(self) -> list[str]:
        """The selection as a list."""
        return [str(item) for item in (self.layers if isinstance(self.layers, list) else [self.layers])]


def block_range(item: str, count: int) -> range | None:
    """Numbers of the layers that an item such as ``last 4`` or ``8-11`` means; ``None`` if it means none.

    Args:
        item: Of a selection.
        count: How many layers the model has. The range may go beyond them.
    """
    match = _RANGE.fullmatch(item)
    if match is None:
        return None
    side, number, first, last = match.groups()
    if side:
        return range(count - int(number), count) if side == "last" else range(int(number))
    return range(int(first), int(last or first) + 1)


class Added(Part):
    """What all kinds share that add parameters to a frozen base."""

    quantization: Quantization = Field(
        default="none",
        description="Keep the frozen base in `int8` (a scale a row) or `int4` (QLoRA, arXiv 2305.14314). "
        "Needs the extra `quantization`.",
    )
    quantizer: Quantizer = Field(
        default="torchao",
        description="Library that does it; `bitsandbytes` is for LoRA, and needs the extra of its name.",
    )

    @model_validator(mode="after")
    def _library_suits(self) -> Added:
        if self.quantizer == "bitsandbytes" and self.quantization == "none":
            raise Refusal("`quantizer: bitsandbytes` quantizes nothing", fix="add `quantization: int4` or `int8`")
        if self.quantizer == "bitsandbytes" and getattr(self, "kind", "lora") != "lora":
            raise Refusal(
                "only LoRA is known to work beside the layers of bitsandbytes",
                fix="use `kind: lora`, or `quantizer: torchao`",
            )
        return self


class LoRA(Added):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) and their variants; the base stays frozen."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, description="Rank r of the update.")
    alpha: float | None = Field(
        default=None, gt=0, description="Scale: the update is multiplied by alpha / rank; default 2 x rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: str | list[str] = Field(
        default="all-linear",
        description="Module names, or a regular expression on full names; `all-linear` is every linear layer but the "
        "head.",
    )
    exclude: str | list[str] = Field(default=[], description="Module names, or a regular expression, to leave out.")
    rank_pattern: dict[str, int] = Field(default={}, description="Name or regular expression -> a rank of its own.")
    alpha_pattern: dict[str, float] = Field(default={}, description="The same for alpha.")
    rslora: bool = Field(
        default=False, description="Scale by alpha / sqrt(rank), for high ranks (rsLoRA, arXiv 2312.03732)."
    )
    dora: bool = Field(
        default=False, description="Learn the columns' lengths apart (DoRA, arXiv 2402.09353): closer to full, slower."
    )
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"] = Field(
        default="default",
        description="First weights: `pissa` (arXiv 2404.02948) and `olora` (arXiv 2406.01775) start from the base's "
        "main directions. They are saved as plain LoRA of twice the rank, which any base loads. `eva` (arXiv "
        "2410.07170) starts from the main directions of what the training data bring to each layer, `loftq` (arXiv "
        "2310.08659) from what a quantized base lost.",
    )
    lr_ratio: float = Field(
        default=1.0, gt=0, description="Learning rate of B over that of A: 16 is LoRA+'s (arXiv 2402.12354)."
    )
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="Which biases train as well.")
    modules_to_save: list[str] = Field(default=[], description="Modules that train in full and are saved as well.")
    new_tokens: NewTokens = Field(default=[], description=NEW_TOKENS)

    @property
    def scale(self) -> float:
        """Alpha, 2 x rank unless set (the convention that QLoRA, arXiv 2305.14314, and PEFT's recipes settled on)."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    @model_validator(mode="after")
    def _base_may_be_narrow(self) -> LoRA:
        if self.quantization != "none" and self.init in ("pissa", "olora"):
            raise Refusal(
                f"`init: {self.init}` moves a part of the base into the adapter, and a quantized base cannot change",
                fix="use `init: default`, or `quantization: none`",
            )
        if self.quantization == "none" and self.init == "loftq":
            raise Refusal(
                "`init: loftq` begins with what quantizing took from the base",
                fix="add `quantization: int4`, or use another `init`",
            )
        if self.quantization == "int4" and self.dora:
            raise Refusal(
                "`dora` needs the lengths of the base's columns, which PEFT cannot read in int4",
                fix="use `quantization: int8`, or plain `lora`",
            )
        return self

    @field_validator("rank_pattern")
    @classmethod
    def _ranks(cls, value: dict[str, int]) -> dict[str, int]:
        return _positive(value, "rank")

    @field_validator("alpha_pattern")
    @classmethod
    def _alphas(cls, value: dict[str, float]) -> dict[str, float]:
        return _positive(value, "alpha")


def _positive(values: dict[str, Any], what: str) -> dict[str, Any]:
    for name, value in values.items():
        if value <= 0:
            raise Refusal(f"the {what} of {name!r} is {value}", fix="use one above 0")
    return values


class Adapter(Added):
    """Other adapters on a frozen base, through PEFT: see the table of kinds in the documentation."""

    kind: AdapterKind
    rank: int | None = Field(default=None, ge=1, description="Rank, or block size; default: the kind's own.")
    targets: str | list[str] = Field(
        default="auto", description="As for LoRA; `auto`: every linear layer, for IA3 keys, values and feed-forward."
    )
    options: dict[str, bool | int | float | str | list[str]] = Field(
        default={}, description="Further settings by the names of PEFT's configuration, e.g. `{vera_dropout: 0.1}`."
    )

    @model_validator(mode="after")
    def _base_may_be_narrow(self) -> Adapter:
        if self.quantization in NEEDS_WIDE_BASE.get(self.kind, ()):
            raise Refusal(
                f"`{self.kind}` computes with the base's own weights, which are not to be had in {self.quantization}",
                fix="use `kind: lora`, or `quantization: none`",
            )
        return self


class Prompt(Added):
    """Virtual tokens before every text, on a frozen base.

    ``prompt-tuning`` learns their embeddings (arXiv 2104.08691), ``p-tuning`` embeddings behind a small network
    (arXiv 2103.10385), ``prefix-tuning`` their keys and values in every layer (arXiv 2101.00190).
    """

    kind: PromptKind
    tokens: int = Field(default=20, ge=1, le=1024, description="Virtual tokens.")
    init: str = Field(
        default="random",
        description="`prompt-tuning`: `random`, or a text whose embeddings the tokens begin with, e.g. `Classify:`.",
    )
    hidden: int | None = Field(
        default=None,
        ge=1,
        description="Width of the small network of `p-tuning`, default that of the model; for `prefix-tuning`: adds "
        "one.",
    )


class InContext(Part):
    """Nothing in the model trains: examples stand in the prompt (Brown et al. 2020, arXiv 2005.14165)."""

    kind: Literal["in-context"] = "in-context"
    examples: int = Field(default=8, ge=1, le=1000, description="Training rows shown before each question.")
    choose: Literal["by-label", "random", "nearest"] = Field(
        default="by-label",
        description="Which: labels in turn, any, or those most like the question (TF-IDF cosine, arXiv 2101.06804).",
    )
    calibrate: bool = Field(
        default=True, description="Divide a label's likelihood by that after an empty question (arXiv 2102.09690)."
    )


class NoParameters(Part):
    """Nothing in the model trains: a classical head is fitted on frozen features."""

    kind: Literal["none"] = "none"
    head: Literal["logistic", "svm", "knn", "boosting", "best"] = Field(
        default="logistic",
        description="What is fitted for one label a text or picture: logistic regression, a linear support vector "
        "machine, nearest neighbours, boosted trees, or the best of all in cross-validation.",
    )
    layer: int | None = Field(
        default=None,
        ge=0,
        description="Take the vectors behind this layer, counted from 0; those above are cut off. `null`: the last.",
    )


SHORT_FORMS: dict[str, dict[str, Any]] = {
    "dora": {"kind": "lora", "dora": True},
    "rslora": {"kind": "lora", "rslora": True},
    "lora+": {"kind": "lora", "lr_ratio": 16.0},
    "pissa": {"kind": "lora", "init": "pissa"},
    "olora": {"kind": "lora", "init": "olora"},
    "eva": {"kind": "lora", "init": "eva"},
    "loftq": {"kind": "lora", "init": "loftq", "quantization": "int4"},
    "qlora": {"kind": "lora", "quantization": "int4"},
    "bitfit": {"kind": "layers", "layers": "biases"},
    "norms": {"kind": "layers", "layers": "norms"},
    "embeddings": {"kind": "layers", "layers": "embeddings"},
    "prompt": {"kind": "prompt-tuning"},
    "prefix": {"kind": "prefix-tuning"},
}
"""Names that users know -> what they are short for. What is written beside the name stands."""


def kinds_with(settings: Collection[str]) -> list[str]:
    """The kinds that know all of these settings, in the order of the table."""
    classes: tuple[type[Part], ...] = (Full, Head, Layers, LoRA, Adapter, Prompt, InContext, NoParameters)
    fitting = [one for one in classes if set(settings) <= one.model_fields.keys()]
    return [kind for one in fitting for kind in get_args(one.model_fields["kind"].annotation)]


def with_kind(value: object, usual: str) -> object:
    """Give settings without a kind the one that they mean, and leave them as they are where several may be meant.

    Args:
        value: What stands under ``parameters``.
        usual: The kind that the method, or the rest of the recipe, calls for: it comes first if it knows the settings.
    """
    if not isinstance(value, dict) or "kind" in value:
        return value
    kinds = kinds_with(value)
    if not kinds or SHORT_FORMS.get(usual, {}).get("kind", usual) in kinds:  # if no kind fits, a key is mistyped
        return {"kind": usual, **value}
    return {"kind": kinds[0], **value} if len(kinds) == 1 else value


def spelled_out(value: object) -> object:
    """Turn ``dora``, or ``{kind: dora, rank: 8}``, into the kind and settings that it is short for.

    Raises:
        Refusal: A quantized base is asked for where the base itself trains.
    """
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if isinstance(kind, str) and kind in SHORT_FORMS:
        value = {**SHORT_FORMS[kind], **{key: given for key, given in value.items() if key != "kind"}}
    if (
        value.get("kind") in ("full", "head", "layers", "none", "in-context")
        and value.get("quantization", "none") != "none"
    ):
        raise Refusal(
            f"a quantized base cannot change, and `kind: {value['kind']}` has no other weights to add",
            fix="use `kind: lora`",
        )
    return value


Parameters = Annotated[
    Full | Head | Layers | LoRA | Adapter | Prompt | InContext | NoParameters,
    Field(discriminator="kind"),
    BeforeValidator(spelled_out),
]
