"""Rows for encoder-decoder models: what the encoder reads, and what the decoder shall write."""

from __future__ import annotations

from typing import Any

from tunesmith.data.render import Render, Rendered, encode_text
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.tasks.base import Task

TARGET_IDS = "target_ids"
"""Name under which :attr:`Rendered.extra` holds the tokens to write, with the special tokens that end them."""


def source_target_renderer(tokenizer: Any, task: Task, max_length: int, system_prompt: str | None = None) -> Render:
    """Render rows for an encoder-decoder model; all tokens of the target carry loss.

    Args:
        tokenizer: The model's.
        task: Whose rows.
        max_length: Most tokens of the source, and of the target; longer ones lose their end.
        system_prompt: Put before every source (``summarize: `` is what T5 was taught).
    """

    def render(row: Row) -> Rendered:
        source_ids, cut = encode_text(tokenizer, source_text(task, row, system_prompt), max_length)
        target_ids, cut_target = encode_target(tokenizer, task.target_text(row), max_length)
        if not source_ids:
            raise DataError("there is nothing to read in this example", where=str(row.origin), fix="fill it in")
        return Rendered(input_ids=source_ids, cut_tokens=cut + cut_target, extra={TARGET_IDS: target_ids})

    return render


def source_text(task: Task, row: Row, system_prompt: str | None) -> str:
    """What the encoder reads: the system prompt (on a line of its own unless it ends in white space) and the input."""
    prompt = system_prompt or ""
    return prompt + ("\n" if prompt and not prompt[-1].isspace() else "") + task.input_text(row)


def encode_target(tokenizer: Any, text: str, max_length: int) -> tuple[list[int], int]:
    """Tokens of a text to write, ended by EOS, and how many were cut.

    Raises:
        DataError: The tokenizer knows no EOS, so no answer would ever end.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the model's tokenizer has no EOS token, so answers would not end", fix="set its `eos_token`")
    eos = tokenizer.eos_token_id
    encoded = tokenizer(text_target=text, split_special_tokens=True, verbose=False)["input_ids"]
    ids = list(encoded) if eos in encoded else [*encoded, eos]
    # Unigram tokenizers (T5's) find "</s>" in a text although they are told to split it: only the last one is ours.
    own = len(ids) - 1 - ids[::-1].index(eos)
    ids = [token for place, token in enumerate(ids) if token != eos or place == own]
    cut = max(0, len(ids) - max_length)
    return ids[: max_length - 1] + ids[-1:] if cut else ids, cut
