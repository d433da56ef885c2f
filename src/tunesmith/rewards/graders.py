"""OpenAI's grader objects: string_check, text_similarity, python and multi, on one's own machine.

Templates name the row's fields as ``{{item.x}}`` and the answer as ``{{sample.output_text}}``.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.errors import RecipeError, RewardError
from tunesmith.recipe import RewardSource
from tunesmith.rewards import Answered

_SLOT = re.compile(r"{{\s*(item|sample)\.([\w.]+)\s*}}")
_OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "like": lambda given, wanted: wanted in given,
    "ilike": lambda given, wanted: wanted.casefold() in given.casefold(),
}
_ARITHMETIC: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}


class Grader:
    """A reward that is written as OpenAI's reinforcement fine-tuning wants it."""

    def __init__(self, source: RewardSource) -> None:
        self.grade = compiled(source.grader or {}, source.timeout)

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """The grade of each answer."""
        return [self.grade(answer) for answer in answers]


def compiled(grader: dict[str, Any], timeout: float) -> Callable[[Answered], float]:
    """A grader as a function of an answer.

    Raises:
        RecipeError: Its type is unknown, or cannot run here.
    """
    kind = grader.get("type")
    makers: dict[str, Callable[[dict[str, Any], float], Callable[[Answered], float]]] = {
        "string_check": _string_check,
        "text_similarity": _text_similarity,
        "python": _python,
        "multi": _multi,
    }
    if kind not in makers:
        raise RecipeError(
            f"the grader type {kind!r} cannot run here",
            where="rewards.grader.type",
            fix=f"use {', '.join(sorted(makers))}; for a model as the judge `kind: run`",
        )
    return makers[kind](grader, timeout)


def filled(template: str, answer: Answered) -> str:
    """A template with the row's fields and the answer in it.

    Raises:
        RewardError: It names a field that the row has not.
    """

    def value(match: re.Match[str]) -> str:
        place, path = match.groups()
        if place == "sample":
            if path != "output_text":
                raise RewardError(f"the grader asks for `sample.{path}`, which is not known here", fix="output_text")
            return answer.text
        found: Any = {**answer.row.fields, "reference": answer.reference}
        for step in path.split("."):
            if not isinstance(found, dict) or step not in found:
                raise RewardError(
                    f"the grader asks for `item.{path}`, which the row has not",
                    where=str(answer.row.origin),
                    fix=f"fields of the row: {', '.join(answer.row.fields)}",
                )
            found = found[step]
        return str(found)

    return _SLOT.sub(value, template)


def _string_check(grader: dict[str, Any], timeout: float) -> Callable[[Answered], float]:
    operation = _OPERATIONS.get(str(grader.get("operation")))
    if operation is None:
        raise RecipeError(
            f"string_check has no operation {grader.get('operation')!r}",
            where="rewards.grader.operation",
            fix=f"use {', '.join(_OPERATIONS)}",
        )
    given, wanted = str(grader.get("input", "")), str(grader.get("reference", ""))
    return lambda answer: float(operation(filled(given, answer), filled(wanted, answer)))


def _text_similarity(grader: dict[str, Any], timeout: float) -> Callable[[Answered], float]:
    metric = str(grader.get("evaluation_metric"))
    measure = _similarity(metric)
    given, wanted = str(grader.get("input", "")), str(grader.get("reference", ""))
    return lambda answer: measure(filled(given, answer), filled(wanted, answer))


def _similarity(metric: str) -> Callable[[str, str], float]:
    """A similarity of two texts between 0 and 1."""
    if metric == "fuzzy_match":
        import difflib

        return lambda given, wanted: difflib.SequenceMatcher(None, given, wanted, autojunk=False).ratio()
    if metric == "bleu":
        from sacrebleu import sentence_bleu

        return lambda given, wanted: float(sentence_bleu(given, [wanted]).score) / 100
    if metric == "rouge_l" or re.fullmatch(r"rouge_[1-5]", metric):
        from rouge_score.rouge_scorer import RougeScorer

        name = "rougeL" if metric == "rouge_l" else f"rouge{metric[-1]}"
        scorer = RougeScorer([name])
        return lambda given, wanted: float(scorer.score(wanted, given)[name].fmeasure)
    raise RecipeError(
        f"the similarity {metric!r} cannot be measured here",
        where="rewards.grader.evaluation_metric",
        fix="use fuzzy_match, bleu, rouge_1 to rouge_5, or rouge_l",
    )


def _python(grader: dict[str, Any], timeout: float) -> Callable[[Answered], float]:
    from tunesmith.rewards.sandbox import call_grade

    source = str(grader.get("source", ""))
    return lambda answer: call_grade(source, {"output_text": answer.text}, dict(answer.row.fields), timeout)


def _multi(grader: dict[str, Any], timeout: float) -> Callable[[Answered], float]:
    parts = {name: compiled(part, timeout) for name, part in dict(grader.get("graders", {})).items()}
    formula = str(grader.get("calculate_output", ""))
    try:
        tree = ast.parse(formula, mode="eval").body
        calculate(tree, dict.fromkeys(parts, 1.0))
    except (SyntaxError, RecipeError, ArithmeticError) as error:
        raise RecipeError(f"calculate_output {formula!r}: {error}", where="rewards.grader.calculate_output") from error
    return lambda answer: calculate(tree, {name: part(answer) for name, part in parts.items()})


def calculate(node: ast.expr, values: dict[str, float]) -> float:
    """The value of an arithmetic expression over named grades: + - * / **, min, max, abs.

    Raises:
        RecipeError: It holds anything else.
    """
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.UnaryOp(op=op, operand=inner) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](calculate(inner, values))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](calculate(left, values), calculate(right, values))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(calculate(argument, values) for argument in arguments))
    raise RecipeError(
        f"{ast.unparse(node)!r} is not understood",
        where="rewards.grader.calculate_output",
        fix=f"use numbers, + - * / **, min, max, abs and the graders {', '.join(values)}",
    )
