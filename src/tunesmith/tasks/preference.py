"""Preferences: two answers to one prompt, of which the first is the better one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.conversations import ROLE_OF
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
        """Rows are taken as they are."""
        return Reading()

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
        """Shapes, roles, empty and equal answers."""
        for name in ("prompt", "input", "chosen", "preferred_output", "rejected", "non_preferred_output"):
            if (problem := _shape(name, row.fields.get(name))) is not None:
                yield "messages-shape", problem
                return
        _, chosen, rejected = turns_of(row)
        for name, turns in (("better", chosen), ("worse", rejected)):
            if not text_of(turns).strip() and not any(turn.get("tool_calls") for turn in turns):
                yield "empty-field", f"the {name} answer is empty"
            elif turns[-1].get("role") != "assistant":
                yield "last-role", f"the {name} answer must end with the assistant's turn"
        if chosen == rejected:
            yield "identical-answers", "both answers are the same: there is nothing to prefer"
        try:
            margin = margin_of(row)
        except (TypeError, ValueError, OverflowError):
            margin = math.nan
        if margin is not None and not 0 <= margin < math.inf:
            yield "wrong-type", f"the margin is {row.fields['margin']!r}, where a number of 0 or more is wanted"


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
        prompt = _turns(given.get("messages") if isinstance(given, dict) else given, "user")
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


def margin_of(row: Row) -> float | None:
    """The margin that the row states, also as text (in a CSV file, where an empty cell states none)."""
    margin = row.fields.get("margin")
    return None if margin is None or (isinstance(margin, str) and not margin.strip()) else float(margin)


def _turns(value: Any, role: str) -> list[Message]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [{**turn, "role": ROLE_OF[turn["role"]]} for turn in value]


def text_of(turns: Sequence[Message]) -> str:
    """What the turns say, without who said it."""
    return "\n".join(str(turn.get("content") or "") for turn in turns)


def _shape(name: str, value: Any) -> str | None:
    """What is wrong with the shape of a field."""
    if name == "input" and isinstance(value, dict):
        value = value.get("messages")
        if value is None:
            return "`input` has no `messages`"
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        return f"`{name}` must be text, or a list of messages with `role` and `content`"
    unknown = next((str(turn["role"]) for turn in value if str(turn["role"]) not in ROLE_OF), None)
    return None if unknown is None else f"`{name}` has the unknown role {unknown!r}; known: {', '.join(ROLE_OF)}"
