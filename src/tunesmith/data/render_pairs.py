"""The rendering of preferences: two answers to one prompt in one row, or two texts to score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.batches import SECOND_TEXT
from tunesmith.data.render import ConversationRenderer, Render, Rendered, conversation_renderer, encode_text
from tunesmith.data.rows import Origin, Row
from tunesmith.errors import DataError
from tunesmith.tasks.base import Message, Task
from tunesmith.tasks.preference import conversations, margin_of, text_of, tools_of

CHOSEN, REJECTED = 1, 2
"""Segments of the answers in a row; the prompt is the trunk that both see (:mod:`tunesmith.models.visibility`)."""


def pair_renderer(renderer: ConversationRenderer, system_prompt: str | None = None) -> Render:
    """Render a preference for a model that writes: the prompt once, then both answers, which do not see each other.

    The prompt's last token stands before each answer, so that it predicts the first token of both.

    The returned function raises :class:`DataError` if an answer carries no loss, or both have become the same.
    """

    def render(row: Row) -> Rendered:
        tools, pair = tools_of(row), conversations(row, system_prompt)
        chosen, rejected = (renderer(turns, tools=tools, origin=row.origin) for turns in pair)
        shared = min(_prompt_length(chosen), _prompt_length(rejected))
        if chosen.input_ids[:shared] != rejected.input_ids[:shared] or shared == 0:
            raise DataError("the template writes the prompt of the two answers differently", where=str(row.origin))
        cut = chosen.cut_tokens + rejected.cut_tokens
        if chosen.input_ids == rejected.input_ids:
            raise _indistinct(row, cut)
        trunk = shared - 1
        ids, weights, segments = chosen.input_ids[:trunk], [0.0] * trunk, [0] * trunk
        for number, answer in ((CHOSEN, chosen), (REJECTED, rejected)):
            ids = ids + answer.input_ids[trunk:]
            weights = weights + (answer.loss_weights or [])[trunk:]
            segments = segments + [number] * (len(answer.input_ids) - trunk)
        return Rendered(ids, weights, cut_tokens=cut, extra={"segments": segments})

    return render


def thumb_renderer(renderer: ConversationRenderer, task: Task, system_prompt: str | None = None) -> Render:
    """Render a single answer, on which alone the loss is, with ``extra["liked"]``: 1 if it was liked, else 0."""
    render = conversation_renderer(renderer, task, None, system_prompt, "last-answer")
    return lambda row: replace(render(row), extra={"liked": [float(task.reference(row))]})


def _prompt_length(rendered: Rendered) -> int:
    """Tokens before the answer."""
    return next(n for n, weight in enumerate(rendered.loss_weights or []) if weight)


def _indistinct(row: Row, cut: int) -> DataError:
    """Two answers of which the model would read the same, and how many tokens were cut off them."""
    if cut:
        what, fix = "both answers are the same once they are cut to `data.max_length`", "raise `data.max_length`"
    else:
        what, fix = "both answers have the same tokens", "leave the pair out: the model does not read what differs"
    return DataError(what, where=str(row.origin), fix=fix)


Read = Callable[[list[Message], Any, Origin], tuple[list[int], int]]
"""Tokens of a text that is to be scored, with the tools that may be called in it, and how many were cut off."""


def score_reader(tokenizer: Any, max_length: int, eos_ids: Sequence[int] | None = None) -> Read:
    """How a model that scores reads: whole conversations with their template, if it has one, else the bare texts.

    An answer without a prompt is read bare in any case, with what the tokenizer puts around bare texts. In a bare text
    calls stand in JSON; tools have no place there: the returned function raises :class:`DataError` if there are any.
    """
    renderer = ConversationRenderer(tokenizer, max_length, eos_ids) if tokenizer.chat_template else None

    def read(turns: list[Message], tools: Any, origin: Origin) -> tuple[list[int], int]:
        if renderer is None or len(turns) < 2:
            if tools:
                raise DataError(
                    "`tools` are read with a chat template and a prompt: they would be left out",
                    where=str(origin),
                    fix="leave them out of the row, or choose a model with a chat template that knows `tools`"
                    if renderer is None
                    else "leave them out of the row, or give it a prompt",
                )
            return encode_text(tokenizer, text_of(turns), max_length)
        rendered = renderer(turns, tools=tools, origin=origin)
        return rendered.input_ids, rendered.cut_tokens

    return read


def score_pair_renderer(read: Read, system_prompt: str | None = None) -> Render:
    """Render a preference for a model that scores: the better text, the worse one in ``extra``."""

    def render(row: Row) -> Rendered:
        tools, pair = tools_of(row), conversations(row, system_prompt)
        (better, one), (worse, other) = (read(turns, tools, row.origin) for turns in pair)
        if better == worse:
            raise _indistinct(row, one + other)
        extra: dict[str, list[int] | list[float]] = {SECOND_TEXT: worse, "margin": [margin_of(row) or 0.0]}
        return Rendered(better, label=0, cut_tokens=one + other, extra=extra)

    return render
