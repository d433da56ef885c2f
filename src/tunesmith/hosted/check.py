"""Whether a provider will take the data: the checks of the data, its own rules and limits, the size of the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from tunesmith.data.prepare import PreparedData, prepare
from tunesmith.data.problems import PLACES, CheckReport, Problem
from tunesmith.data.rows import Origin, Row
from tunesmith.events import Listener, nobody
from tunesmith.hosted import clock, formats, grading, tokens
from tunesmith.hosted.rules import ProviderRules
from tunesmith.hosted.settings import Hosted
from tunesmith.hosted.table import Method, Provider, Table, find_model, known_model, shutdown_warnings
from tunesmith.recipe import Recipe

FALLBACK_VOCABULARY = "o200k_base"
"""Taken, aloud, for models whose vocabulary the table does not know."""


@dataclass
class Size:
    """How large a provider's file is, and what its rows cost.

    Attributes:
        rows: Lines.
        bytes: Of the file, but for a byte-order mark.
        tokens: That training reads in one epoch; what is cut off from rows beyond the limit is not among them.
        prompt_tokens: Of all questions, as inference would read them.
        answer_tokens: Of all (last, or preferred) answers.
        too_long: Places of rows that are cut, at most :data:`~tunesmith.data.problems.PLACES`.
        num_too_long: How many there are.
        with_tools: Rows that describe tools, whose tokens are near to what is charged, not equal.
        with_pictures: Rows with pictures, whose tokens are not counted.
    """

    rows: int = 0
    bytes: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    too_long: list[Origin] = field(default_factory=list)
    num_too_long: int = 0
    with_tools: int = 0
    with_pictures: int = 0


@dataclass(frozen=True)
class Checked:
    """What is known of the data of a job.

    Attributes:
        provider: Who would tune.
        method: The kind of job.
        report: All problems, errors first.
        data: The good rows.
        rules: As they were applied.
        size: Of the training file.
        warnings: What concerns no row: prices, dates, vocabularies.
    """

    provider: Provider
    method: Method
    report: CheckReport
    data: PreparedData
    rules: ProviderRules
    size: Size
    warnings: list[str]

    def lines(self, recipe: Recipe, rows: Iterable[Row]) -> Iterator[formats.Line]:
        """Rows as the provider wants them."""
        return formats.lines(recipe, rows, self.data.labels, self.provider, as_they_are=self.rules.as_they_are)


def method_of(recipe: Recipe) -> Method:
    """The kind of job that a recipe asks for."""
    if recipe.hosted is not None and recipe.hosted.grader is not None:
        return "reinforcement"
    return "dpo" if recipe.task == "preference" else "supervised"


def rules_of(recipe: Recipe, table: Table) -> ProviderRules:
    """The provider's rules for a recipe's rows."""
    hosted = recipe.hosted or Hosted()
    provider = table.provider(hosted.provider)
    found = find_model(provider, recipe.model)
    return ProviderRules(provider, method_of(recipe), bool(found and found[1].images), hosted.grader)


def check(
    recipe: Recipe,
    table: Table,
    *,
    today: date | None = None,
    dropped_to: Path | None = None,
    announce: bool = True,
    on_event: Listener = nobody,
) -> Checked:
    """Find everything that is wrong with the data of a job.

    Args:
        recipe: With `method: hosted`.
        table: Limits, models and dates.
        today: For the dates.
        dropped_to: Where rows with errors are written, with the reason; with ``data.drop_bad`` only.
        announce: Tell ``on_event`` the warnings; else the caller shows the report, which has them.
        on_event: Told about guessed columns and progress.

    Raises:
        DataError: A file does not exist.
        NotFoundError: The provider has models in the table, and this is none of them.
        RecipeError: The grader is none that the provider could run.
    """
    rules = replace(rules_of(recipe, table), as_file=True)
    model_warnings = of_model(recipe, table, today or clock.today())
    data = prepare(
        recipe, rules=rules, stop_on_errors=False, announce=announce, dropped_to=dropped_to, on_event=on_event
    )
    return of_data(recipe, table, data, rules, model_warnings)


def of_data(
    recipe: Recipe, table: Table, data: PreparedData, rules: ProviderRules, warnings: list[str] | None = None
) -> Checked:
    """The same for data that were read already, by ``rules``."""
    provider, method = rules.provider, rules.method
    vocabulary = table.vocabulary(recipe.model)
    notes = list(warnings or [])
    if vocabulary is None and not provider.own_machine:
        notes.append(f"the vocabulary of {recipe.model} is not known: tokens are counted by {FALLBACK_VOCABULARY}")
    count = tokens.counter(vocabulary or FALLBACK_VOCABULARY)
    made = formats.lines(recipe, data.train, data.labels, provider, as_they_are=rules.as_they_are)
    size = measure(zip(made, data.train, strict=True), provider, count)
    problems = [*data.report.problems, *_of_provider(recipe, provider, method, size)]
    if provider.byte_order_mark:
        problems = [problem for problem in problems if problem.code != "byte-order-mark"]  # that is as it wants it
    report = replace(
        data.report,
        problems=sorted(problems, key=lambda problem: problem.severity),
        notes=[*data.report.notes, *rules.notes],
    )
    return Checked(provider, method, report, data, rules, size, notes)


def of_model(recipe: Recipe, table: Table, today: date) -> list[str]:
    """What to know of the model and the grader before any row is read.

    Raises:
        NotFoundError: The table knows the provider's models, and this is none of them.
        RecipeError: The grader is none that the provider could run.
    """
    hosted = recipe.hosted or Hosted()
    provider = table.provider(hosted.provider)
    if provider.models:
        known_model(provider, recipe.model)
    if hosted.grader is not None:
        grading.refuse_wrong(hosted.grader, "hosted.grader")
    return list(shutdown_warnings(provider, recipe.model, today))


def measure(made: Iterable[tuple[formats.Line, Row]], provider: Provider, count: tokens.Count) -> Size:
    """Count rows, bytes and tokens, line by line."""
    size, limit = Size(), provider.limits.row_tokens
    for line, row in made:
        size.rows += 1
        size.bytes += len(json.dumps(line, ensure_ascii=False).encode()) + 1
        found = tokens.count_row(line, count)
        if limit is not None and found > limit:
            size.num_too_long += 1
            size.too_long += [row.origin] if len(size.too_long) < PLACES else []
            found = limit
        size.tokens += found
        prompt, answer, tools = _asked(line)
        size.prompt_tokens += tokens.count_messages(prompt, count) + tokens.count_tools(tools, count)
        size.answer_tokens += sum(count(tokens.text_of(turn.get("content"))) for turn in answer)
        size.with_tools += bool(tools)
        size.with_pictures += any(isinstance(turn.get("content"), list) for turn in prompt)
    return size


def _asked(line: formats.Line) -> tuple[list[Any], list[Any], Any]:
    """The question, the answer and the tools of a line."""
    if "preferred_output" in line:
        return line["input"]["messages"], line["preferred_output"], line["input"].get("tools")
    turns = line["messages"]
    cut = len(turns) - (turns[-1]["role"] == "assistant")
    return turns[:cut], turns[cut:], line.get("tools")


def _of_provider(recipe: Recipe, provider: Provider, method: Method, size: Size) -> Iterator[Problem]:
    limits, hosted = provider.limits, recipe.hosted or Hosted()
    found = find_model(provider, recipe.model)
    methods = provider.methods if found is None or found[1].methods is None else found[1].methods
    if method not in methods:
        able = ", ".join(methods) or "it cannot be tuned"
        message = f"{provider.what} does not tune {recipe.model} by {method} ({able})"
        yield Problem("method-not-there", "error", message, [], 1, "take another model, or another provider")
    if size.rows < limits.rows:
        where = [Origin(recipe.data.train[0], 0)]
        message = f"the training file has {size.rows} good rows; {provider.what} wants at least {limits.rows}"
        yield Problem(
            "too-few-rows", "error", message, where, 1, "add rows, or hold back fewer for validation and test"
        )
    if limits.file_bytes is not None and size.bytes > limits.file_bytes:
        message = f"the training file has {size.bytes:,} bytes; {provider.what} takes {limits.file_bytes:,}"
        yield Problem("file-too-large", "error", message, [], 1, "split it, or leave rows out: `data.max_rows`")
    if size.num_too_long:
        message = f"rows have more than {limits.row_tokens:,} tokens: {provider.what} cuts their end off"
        yield Problem("row-too-long", "warning", message, size.too_long, size.num_too_long, "shorten or split them")
    if hosted.suffix is not None and len(hosted.suffix) > limits.suffix:
        message = f"the suffix has {len(hosted.suffix)} characters; {provider.what} takes {limits.suffix}"
        yield Problem("suffix-too-long", "error", message, [], 1, "shorten it")


def write_files(checked: Checked, recipe: Recipe, folder: Path) -> dict[str, Path]:
    """Write the training file, and that for validation if there are rows, as the provider wants them.

    Returns:
        ``training_file`` (and ``validation_file``) -> path.
    """
    written = {}
    for name, rows in (("training_file", checked.data.train), ("validation_file", checked.data.validation)):
        if len(rows):
            written[name] = folder / f"{name}.jsonl"
            formats.write(written[name], checked.lines(recipe, rows), checked.provider)
    return written
