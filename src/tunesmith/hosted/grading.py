"""Whether a grader of reinforcement fine-tuning is one that OpenAI's API takes, be it that it can run here or not."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tunesmith.errors import RecipeError

SIMILARITIES = ("cosine", "fuzzy_match", "bleu", "gleu", "meteor", *(f"rouge_{n}" for n in range(1, 6)), "rouge_l")
OPERATIONS = ("eq", "ne", "like", "ilike")
FUNCTIONS = ("min", "max", "abs", "floor", "ceil", "exp", "sqrt", "log")
"""That `calculate_output` may call."""

_NAMESPACE = re.compile(r"{{\s*(\w*)")

Found = Iterator[tuple[str, str, str | None]]
"""Key, what is wrong with it, remedy."""


def refuse_wrong(grader: Any, where: str) -> None:
    """Stop at the first thing that is wrong with a grader.

    Args:
        grader: The object.
        where: Its file, or its key in the recipe.

    Raises:
        RecipeError: With the key.
    """
    for key, problem, fix in problems(grader):
        raise RecipeError(f"the grader's `{key}` {problem}" if key else f"the grader {problem}", where=where, fix=fix)


def problems(grader: Any, path: str = "") -> Found:
    """All that is wrong with a grader, by its keys."""
    if not isinstance(grader, Mapping):
        yield path, "is no object", 'write {"type": "string_check", ...}'
        return
    kinds: dict[str, Callable[[Mapping[str, Any], str], Found]] = {
        "string_check": _string_check,
        "text_similarity": _text_similarity,
        "python": _python,
        "score_model": _score_model,
        "multi": _multi,
    }
    kind = grader.get("type")
    if kind not in kinds:
        yield f"{path}type", *_no_choice(kind, tuple(kinds))
        return
    yield from kinds[str(kind)](grader, path)


def _string_check(grader: Mapping[str, Any], path: str) -> Found:
    yield from _templates(grader, path)
    if grader.get("operation") not in OPERATIONS:
        yield f"{path}operation", *_no_choice(grader.get("operation"), OPERATIONS)


def _text_similarity(grader: Mapping[str, Any], path: str) -> Found:
    yield from _templates(grader, path)
    if grader.get("evaluation_metric") not in SIMILARITIES:
        yield f"{path}evaluation_metric", *_no_choice(grader.get("evaluation_metric"), SIMILARITIES)


def _python(grader: Mapping[str, Any], path: str) -> Found:
    try:
        tree = ast.parse(str(grader.get("source") or ""))
    except SyntaxError as error:
        yield f"{path}source", f"is no Python: {error.msg} in its line {error.lineno}", "mend it"
        return
    if not any(isinstance(node, ast.FunctionDef) and node.name == "grade" for node in tree.body):
        yield f"{path}source", "defines no function `grade`", "write `def grade(sample, item): ...`"


def _score_model(grader: Mapping[str, Any], path: str) -> Found:
    if not isinstance(grader.get("model"), str):
        yield f"{path}model", "is missing", "name the model that gives the grade"
    turns = grader.get("input")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        yield f"{path}input", "is no list of messages", "write what the model reads, with `role` and `content`"
        return
    for number, turn in enumerate(turns):
        yield from _template(turn.get("content"), f"{path}input.{number}.content")


def _multi(grader: Mapping[str, Any], path: str) -> Found:
    parts = grader.get("graders")
    if not isinstance(parts, Mapping) or not parts:
        yield f"{path}graders", "is no object of graders by their names", 'write {"a": {"type": "string_check", ...}}'
        return
    for name, part in parts.items():
        yield from problems(part, f"{path}graders.{name}.")
    try:
        tree = ast.parse(str(grader.get("calculate_output") or ""), mode="eval")
    except SyntaxError:
        yield f"{path}calculate_output", f"is no formula: {grader.get('calculate_output')!r}", "write one, say `a + b`"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in (*parts, *FUNCTIONS):
            yield f"{path}calculate_output", *_no_choice(node.id, (*map(str, parts), *FUNCTIONS))


def _templates(grader: Mapping[str, Any], path: str) -> Found:
    for name in ("input", "reference"):
        if not isinstance(grader.get(name), str):
            yield f"{path}{name}", "is missing", "write a text, with `{{item.FIELD}}` or `{{sample.output_text}}` in it"
        yield from _template(grader.get(name), f"{path}{name}")


def _template(text: Any, key: str) -> Found:
    for name in _NAMESPACE.findall(text) if isinstance(text, str) else []:
        if name not in ("item", "sample"):
            yield key, f"names `{{{{{name}...}}}}`, which is not known", "templates know `item.` and `sample.`"


def _no_choice(given: Any, known: tuple[str, ...]) -> tuple[str, str]:
    near = difflib.get_close_matches(str(given), known, n=1)
    meant = f"did you mean `{near[0]}`? " if near else ""
    return ("is missing" if given is None else f"is {given!r}, which is not known"), f"{meant}known: {', '.join(known)}"
