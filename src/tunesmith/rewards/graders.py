"""OpenAI's grader objects: string_check, text_similarity, python, score_model and multi, on one's own machine.

Templates name the row's fields as ``{{item.x}}``, the answer as ``{{sample.output_text}}``, and, where it is JSON, what
is in it as ``{{sample.output_json.x}}``.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.errors import RecipeError, RewardError
from tunesmith.recipe import RewardSource
from tunesmith.rewards import Answered, item_of

Grade = Callable[[Sequence[Answered]], list[float]]
"""The grades of answers, in their order."""

_ABSENT = object()
SLOT = re.compile(r"{{\s*(item|sample)\.([\w.]+)\s*}}")
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
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


class NoSuchFieldError(RewardError):
    """A template names something that neither the row nor the answer has."""


class Grader:
    """A reward that is written as OpenAI's reinforcement fine-tuning wants it."""

    def __init__(self, source: RewardSource) -> None:
        self.grade = compiled(source.grader or {}, source.timeout)

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """The grade of each answer."""
        return self.grade(answers)


def compiled(grader: dict[str, Any], timeout: float) -> Grade:
    """A grader as a function of answers.

    Raises:
        RecipeError: Its type is unknown, or cannot run here.
    """
    kind = grader.get("type")
    makers: dict[str, Callable[[dict[str, Any], float], Grade]] = {
        "string_check": _string_check,
        "text_similarity": _text_similarity,
        "python": _python,
        "score_model": _score_model,
        "multi": _multi,
    }
    if kind not in makers:
        raise RecipeError(
            f"the grader type {kind!r} cannot run here",
            where="rewards.grader.type",
            fix=f"use {', '.join(sorted(makers))}; for a tuned judge `kind: run`",
        )
    return makers[kind](grader, timeout)


def _each(grade: Callable[[Answered], float]) -> Grade:
    return lambda answers: [grade(answer) for answer in answers]


def filled(template: str, answer: Answered) -> str:
    """A template with the row's fields and the answer in it.

    Raises:
        NoSuchFieldError: It names a field that the row has not.
    """

    def value(match: re.Match[str]) -> str:
        place, path = match.groups()
        if place == "sample":
            return _of_sample(path, answer.text)
        fields = {**item_of(answer.row), "reference": answer.reference}
        found = _at(path, fields)
        if found is _ABSENT:
            raise NoSuchFieldError(
                f"the grader asks for `item.{path}`, which the row has not",
                where=str(answer.row.origin),
                fix=f"fields of the row: {', '.join(fields)}",
            )
        return str(found)

    return SLOT.sub(value, template)


def _of_sample(path: str, text: str) -> str:
    """The answer, or a part of an answer in JSON; empty where the answer is no JSON or has no such part."""
    if path == "output_text":
        return text
    first, _, below = path.partition(".")
    if first != "output_json":
        raise NoSuchFieldError(
            f"the grader asks for `sample.{path}`, which is not known here", fix="output_text, or output_json.FIELD"
        )
    value = _json(text)
    found = _at(below, value) if below else value
    return "" if found is _ABSENT or found is None else found if isinstance(found, str) else json.dumps(found)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a model may well write a thousand brackets
        return _ABSENT


def _at(path: str, value: Any) -> Any:
    """What lies at a path of names, or ``_ABSENT``."""
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            return _ABSENT
        value = value[step]
    return value


def _string_check(grader: dict[str, Any], timeout: float) -> Grade:
    operation = _OPERATIONS.get(str(grader.get("operation")))
    if operation is None:
        raise RecipeError(
            f"string_check has no operation {grader.get('operation')!r}",
            where="rewards.grader.operation",
            fix=f"use {', '.join(_OPERATIONS)}",
        )
    given, wanted = str(grader.get("input", "")), str(grader.get("reference", ""))
    return _each(lambda answer: float(operation(filled(given, answer), filled(wanted, answer))))


def _text_similarity(grader: dict[str, Any], timeout: float) -> Grade:
    metric = str(grader.get("evaluation_metric"))
    measure = _similarity(metric)
    given, wanted = str(grader.get("input", "")), str(grader.get("reference", ""))
    return _each(lambda answer: measure(filled(given, answer), filled(wanted, answer)))


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


def _python(grader: dict[str, Any], timeout: float) -> Grade:
    from tunesmith.rewards.sandbox import call_grade

    source = str(grader.get("source", ""))

    def grade(answer: Answered) -> float:
        value = _json(answer.text)
        sample = {"output_text": answer.text, "output_json": None if value is _ABSENT else value}
        return call_grade(source, sample, item_of(answer.row), timeout)

    return _each(grade)


def _score_model(grader: dict[str, Any], timeout: float) -> Grade:
    from tunesmith.rewards.model_judge import ModelJudge

    judge, turns = ModelJudge(grader), list(grader.get("input", []))

    def grade(answers: Sequence[Answered]) -> list[float]:
        return judge([[{"role": turn["role"], "content": filled(_text(turn), a)} for turn in turns] for a in answers])

    return grade


def _text(turn: dict[str, Any]) -> str:
    """The template of a message, whose content may be in parts."""
    content = turn.get("content", "")
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)


def _multi(grader: dict[str, Any], timeout: float) -> Grade:
    parts = {name: compiled(part, timeout) for name, part in dict(grader.get("graders", {})).items()}
    formula = str(grader.get("calculate_output", ""))
    try:
        tree = ast.parse(formula, mode="eval").body
        calculate(tree, dict.fromkeys(parts, 1.0))
    except (SyntaxError, RecipeError, ArithmeticError, ValueError) as error:
        raise RecipeError(f"calculate_output {formula!r}: {error}", where="rewards.grader.calculate_output") from error

    def grade(answers: Sequence[Answered]) -> list[float]:
        columns = [part(answers) for part in parts.values()]
        grades = zip(*columns, strict=True) if columns else [()] * len(answers)
        return [calculate(tree, dict(zip(parts, values, strict=True))) for values in grades]

    return grade


def calculate(node: ast.expr, values: dict[str, float]) -> float:
    """The value of an arithmetic expression over named grades: + - * / ** and :data:`_FUNCTIONS`.

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
            return float(_FUNCTIONS[name](*(calculate(argument, values) for argument in arguments)))
    raise RecipeError(
        f"{ast.unparse(node)!r} is not understood",
        where="rewards.grader.calculate_output",
        fix=f"use numbers, + - * / **, {', '.join(_FUNCTIONS)} and the graders {', '.join(values)}",
    )
