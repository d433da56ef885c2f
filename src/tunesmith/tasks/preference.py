"""Preferences: two answers to one prompt, of which the first is the better one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.conversations import MalformedError, as_messages, as_tools
from tunesmith.data.conversations import text_of as text_of_turn
from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Message, Reading

if TYPE_CHECKING:
    from tunesmith.recipe import Data


class Preference:
    """Tell the better of two answers, or come to write like it."""

    name = "preference"
    what = "prefer the better of two answers"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            Field("input", "the conversation, as OpenAI's preference format has it", (), "any"),
            Field("preferred_output", "the better answer", (), "any"),
            Field("non_preferred_output", "the worse answer", (), "any"),
        ),
        (
            Field("prompt", "what both answer", ("prompt", "question", "instruction", "input"), "any", required=False),
            Field("chosen", "the better answer", ("chosen", "preferred", "accepted", "winner"), "any"),
            Field("rejected", "the worse answer", ("rejected", "dispreferred", "loser"), "any"),
            Field("margin", "by how much it is better", ("margin",), "any", required=False),
        ),
    )
    answer: Answer = "pair"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Bring messages and tools into the one shape, and the margin to a number."""
        return Reading(_convert)

    def input_text(self, row: Row) -> str:
        """The prompt, by which rows are kept on one side of a split; without one, both answers."""
        prompt, chosen, rejected = turns_of(row)
        return text_of(prompt) or f"{text_of(chosen)}\n{text_of(rejected)}"

    def target_text(self, row: Row) -> str:
        """The better answer."""
        return text_of(turns_of(row)[1])

    def reference(self, row: Row) -> float:
        """By how much the first is better; 1 unless the row says."""
        return margin_of(row) or 1.0

    def labels(self, row: Row) -> Sequence[str]:
        """None."""
        return ()

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """The prompt with the better answer."""
        return conversations(row, system_prompt)[0]

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Empty and equal answers, and answers that end with somebody else's turn."""
        _, chosen, rejected = turns_of(row)
        for name, turns in (("better", chosen), ("worse", rejected)):
            if not text_of(turns).strip():
                yield "empty-field", f"the {name} answer is empty"
            elif turns[-1].get("role") != "assistant":
                yield "last-role", f"the {name} answer must end with the assistant's turn"
        if chosen == rejected:
            yield "identical-answers", "both answers are the same: there is nothing to prefer"


def conversations(row: Row, system_prompt: str | None) -> tuple[list[Message], list[Message]]:
    """The prompt with the better and with the worse answer; only the answer carries loss."""
    prompt, chosen, rejected = turns_of(row)
    if system_prompt and not (prompt and prompt[0].get("role") == "system"):
        prompt = [{"role": "system", "content": system_prompt}, *prompt]
    quiet = [{**turn, "weight": 0} for turn in prompt]
    return [*quiet, *chosen], [*quiet, *rejected]


def turns_of(row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, better and worse answer as turns. Answers that repeat the prompt, or begin alike, share it."""
    if "preferred_output" in row.fields:
        given = row.fields["input"]
        prompt = _turns(given["messages"] if isinstance(given, dict) else given, "user")
        chosen, rejected = row.fields["preferred_output"], row.fields["non_preferred_output"]
    else:
        prompt = _turns(row.fields.get("prompt"), "user")
        chosen, rejected = row.fields["chosen"], row.fields["rejected"]
    better, worse = _turns(chosen, "assistant"), _turns(rejected, "assistant")
    if prompt and better[: len(prompt)] == prompt and worse[: len(prompt)] == prompt:
        return prompt, better[len(prompt) :], worse[len(prompt) :]
    if not prompt and len(better) > 1 and len(worse) > 1:
        shared = next((n for n, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), 0)
        return better[:shared], better[shared:], worse[shared:]
    return prompt, better, worse


def tools_of(row: Row) -> Any:
    """The tools that OpenAI's form names beside the conversation; ``None`` where there are none."""
    given = row.fields.get("input")
    return given.get("tools") if isinstance(given, dict) else None


def margin_of(row: Row) -> float | None:
    """The margin that the row states."""
    margin: float | None = row.fields.get("margin")
    return margin


def _turns(value: Any, role: str) -> list[Message]:
    """A text as one turn, turns as they are, nothing as none."""
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value else []
    return list(value or [])


def text_of(turns: Sequence[Message]) -> str:
    """What the turns say and call, without who does."""
    return "\n".join(text_of_turn(turn) for turn in turns)


def _convert(row: Row) -> tuple[Row, list[Fault]]:
    """A row whose turns are in the one shape of conversations, and whose margin is a number; or why they cannot be."""
    fields = dict(row.fields)
    given = None
    try:
        if isinstance(fields.get("input"), Mapping):  # OpenAI's form: the conversation with what belongs to it
            given = {name: value for name, value in fields["input"].items() if value is not None}
            given["messages"] = as_messages(given.get("messages"), "input.messages")
            if "tools" in given:
                given["tools"] = as_tools(given["tools"])
            fields["input"] = given
        for name in ("prompt", "input", "chosen", "preferred_output", "rejected", "non_preferred_output"):
            value = fields.get(name, "")
            none_needed = name in ("prompt", "input") and value == []
            if not isinstance(value, str) and value is not given and not none_needed:
                fields[name] = as_messages(value, name)
    except MalformedError as error:
        return row, [error.fault(row.origin)]
    try:
        margin = _margin(fields.pop("margin", None))
    except (TypeError, ValueError, OverflowError):
        what = f"the margin is {row.fields['margin']!r}, where a number of 0 or more is wanted"
        return row, [Fault("wrong-type", what, row.origin, fix="write it as a number, or leave it out", group="margin")]
    return Row(fields if margin is None else {**fields, "margin": margin}, row.origin), []


def _margin(given: Any) -> float | None:
    """A number, also as text (in a CSV file, where an empty cell states none)."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    margin = float(given)
    if not 0 <= margin < math.inf:
        raise ValueError(given)
    return margin
