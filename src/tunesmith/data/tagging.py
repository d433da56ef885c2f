"""Between the words of a text and the pieces that a tokenizer cuts it into, in both directions.

A word's first piece carries its tag (Devlin et al. 2018, arXiv 1810.04805, section 5.3). Offsets come from the
tokenizer, so what a model tags leads back to characters exactly. Where a tokenizer joins several words into one piece,
they share its tag.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.render import Render, Rendered
from tunesmith.data.rows import Row
from tunesmith.data.spans import Span, spans_of, words_of
from tunesmith.data.tag_schemes import OUTSIDE, spans_of_tags, tags_of_spans
from tunesmith.data.words import Offsets
from tunesmith.errors import DataError

IGNORED = -1
"""Of a piece that carries no tag: special tokens, and pieces inside a word."""

OVERLAP = 0.25
"""Share of a window that the next one repeats, where a text is longer than the model takes."""


def tag_names(labels: Sequence[str]) -> list[str]:
    """The outputs of a head for these labels: O, then B- and I- of each label."""
    return [OUTSIDE, *(f"{mark}-{label}" for label in labels for mark in "BI")]


@dataclass(frozen=True)
class Window:
    """A text, or a part of it, as the model sees it.

    Attributes:
        input_ids: Token ids with the model's special tokens, length S.
        word_of_piece: For each of them the word it belongs to, :data:`IGNORED` for special tokens; S values.
        heads: Word -> index of its first piece, for the words whose first piece is in this window.
        reach: Word -> the character behind its last piece, which may have swallowed following words.
    """

    input_ids: list[int]
    word_of_piece: list[int]
    heads: dict[int, int]
    reach: dict[int, int]


def windows(tokenizer: Any, text: str, words: Sequence[Offsets], max_length: int) -> list[Window]:
    """Cut a text into pieces, and the pieces into overlapping windows of at most ``max_length``; none without pieces.

    Args:
        tokenizer: A fast one.
        text: The text.
        words: Where its words stand, in their order.
        max_length: Longest window, special tokens included.
    """
    room = max_length - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=max_length,
        stride=int(OVERLAP * room),
        return_overflowing_tokens=True,
        split_special_tokens=True,
        verbose=False,
    )
    first_piece: dict[int, int] = {}
    return [_window(part, text, words, first_piece) for part in encoded.encodings if part.ids]


def _window(part: Any, text: str, words: Sequence[Offsets], first_piece: dict[int, int]) -> Window:
    """One window; ``first_piece`` (word -> character at which its first piece begins) goes from window to window."""
    word_of_piece: list[int] = []
    heads: dict[int, int] = {}
    reach: dict[int, int] = {}
    for place, ((start, end), special) in enumerate(zip(part.offsets, part.special_tokens_mask, strict=True)):
        while start < end and text[start].isspace():  # byte-level tokenizers count the space before a word to it
            start += 1
        word = IGNORED if special or start == end else bisect.bisect_right(words, start, key=_start) - 1
        word_of_piece.append(word)
        if word != IGNORED:
            reach[word] = end
            if first_piece.setdefault(word, start) == start:
                heads.setdefault(word, place)
    return Window(list(part.ids), word_of_piece, heads, reach)


def _start(word: Offsets) -> int:
    return word[0]


def _end(word: Offsets) -> int:
    return word[1]


def word_tags(row: Row, words: Sequence[Offsets]) -> list[str]:
    """The IOB2 tag of each word of a row; a word that a span only touches belongs to it."""
    found = []
    for span in spans_of(row):
        first = bisect.bisect_right(words, span.start, key=_end)
        behind = bisect.bisect_left(words, span.end, key=_start)
        found.append((first, behind, span.label))
    return tags_of_spans(found, len(words))


def tag_renderer(tokenizer: Any, labels: Sequence[str], max_length: int, *, all_pieces: bool = False) -> Render:
    """Render rows for a model with a head on every token.

    A text longer than ``max_length`` loses its end. A span of a label that is not among ``labels`` counts as outside:
    the head has no output for it.

    Args:
        tokenizer: The model's.
        labels: Of the spans in the training data.
        max_length: Longest example in tokens.
        all_pieces: Whether all pieces of a word carry its tag (I- behind the first), instead of the first alone.

    Returns:
        A function whose results have loss weight 1 where there is a tag, and the tags in ``extra["tags"]`` (S values,
        :data:`IGNORED` elsewhere). It raises :class:`DataError` for a text of which no piece is left.
    """
    number = {tag: n for n, tag in enumerate(tag_names(labels))}

    def render(row: Row) -> Rendered:
        words = words_of(row)
        first, *rest = windows(tokenizer, row.fields["text"], words, max_length) or [Window([], [], {}, {})]
        numbers = [number.get(tag, 0) for tag in word_tags(row, words)]
        tags = [IGNORED] * len(first.input_ids)
        for place, word in enumerate(first.word_of_piece):
            if place == first.heads.get(word):
                tags[place] = numbers[word]
            elif all_pieces and word != IGNORED:
                tags[place] = _inside(numbers[word])
        if all(tag == IGNORED for tag in tags):
            raise DataError(
                "the tokenizer leaves nothing of this text, so nothing can be learned from it",
                where=str(row.origin),
                fix="remove the row",
            )
        cut = sum(sum(word != IGNORED for word in window.word_of_piece) for window in rest)
        weights = [float(tag != IGNORED) for tag in tags]
        return Rendered(input_ids=first.input_ids, loss_weights=weights, cut_tokens=cut, extra={"tags": tags})

    return render


def _inside(number: int) -> int:
    """The I- of a B- (odd numbers are B-, see :func:`tag_names`); other tags as they are."""
    return number + number % 2


def word_probabilities(
    parts: Sequence[Window], found: Sequence[np.ndarray], num_words: int, num_tags: int
) -> np.ndarray:
    """Tag probabilities of each word from those of the windows' pieces; where windows overlap, from the inner place.

    Args:
        parts: The windows of one text.
        found: (S, C) probabilities of each window.
        num_words: W.
        num_tags: C.

    Returns:
        (W, C); NaN for words without a piece of their own.
    """
    result = np.full((num_words, num_tags), np.nan)
    depth = np.full(num_words, -1)
    for window, probabilities in zip(parts, found, strict=True):
        for word, place in window.heads.items():
            inner = min(place, len(window.input_ids) - 1 - place)
            if inner > depth[word]:
                depth[word], result[word] = inner, probabilities[place]
    return result


def spans_from(
    probabilities: np.ndarray, text: str, words: Sequence[Offsets], parts: Sequence[Window], labels: Sequence[str]
) -> list[Span]:
    """The spans that the likeliest tags mean; an I- that continues nothing opens a span, as ``conlleval`` has it.

    Args:
        probabilities: (W, C) of the words, see :func:`word_probabilities`.
        text: Their text.
        words: Where they stand.
        parts: Its windows.
        labels: Of the head.
    """
    names = tag_names(labels)
    tagged = np.flatnonzero(~np.isnan(probabilities[:, 0])).tolist()
    has_piece = set(tagged)
    reach = {word: end for window in parts for word, end in window.reach.items()}
    spans = []
    for first, behind, label in spans_of_tags(names[n] for n in probabilities[tagged].argmax(1)):
        inside = tagged[first:behind]
        last = inside[-1]
        while last + 1 < len(words) and last + 1 not in has_piece and words[last + 1][0] < reach[inside[-1]]:
            last += 1
        start, end = words[inside[0]][0], words[last][1]
        column = names.index(f"B-{label}")
        score = float(probabilities[inside, column : column + 2].sum(1).mean())
        spans.append(Span(start, end, label, text[start:end], score))
    return spans
