"""Reads the elements of a JSON array one by one, with their line numbers, in memory bounded by one element."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

LONGEST_RECORD = 64 * 2**20
"""Characters (or bytes) of the longest record that is read; more is a file of another format or a lost quote."""

_TAIL = 16  # an error this close to the end of the window may only mean that the window ends there
_SPACE = re.compile(r"[ \t\r\n]*")


class BadValue(ValueError):
    """Not the JSON that was expected; ``line`` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; refuses one that has a key twice, of which JSON readers silently keep the last."""
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
"""Strict decoder: no key twice, no NaN or Infinity."""


class JsonStream:
    """A window over decoded text that slides forward value by value.

    Args:
        chunks: The text of the file, in pieces of any size.
    """

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._text = ""
        self._position = 0
        self._ended = False
        self.line = 1

    def peek(self) -> str:
        """The next character that is no white space, not taken; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._position)
            self._advance(match.end() - self._position if match else 0)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        """Step over one character that must come next.

        Raises:
            BadValue: Another one comes.
        """
        found = self.peek()
        if found != expected:
            what = f"found {found!r}" if found else "the file ends"
            raise BadValue(f"expected {expected!r}, but {what}", self.line)
        self._advance(1)

    def value(self) -> Any:
        """The next JSON value.

        Raises:
            BadValue: It is malformed, incomplete or longer than :data:`LONGEST_RECORD`.
        """
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:
                if not self._may_be_cut(error):
                    raise self._bad(error) from error
                if len(self._text) - self._position > LONGEST_RECORD:
                    raise BadValue(f"a value longer than {LONGEST_RECORD >> 20} MB", self.line) from error
                if not self._more():
                    raise self._bad(error) from error
                continue
            if end == len(self._text) and not self._ended and self._more():
                continue  # a number may go on in the next chunk
            self._advance(end - self._position)
            return value

    def _may_be_cut(self, error: Exception) -> bool:
        if self._ended or not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL

    def _bad(self, error: Exception) -> BadValue:
        if isinstance(error, json.JSONDecodeError):
            line = self.line + self._text.count("\n", self._position, error.pos)
            return BadValue(error.msg + (f" (the record begins on line {self.line})" if line > self.line else ""), line)
        return BadValue(str(error) or "nested too deeply", self.line)

    def _advance(self, characters: int) -> None:
        end = self._position + characters
        self.line += self._text.count("\n", self._position, end)
        self._position = end

    def _more(self) -> bool:
        """Read on: as much again as the window holds, so that a long value is not scanned over and over."""
        wanted = max(1, len(self._text) - self._position)
        pieces = [self._text[self._position :]]
        while wanted > 0 and not self._ended:
            piece = next(self._chunks, None)
            self._ended = piece is None
            if piece:
                pieces.append(piece)
                wanted -= len(piece)
        self._text, self._position = "".join(pieces), 0
        return len(pieces) > 1
