"""Reading a recipe: from YAML, from plain values, with overrides; errors have a place and the nearest key."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tunesmith import strict_yaml
from tunesmith.errors import RecipeError
from tunesmith.parameters.settings import kinds_with
from tunesmith.recipe import Recipe, Stage
from tunesmith.strict import Refusal

DATA_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_NO_YAML = ("*", "&", "!", "%", "@", "`")
"""A single value that begins so is a text, a pattern on names say: for YAML it would be an alias, a tag or nothing."""
_KINDS_NAMED = 3
_BRANCH = re.compile(r"str|int|float|bool|[a-z-]+\[.*\]")
"""What pydantic calls the members of a union."""


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file.

    Args:
        path: A YAML (or JSON) file.
        overrides: ``key.sub=value`` items, as after ``--set``; values are read as YAML.

    Raises:
        RecipeError: The file cannot be read, or the recipe is malformed; the place is ``file:line``.
    """
    path = Path(path)
    if path.suffix.lower() in DATA_SUFFIXES:
        raise RecipeError("this is data, not a recipe", where=str(path), fix=f"give it by `--train {path}`")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError("there is no recipe file", where=str(path), fix="`tunesmith init` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe: {error}", where=str(path)) from error
    try:
        tree = strict_yaml.load(text)
        lines = line_numbers(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            f"not valid YAML: {getattr(error, 'problem', error)}",
            where=where,
            fix="look there and just above: a bracket or quote left open, a missing space after `:`, an indent, a "
            "key that stands twice, or a text that begins with `*`, `&`, `@`, `%` or `!` and wants quotes",
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
        raise _as_recipe_error(error, tree, source, lines or {}, given) from None


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
        raise RecipeError(
            f"the value of {key.strip()} is not valid YAML: {text!r}",
            where="--set",
            fix="close the bracket or quote, or put a text between quotes of its own: --set 'KEY=\"VALUE\"'",
        ) from error
    result = dict(tree)
    branch = result
    for name in path[:-1]:
        below = branch.get(name)
        if name == "parameters" and isinstance(below, str):
            below = {"kind": below}
        if below is not None and not isinstance(below, dict):
            raise RecipeError(
                f"{name!r} is a value, not a group of keys",
                where=f"--set {item}",
                fix=f"set all of it: --set '{name}={{...}}'",
            )
        branch[name] = dict(below or {})
        branch = branch[name]
    branch[path[-1]] = value
    return result


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A tree with another laid over it."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _read_scalar(text: str) -> Any:
    """Read a value as YAML, but ``2e-4`` as the number it is (YAML 1.1 wants ``2.0e-4``), and ``*.x`` as a text."""
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text.strip()):
        return float(text)
    if text.strip().startswith(_NO_YAML):
        return text.strip()
    return strict_yaml.load(text)


def line_numbers(node: yaml.Node | None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Path of each key of a YAML document -> its line."""
    lines: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            lines[here] = key.start_mark.line + 1
            lines |= line_numbers(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, str(index))
            lines[here] = value.start_mark.line + 1
            lines |= line_numbers(value, here)
    return lines


def _as_recipe_error(
    error: ValidationError,
    tree: dict[str, Any],
    source: str | None,
    lines: dict[tuple[str, ...], int],
    given: Sequence[tuple[str, ...]] = (),
) -> RecipeError:
    """The first of pydantic's complaints.

    Args:
        error: All of them.
        tree: What was held against the recipe's declaration.
        source: Name of the file.
        lines: Of the file's keys.
        given: Paths of the overrides, which no line of the file holds.
    """
    problems = error.errors(include_url=False)
    # A mistyped key often makes its neighbour "missing" too: report the unknown key first.
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    refusal = problem.get("ctx", {}).get("error")
    about = refusal.key if isinstance(refusal, Refusal) else ""
    path = _as_written(about, tree) if about else _written(problem["loc"])
    if problem["type"] == "union_tag_invalid":
        path = (*path, "kind")
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    key = ".".join(path)
    where = f"{source}:{line}" if source and line else (source or key or None)
    above = bool(path) and path not in lines  # a section that only an override has
    if any(path[: len(override)] == override or (above and override[: len(path)] == path) for override in given):
        where = f"--set {key}"
    others = list(dict.fromkeys(".".join(_written(p["loc"])) for p in problems if p is not problem))
    others = [other for other in others if other != key]
    more = f" (and {len(others)} more: {', '.join(f'`{other}`' for other in others)})" if others else ""
    if isinstance(refusal, Refusal):
        place = f"`{key}`: " if key and not about else ""  # a rule names its keys itself
        return RecipeError(f"{place}{refusal.what}{more}", where=where, fix=refusal.fix)
    if problem["type"] == "extra_forbidden":
        return RecipeError(f"unknown key `{key}`{more}", where=where, fix=_known_keys(tuple(map(str, problem["loc"]))))
    if problem["type"] == "union_tag_not_found":
        return _no_kind(key, more, where, problem["input"])
    if problem["type"] == "missing":
        return RecipeError(f"`{key}` is missing{more}", where=where, fix=f"add `{path[-1]}: ...`")
    if problem["type"] in ("literal_error", "union_tag_invalid"):
        return _wrong_choice(key, more, where, problem)
    return _wrong_value(key, more, where, problem)


def _written(loc: Sequence[str | int]) -> tuple[str, ...]:
    """A path as the recipe has it: pydantic also names the kind of parameters, and the branch of a union."""
    kept: list[str] = []
    tag = False  # the step behind `parameters` is the kind
    for step in map(str, loc):
        if not tag and not _BRANCH.fullmatch(step):
            kept.append(step)
        tag = step == "parameters" and not tag
    return tuple(kept)


def _as_written(key: str, tree: dict[str, Any]) -> tuple[str, ...]:
    """Path of the key that a rule is about: in the stage, or at the top, whence the stage has it."""
    own = shared = tuple(key.split("."))
    if own[0] == "stages":
        shared = own[2:]
        own = ("stages", *(_stage_as_written(place, tree) for place in own[1:2]), *shared)
    for path in (own, shared):
        if path and _stands(tree, path):
            return path
    return shared or own


def _stage_as_written(place: str, tree: dict[str, Any]) -> str:
    """Index in the file of the stage that a rule calls ``NUMBER:NAME``; empty if the method alone has that stage."""
    number, _, name = place.partition(":")
    unnamed = Stage.model_fields["name"].default
    stages = [stage if isinstance(stage, dict) else {} for stage in tree.get("stages") or []]
    found = [str(index) for index, stage in enumerate(stages) if stage.get("name", unnamed) == name]
    return number if number in found else next(iter(found), "")  # of the same names the rules keep the order


def _stands(tree: Any, path: tuple[str, ...]) -> bool:
    """Whether a recipe has a key, or a short form in its place, such as ``lora`` for ``{kind: lora}``."""
    for step in path:
        if isinstance(tree, str):
            return True
        if isinstance(tree, list):
            tree = dict(zip(map(str, range(len(tree))), tree, strict=True))
        if not isinstance(tree, dict) or step not in tree:
            return False
        tree = tree[step]
    return True


def _no_kind(key: str, more: str, where: str | None, given: Any) -> RecipeError:
    """Parameters whose keys may mean one kind or another."""
    keys = [name for name in given if kinds_with([name])] if isinstance(given, dict) else []
    kinds = kinds_with(keys)
    fix = (
        "add `kind: lora` there, or use `method: peft`" if "lora" in kinds else f"add `kind: {(kinds or ['full'])[0]}`"
    )
    named = ", ".join(f"`{name}`" for name in keys)
    more_kinds = f" and {len(kinds) - _KINDS_NAMED} more kinds" if len(kinds) > _KINDS_NAMED else ""
    reason = f": {named} may be of {', '.join(kinds[:_KINDS_NAMED])}{more_kinds}" if keys and kinds else ""
    return RecipeError(f"`{key}` has no `kind`{reason}{more}", where=where, fix=fix)


def _known_keys(path: tuple[str, ...]) -> str:
    """The remedy for a key that is not known: the nearest that is, one level further in or at the same."""
    *above, key = path
    known = _keys_at(tuple(above))
    likely = sorted(known, key=lambda section: (section not in ("training", "parameters", "data"), section))
    inside = [f"{section}.{key}" for section in likely if key in _keys_at((*above, section))]
    near = inside or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(sorted(known)) or 'none'}"


def _wrong_value(key: str, more: str, where: str | None, problem: Any) -> RecipeError:
    """A value of the wrong kind or size, in the words of pydantic."""
    if problem["type"] == "model_type":
        return _no_mapping(key, more, where, problem)
    message, fix = problem["msg"].removeprefix("Value error, ").partition(", unable to ")[0], None
    if message.startswith("Input should be") and isinstance(problem["input"], str | int | float):
        wanted = message.removeprefix("Input should be ").replace("a valid", "a")
        fix = f"use a number {wanted}" if wanted.startswith(("greater", "less")) else f"use {wanted}"
        message = f"{problem['input']!r}, but it {message.removeprefix('Input ')}"
    text = f"`{key}`: {message}{more}" if key else f"{message}{more}"
    return RecipeError(text, where=where, fix=fix)


def _no_mapping(key: str, more: str, where: str | None, problem: Any) -> RecipeError:
    """A value where a group of keys belongs; files there are most likely to be trained on."""
    given, path = problem["input"], tuple(map(str, problem["loc"]))
    if path[-1:] == ("data",) and isinstance(given, str | list):
        written = yaml.safe_dump(given, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()
        from_flag = where is not None and where.startswith("--set ")
        reachable = not any(step.isdigit() for step in path)  # no flag leads into a list
        flag = f"--set {shlex.quote(f'{key}.train={written}')}"
        fix = flag if from_flag and reachable else f"write `data: {{train: {written}}}`"
    else:
        start = "- " if path[-1:] and path[-1].isdigit() else f"{path[-1]}: "
        fix = f"write `{start}{{KEY: VALUE}}`; known keys there: {', '.join(_keys_at(path))}"
    return RecipeError(f"`{key}` is a mapping of keys to values, not {given!r}{more}", where=where, fix=fix)


def _wrong_choice(key: str, more: str, where: str | None, problem: Any) -> RecipeError:
    """A value out of a fixed set, with the nearest that is in it."""
    from tunesmith.methods import method_meant

    context = problem["ctx"]
    written = str(context.get("tag", problem["input"]))
    known = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
    near = difflib.get_close_matches(written, known, n=3, cutoff=0.5)
    likeness = {name: difflib.SequenceMatcher(None, written, name).ratio() for name in near}
    near.sort(key=lambda name: (-likeness[name], known.index(name)))  # of equals the first of the set: the commonest
    fix = (f"did you mean `{near[0]}`? " if near else "") + f"choices: {', '.join(known)}"
    fix = (method_meant(written) if key == "method" else None) or fix
    return RecipeError(f"`{key}` cannot be {written!r}{more}", where=where, fix=fix)


def _keys_at(path: tuple[str, ...]) -> list[str]:
    """Keys that the recipe knows at a path, from its own JSON schema."""
    schema = Recipe.model_json_schema()
    nodes: list[dict[str, Any]] = [schema]
    for step in path:
        below: list[dict[str, Any]] = []
        of_kind = [node for node in _expanded(nodes, schema) if step in _kinds(node)]
        for node in of_kind or _expanded(nodes, schema):
            if of_kind:
                below.append(node)
            elif step.isdigit() and "items" in node:
                below.append(node["items"])
            elif step in node.get("properties", {}):
                below.append(node["properties"][step])
        nodes = below or nodes
    return sorted({key for node in _expanded(nodes, schema) for key in node.get("properties", {})})


def _kinds(node: dict[str, Any]) -> list[str]:
    """Values of ``kind`` that lead to a node of a JSON schema."""
    kind = node.get("properties", {}).get("kind", {})
    return kind.get("enum") or [kind.get("const")]


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
