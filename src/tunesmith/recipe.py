"""The recipe: a strict tree that says what to do, in one declaration.

The same fields are the YAML keys, the Python arguments, the ``--set`` overrides and the help texts. A recipe is
checked completely before anything is loaded: an unknown key, a value out of range and an impossible pair of axes are
all :class:`~tunesmith.errors.RecipeError` with the place and the remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from tunesmith.errors import RecipeError

TaskName = Literal["text-classification", "text-generation", "chat"]
ObjectiveName = Literal["supervised", "classify"]
MethodName = Literal["supervised", "instruction", "full", "transfer", "peft", "features"]
Precision = Literal["auto", "bf16", "fp32", "fp64"]
Switch = Annotated[
    Literal["auto", "on", "off"],
    # YAML 1.1 reads a bare `off` as false.
    BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value),
]


class Part(BaseModel):
    """A strict branch of the recipe: unknown keys are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Data(Part):
    """Step 2: what to learn from, and what to hold back."""

    train: list[str] = Field(
        default=[], description="Files, folders, `hub:name` or catalog names to train on. One string is a list of one."
    )
    validation: float | list[str] = Field(
        default=0.1, description="A share of the training data (0 to 0.5), or data of its own. Choices are made on it."
    )
    test: float | list[str] = Field(
        default=0.1, description="A share of the training data (0 to 0.5), or data of its own. Only measured on."
    )
    columns: dict[str, str] = Field(
        default={}, description="Field of the task -> column of the data, where the names differ, e.g. `text: review`."
    )
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text"] = Field(
        default="auto", description="Format of the files; `auto` goes by the file name."
    )
    encoding: str = Field(default="utf-8", description="Text encoding of the files. A BOM is accepted and reported.")
    max_rows: int | None = Field(default=None, ge=1, description="Use at most this many rows of the training data.")
    max_length: int | None = Field(
        default=None, ge=8, description="Longest example in tokens; default: what the model takes, at most 2048."
    )
    truncate: bool = Field(
        default=True, description="Cut examples that are too long (reported). `false`: they are an error."
    )
    drop_bad: bool = Field(
        default=False, description="Leave out rows with errors, writing them to `dropped.jsonl`, instead of stopping."
    )
    seed: int = Field(default=0, description="Salt of the content hash that decides the splits.")

    @field_validator("train", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [str(value)] if isinstance(value, str | Path) else value

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _share_or_list(cls, value: object) -> object:
        if isinstance(value, str | Path):
            try:
                return float(value)  # type: ignore[arg-type]  # a Path that is no number raises, as a str does
            except (ValueError, TypeError):
                return [str(value)]
        return value

    @field_validator("validation", "test")
    @classmethod
    def _share_in_range(cls, value: float | list[str]) -> float | list[str]:
        if isinstance(value, float) and not 0.0 <= value <= 0.5:
            raise ValueError(f"a share must lie between 0 and 0.5, not {value}")
        return value


class Full(Part):
    """All parameters train."""

    kind: Literal["full"] = "full"


class Head(Part):
    """Only the task's head trains; everything below it is frozen."""

    kind: Literal["head"] = "head"


class Layers(Part):
    """Chosen layers and the head train."""

    kind: Literal["layers"] = "layers"
    layers: str = Field(
        default="last 2", pattern=r"^last [1-9]\d*$", description="Which layers: `last N` counts from the output side."
    )

    @property
    def count(self) -> int:
        """How many layers train, counted from the output."""
        return int(self.layers.split()[1])


class LoRA(Part):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); the base stays frozen."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, description="Rank r of the update.")
    alpha: float | None = Field(default=None, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: str | list[str] = Field(
        default="all-linear", description="Module names or a pattern; `all-linear` is every linear layer but the head."
    )

    @property
    def scale(self) -> float:
        """Alpha, 2 x rank unless set (the convention that QLoRA, arXiv 2305.14314, and PEFT's recipes settled on)."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class NoParameters(Part):
    """Nothing in the model trains: a classical head is fitted on frozen features."""

    kind: Literal["none"] = "none"


Parameters = Annotated[Full | Head | Layers | LoRA | NoParameters, Field(discriminator="kind")]


class Training(Part):
    """Step 4: how the loop runs. Fields left at `null` take the default of the method, shown by `recipe show`."""

    epochs: float = Field(default=3.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(default=None, ge=1, description="Stop after this many updates, whatever `epochs`.")
    learning_rate: float | None = Field(default=None, gt=0, description="Peak learning rate.")
    batch_size: int | None = Field(default=None, ge=1, description="Examples in one update (the global batch).")
    batch_tokens: int | None = Field(
        default=None, ge=16, description="Tokens in one update, instead of `batch_size` (the global batch)."
    )
    micro_tokens: int | None = Field(
        default=None, ge=16, description="Tokens, padding included, in one forward pass. Never changes the result."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Learning rate after the warm-up."
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the updates over which the rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled decay of matrices (not biases and norms).")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moving averages.")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this global norm.")
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Dropout inside the model. `null` keeps the model's own; 0 is faster (on a CPU much faster).",
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Mass moved from the label to all classes.")
    seed: int = Field(default=0, description="Seed of the head, the data order and dropout.")
    eval_steps: int | None = Field(default=None, ge=1, description="Validate every N updates; default: each epoch.")
    patience: int | None = Field(
        default=None, ge=1, description="Stop after this many validations without a better result."
    )
    checkpoint_steps: int | None = Field(
        default=None, ge=1, description="Save every N updates; default: at each validation."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints kept, besides the best one.")
    compile: Switch = Field(
        default="auto", description="Compile the layers. `auto`: where the run is long enough to pay for it."
    )

    @model_validator(mode="after")
    def _one_batch_size(self) -> Training:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError("give `batch_size` or `batch_tokens`, not both")
        return self


class Stage(Part):
    """One round of tuning. What a stage leaves out it takes from the top of the recipe."""

    name: str = Field(default="tune", pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$", description="Name of the stage's folder.")
    objective: ObjectiveName | None = Field(
        default=None, description="What is minimised; default: what the task and the model call for."
    )
    parameters: Parameters | None = Field(default=None, description="What may change.")
    training: Training | None = Field(default=None, description="How the loop runs.")


class Baseline(Part):
    """One thing to compare the tuned model with, on the same test rows."""

    kind: Literal["majority", "base", "few-shot", "features", "larger"]
    shots: int | None = Field(default=None, ge=1, le=100, description="Examples in the prompt (`few-shot`).")
    model: str | None = Field(default=None, description="The other model (`larger`).")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        """Accept ``base``, ``{few-shot: 5}`` and ``{larger: name}``."""
        if isinstance(value, str):
            kind, _, argument = value.partition(":")
            value = {kind.strip(): argument.strip() or None}
        if isinstance(value, dict) and "kind" not in value:
            if len(value) != 1:
                raise ValueError("a baseline is one name, or one `name: value`")
            kind, argument = next(iter(value.items()))
            key = {"few-shot": "shots", "larger": "model"}.get(kind)
            if argument is not None and key is None:
                raise ValueError(f"the baseline {kind!r} takes no value")
            value = {"kind": kind} | ({key: argument} if key and argument is not None else {})
        return value

    @model_validator(mode="after")
    def _needs(self) -> Baseline:
        if self.kind == "larger" and not self.model:
            raise ValueError("the baseline `larger` needs a model: `larger: smollm2-135m-instruct`")
        return self


class Generation(Part):
    """How answers are written when a generating task is evaluated."""

    max_new_tokens: int = Field(default=128, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token (greedy).")


class Evaluate(Part):
    """Step 5: what is measured, and against what."""

    baselines: list[Baseline] = Field(
        default=[
            Baseline(kind="majority"),
            Baseline(kind="base"),
            Baseline(kind="few-shot"),
            Baseline(kind="features"),
        ],
        description="What to compare with. `larger: MODEL` adds a bigger base model, 0-shot and few-shot.",
    )
    limit: int | None = Field(
        default=None, ge=10, description="Measure on at most this many test rows, the same for all."
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples behind each interval.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(default=0, description="Seed of the bootstrap and of the random shots.")
    generation: Generation = Generation()


class Recipe(Part):
    """A whole run: task, data, model, stages, evaluation."""

    task: TaskName = Field(description="Step 1: what the model shall do.")
    model: str = Field(description="Step 3: hub id, folder, `.gguf` file, or a name of `tunesmith catalog`.")
    method: MethodName = Field(default="supervised", description="A named way to fine-tune: see `tunesmith methods`.")
    data: Data = Data()
    objective: ObjectiveName | None = Field(default=None, description="For all stages that name none.")
    parameters: Parameters | None = Field(default=None, description="For all stages that name none.")
    training: Training = Field(default=Training(), description="For all stages that name none.")
    stages: list[Stage] = Field(default=[], description="Several rounds; default: one, as the method has it.")
    evaluate: Evaluate = Evaluate()
    precision: Precision = Field(
        default="auto", description="`auto`: bf16 where the hardware multiplies it fast, else fp32."
    )
    system_prompt: str | None = Field(default=None, description="System message put before every prompt.")

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        for problem in impossible_pairs(self):
            raise ValueError(problem)
        return self

    def resolved(self) -> Recipe:
        """The recipe with its method's choices filled in and every stage spelled out."""
        from tunesmith.methods import fill_in

        return fill_in(self)

    def to_yaml(self) -> str:
        """The recipe as YAML that :func:`load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def impossible_pairs(recipe: Recipe) -> list[str]:
    """Say which choices of a recipe exclude each other, and what to do instead."""
    problems = []
    stages = recipe.stages or [Stage()]
    for number, stage in enumerate(stages, 1):
        objective = stage.objective or recipe.objective
        parameters = stage.parameters or recipe.parameters
        kind = parameters.kind if parameters else None
        if objective == "classify" and recipe.task != "text-classification":
            problems.append(
                f"the objective `classify` needs labels, which the task `{recipe.task}` has not: "
                "use `objective: supervised`, or `task: text-classification`"
            )
        if kind == "head" and objective == "supervised":
            problems.append(
                "`parameters: {kind: head}` trains a classification head, which the objective `supervised` has not: "
                "use `objective: classify`, or `parameters: {kind: layers, layers: last 2}`"
            )
        if kind == "head" and recipe.task != "text-classification":
            problems.append(
                f"`parameters: {{kind: head}}` needs a task with a head; `{recipe.task}` has none: "
                "use `kind: lora`, or `kind: layers`"
            )
        fit_before = kind == "none" and number < len(stages)  # the fit's head is where the next stage starts
        if kind is not None and not fit_before and (kind == "none") != (recipe.method == "features"):
            problems.append("`parameters: {kind: none}` and `method: features` belong together: give both or neither")
        if kind == "none" and recipe.task != "text-classification":
            problems.append(
                f"`parameters: {{kind: none}}` fits a classifier; `{recipe.task}` has no labels: use `kind: lora`"
            )
    if recipe.method == "features" and recipe.task != "text-classification":
        problems.append(f"`method: features` fits a classifier; `{recipe.task}` has no labels: use `method: peft`")
    if recipe.method == "features" and len(recipe.stages) > 1:  # one is what the resolved recipe of a run has
        problems.append("`method: features` is a single fit and has no stages: use it without `stages`")
    return problems


# --- reading -----------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file.

    Args:
        path: A YAML (or JSON) file.
        overrides: ``key.sub=value`` items, as after ``--set``; values are read as YAML.

    Raises:
        RecipeError: The file cannot be read, or the recipe is malformed; the place is ``file:line``.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError("there is no recipe file", where=str(path), fix="`tunesmith init` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe: {error}", where=str(path)) from error
    try:
        tree = yaml.safe_load(text)
        lines = _line_numbers(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            f"not valid YAML: {getattr(error, 'problem', error)}",
            where=where,
            fix="look there and just above: a bracket or quote left open, a missing space after `:`, or an indent",
        ) from error
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of keys to values", where=f"{path}:1", fix="start with `task: ...`")
    return parse(tree, overrides=overrides, source=str(path), lines=lines)


def parse(
    tree: dict[str, Any],
    *,
    overrides: list[str] | None = None,
    source: str | None = None,
    lines: dict[tuple[str, ...], int] | None = None,
) -> Recipe:
    """Make a recipe from plain values.

    Args:
        tree: Nested dictionaries with the recipe's keys.
        overrides: ``key.sub=value`` items, applied last.
        source: Name of the file, for errors.
        lines: Path of each key -> line in that file, for errors.

    Raises:
        RecipeError: With the place, and the nearest valid key where one was mistyped.
    """
    for item in overrides or []:
        tree = override(tree, item)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        given = [tuple(item.partition("=")[0].strip().split(".")) for item in overrides or []]
        raise _as_recipe_error(error, source, lines or {}, given) from None


def override(tree: dict[str, Any], item: str) -> dict[str, Any]:
    """Return a copy of ``tree`` with one ``a.b=value`` applied; the value is read as YAML.

    Raises:
        RecipeError: The item has no ``=``, or its path leads through a value that is no mapping.
    """
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{item!r} is not of the form key=value", where="--set", fix="--set training.epochs=1")
    path = key.strip().split(".")
    try:
        value = _read_scalar(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of {key} is not valid YAML: {text!r}", where="--set") from error
    result = dict(tree)
    branch = result
    for name in path[:-1]:
        below = branch.get(name)
        if below is not None and not isinstance(below, dict):
            raise RecipeError(f"{name!r} is a value, not a group of keys", where=f"--set {item}")
        branch[name] = dict(below or {})
        branch = branch[name]
    branch[path[-1]] = value
    return result


def _read_scalar(text: str) -> Any:
    """Read a value as YAML, but take ``2e-4`` for the number it is (YAML 1.1 wants ``2.0e-4``)."""
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text.strip()):
        return float(text)
    return yaml.safe_load(text)


def _line_numbers(node: yaml.Node | None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            lines[here] = key.start_mark.line + 1
            lines |= _line_numbers(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, str(index))
            lines[here] = value.start_mark.line + 1
            lines |= _line_numbers(value, here)
    return lines


def _as_recipe_error(
    error: ValidationError,
    source: str | None,
    lines: dict[tuple[str, ...], int],
    given: Sequence[tuple[str, ...]] = (),
) -> RecipeError:
    """The first of pydantic's complaints; ``given`` has the paths of the overrides, which no line of the file holds."""
    problems = error.errors(include_url=False)
    # A mistyped key often makes its neighbour "missing" too: report the unknown key first.
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    path = tuple(str(step) for step in problem["loc"])
    if problem["type"] == "union_tag_invalid":
        path = (*path, "kind")
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    key = ".".join(path)
    where = f"{source}:{line}" if source and line else (source or key or None)
    if any(path[: len(override)] == override for override in given):
        where = f"--set {key}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        fix = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(sorted(known)) or 'none'}"
        return RecipeError(f"unknown key `{key}`{more}", where=where, fix=fix)
    if problem["type"] == "missing":
        return RecipeError(f"`{key}` is missing{more}", where=where, fix=f"add `{path[-1]}: ...`")
    if problem["type"] in ("literal_error", "union_tag_invalid"):
        return _wrong_choice(key, more, where, problem)
    message, _, remedy = problem["msg"].removeprefix("Value error, ").partition(": use ")
    if message.startswith("Input should be") and isinstance(problem["input"], str | int | float):
        message = f"{problem['input']!r}, but it {message.removeprefix('Input ')}"
    text = f"`{key}`: {message}{more}" if key else f"{message}{more}"
    return RecipeError(text, where=where, fix=f"use {remedy}" if remedy else None)


def _wrong_choice(key: str, more: str, where: str | None, problem: Any) -> RecipeError:
    """A value out of a fixed set, with the nearest that is in it."""
    context = problem["ctx"]
    written = str(context.get("tag", problem["input"]))
    known = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
    near = difflib.get_close_matches(written, known, n=1, cutoff=0.5)
    fix = (f"did you mean `{near[0]}`? " if near else "") + f"choices: {', '.join(known)}"
    return RecipeError(f"`{key}` cannot be {written!r}{more}", where=where, fix=fix)


def _keys_at(path: tuple[str, ...]) -> list[str]:
    """Keys that the recipe knows at a path, from its own JSON schema."""
    schema = Recipe.model_json_schema()
    nodes: list[dict[str, Any]] = [schema]
    for step in path:
        below: list[dict[str, Any]] = []
        for node in _expanded(nodes, schema):
            if step.isdigit() and "items" in node:
                below.append(node["items"])
            elif step in node.get("properties", {}):
                below.append(node["properties"][step])
            elif node.get("properties", {}).get("kind", {}).get("const") == step:
                below.append(node)
        nodes = below or nodes
    return sorted({key for node in _expanded(nodes, schema) for key in node.get("properties", {})})


def _expanded(nodes: list[dict[str, Any]], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Follow references and unions of JSON-schema nodes."""
    result: list[dict[str, Any]] = []
    for node in nodes:
        if "$ref" in node:
            result += _expanded([schema["$defs"][node["$ref"].rsplit("/", 1)[1]]], schema)
        elif "anyOf" in node or "oneOf" in node:
            result += _expanded(node.get("anyOf") or node["oneOf"], schema)
        else:
            result.append(node)
    return result
