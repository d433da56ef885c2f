"""Examples as the model sees them: which tokens it reads, which it learns, what was cut; for terminal and report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.render import Render, Rendered
from tunesmith.data.rows import Row
from tunesmith.data.source_target import TARGET_IDS
from tunesmith.errors import DataError
from tunesmith.tasks.base import Task


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind.

    Attributes:
        text: The tokens as text, special ones spelled out.
        weight: Of the loss of predicting each of them; 0 for what is only read.
        special: Whether they are special tokens.
    """

    text: str
    weight: float = 0.0
    special: bool = False


@dataclass(frozen=True)
class ShownExample:
    """One example.

    Attributes:
        where: ``file:line``.
        pieces: All tokens, in order.
        tokens: How many there are.
        learned_tokens: How many of them carry loss.
        cut_tokens: How many were cut off behind them.
        answer: What is learned, where that is more than the tokens which carry loss: labels, a score, spans.
    """

    where: str
    pieces: list[Piece]
    tokens: int
    learned_tokens: int
    cut_tokens: int
    answer: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """The numbers in words."""
        learned = f", {self.learned_tokens:,} of them learned" if self.learned_tokens else ""
        cut = f"; {self.cut_tokens:,} more were cut off" if self.cut_tokens else ""
        return f"{self.tokens:,} token{'' if self.tokens == 1 else 's'}{learned}{cut}"


def show_rows(rows: Sequence[Row], count: int, render: Render, tokenizer: Any, task: Task) -> list[ShownExample]:
    """Show rows at even distances, the same ones each time; rows that cannot be rendered are passed over.

    Args:
        rows: To choose from.
        count: How many to show.
        render: As training does it.
        tokenizer: With which ``render`` works.
        task: Whose rows.
    """
    step = max(1, len(rows) // max(1, count))
    found: list[ShownExample] = []
    for number in range(0, len(rows), step):
        if len(found) == count:
            break
        row = rows[number]
        try:
            found.append(show(render(row), row, tokenizer, task))
        except DataError:  # the checks name such a row and say what is wrong
            continue
    return found


def show(rendered: Rendered, row: Row, tokenizer: Any, task: Task) -> ShownExample:
    """One rendered row."""
    ids = list(rendered.input_ids)
    weights = list(rendered.loss_weights or [0.0] * len(ids))
    target = [int(token) for token in rendered.extra.get(TARGET_IDS, [])]  # what an encoder-decoder model writes
    pieces = [*_pieces(ids, weights, tokenizer), *_pieces(target, [1.0] * len(target), tokenizer)]
    learned = sum(weight > 0 for weight in weights) + len(target)
    return ShownExample(
        where=str(row.origin),
        pieces=pieces,
        tokens=len(ids) + len(target),
        learned_tokens=learned,
        cut_tokens=rendered.cut_tokens,
        answer=None if learned and task.answer != "spans" else task.target_text(row),
    )


def _pieces(ids: Sequence[int], weights: Sequence[float], tokenizer: Any) -> Iterator[Piece]:
    """Runs of tokens of one weight; special tokens stand by themselves."""
    specials = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    kinds = [(weight, token in specials) for token, weight in zip(ids, weights, strict=True)]
    start = 0
    for (weight, special), run in itertools.groupby(kinds):
        end = start + len(list(run))
        text = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield Piece(text, weight, special)
        start = end


def shortened(text: str, limit: int) -> str:
    """A text without its middle, if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters not shown) … {text[-half:]}"
