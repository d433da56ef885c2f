"""From tokens to text as they come: whole characters only, and nothing of what a stop string will cut off."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers.decoders import DecodeStream

from tunesmith.data.thoughts import EmptyThoughtFilter, opens_thought

TOKENS_BEFORE = 8
"""Tokens of a prompt that tell how the first one behind it is written, and whether a thought has begun."""


class TextStream:
    """The text of one answer, piece by piece.

    A piece is given out once it can no longer change: a character that is spread over several tokens waits for its
    last one, and an end that may be the beginning of a stop string waits for what follows. The pieces together are the
    whole text.

    Args:
        tokenizer: The model's fast tokenizer.
        stop: Texts that end the answer; they are not part of it.
        keep_special: Whether special tokens are text too: some models mark their tool calls by them.
        behind: Tokens that it stands behind. A turn begins anew there; any other text goes on, and keeps the space
            before its first word, which many decoders strip.
        is_turn: Whether this is a turn of a conversation: an empty thought before it is then no part of the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        *,
        keep_special: bool = False,
        is_turn: bool = False,
        behind: Sequence[int] = (),
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        last = list(behind[-TOKENS_BEFORE:])
        before = [] if is_turn else last
        if self._backend.decode(before, skip_special_tokens=not keep_special).endswith("\ufffd"):
            before = []  # a character that is cut: the stream would give all of it out again
        self._decoder = DecodeStream(ids=before, skip_special_tokens=not keep_special)
        self._stop = [text for text in stop if text]
        opened = is_turn and opens_thought(self._backend.decode(last, skip_special_tokens=False))
        self._thought = EmptyThoughtFilter(opened=opened) if is_turn else None
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is settled by one more token; sets :attr:`stopped` at a stop string."""
        piece = self._decoder.step(self._backend, token) or ""
        self._held += self._thought.push(piece) if self._thought else piece
        return self._settle(last=False)

    def finish(self) -> str:
        """What was held back; a character that was cut in the middle is left out. May set :attr:`stopped`, too."""
        if self.stopped:
            return ""
        self._held += self._thought.push("", last=True) if self._thought else ""
        return self._settle(last=True)

    def _settle(self, *, last: bool) -> str:
        """Take what can no longer change out of the held text, up to a stop string."""
        found = [place for place in (self._held.find(text) for text in self._stop) if place >= 0]
        if found:
            self.stopped = True
            settled, self._held = self._held[: min(found)], ""
            return settled
        end = len(self._held) - (0 if last else self._open_end())
        settled, self._held = self._held[:end], self._held[end:]
        return settled

    def _open_end(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(text) for text in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._stop):
                return length
        return 0


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes that a token stands for, even if they are only a part of a character."""
    text = tokenizer.convert_ids_to_tokens(token)
    if text is None or token in tokenizer.all_special_ids:
        return (text or "").encode()
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):  # SentencePiece's byte fallback
        return bytes([int(text[3:5], 16)])
    table = _byte_of_character()
    if "ByteLevel" in str(tokenizer.backend_tokenizer.decoder) and all(c in table for c in text):
        return bytes(table[c] for c in text)
    return text.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The inverse of GPT-2's printable stand-ins for bytes, which all byte-level tokenizers use."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
