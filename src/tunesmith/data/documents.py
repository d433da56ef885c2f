"""From documents to token blocks, for objectives that learn from bare text.

A document is tokenized whole and cut into blocks that fit the model, so nothing of it is lost. Causal blocks overlap by
one token: each token but the first is predicted exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.batches import TokenFile, write_examples
from tunesmith.data.dropped import sieved
from tunesmith.data.render import Rendered
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.events import Listener, Notice, nobody
from tunesmith.tasks.base import Task

Blocks = Callable[[Row], list[Rendered]]


def block_renderer(tokenizer: Any, task: Task, *, masked: bool, max_length: int) -> Blocks:
    """Turns a row into its blocks: for a model that fills in masked tokens, or for one that writes on.

    The returned function raises :class:`DataError` for a document of which nothing can be learned.
    """
    cut = masked_blocks if masked else causal_blocks

    def blocks(row: Row) -> list[Rendered]:
        found = cut(tokenizer, task.input_text(row), max_length)
        if not any(any(block.loss_weights or ()) for block in found):
            raise DataError(
                "the tokenizer leaves nothing of this text to learn", where=str(row.origin), fix="remove it"
            )
        return found

    return blocks


def causal_blocks(tokenizer: Any, text: str, max_length: int) -> list[Rendered]:
    """A document for training: behind the token that opens documents, and with EOS at its end."""
    ids = [*opened(tokenizer, text), *_eos(tokenizer)]
    return [Rendered(block, weights) for block, weights in windows(ids, max_length, context=1)]


def opened(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a document behind BOS, or behind EOS where the model has no BOS.

    So its first token has something to be predicted from (as in lm-evaluation-harness), and documents that follow each
    other are parted. Special tokens spelled out in the text stay text.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*([] if first is None else [first]), *ids]


def windows(ids: Sequence[int], length: int, context: int) -> Iterator[tuple[list[int], list[float]]]:
    """Cut tokens into windows in which each token but the first carries loss exactly once.

    Args:
        ids: The tokens.
        length: Longest window.
        context: How many tokens before the first one that carries loss a window shows (1 to ``length`` - 1).

    Yields:
        Tokens of a window and their loss weights, 0 for what is only shown.
    """
    done = 1
    while done < len(ids):
        start = max(0, done - context)
        end = min(len(ids), start + length)
        yield list(ids[start:end]), [0.0] * (done - start) + [1.0] * (end - done)
        done = end


def masked_blocks(tokenizer: Any, text: str, max_length: int) -> list[Rendered]:
    """A document in blocks with the model's own special tokens.

    Tokens that may be masked have a loss weight; ``extra["word"]`` numbers the words they belong to (-1: none).
    """
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        split_special_tokens=True,
        verbose=False,
    )
    blocks = []
    for number, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        words = [-1 if word is None else word for word in encoded.word_ids(number)]
        blocks.append(Rendered(list(ids), [1.0 - mark for mark in special], extra={"word": words}))
    return blocks


def packed(blocks: Iterable[tuple[int, Rendered]], max_length: int) -> Iterator[tuple[int, Rendered]]:
    """Put successive blocks into one row as long as they fit; ``extra["segments"]`` keeps them apart.

    The first token of each carries no loss, so no document is predicted from the one before it.
    """
    held: list[Rendered] = []
    first, size = 0, 0
    for number, block in blocks:
        if held and size + len(block.input_ids) > max_length:
            yield first, _joined(held)
            held, size = [], 0
        first = first if held else number
        held.append(block)
        size += len(block.input_ids)
    if held:
        yield first, _joined(held)


def _joined(blocks: Sequence[Rendered]) -> Rendered:
    return Rendered(
        [token for block in blocks for token in block.input_ids],
        [weight for block in blocks for weight in block.loss_weights or []],
        extra={"segments": [number for number, block in enumerate(blocks, 1) for _ in block.input_ids]},
    )


def write_documents(
    rows: Sequence[Row],
    render: Blocks,
    folder: Path,
    *,
    pack_to: int | None = None,
    what: str = "rendering",
    dropped_to: Path | None = None,
    on_event: Listener = nobody,
) -> TokenFile:
    """Write the blocks of documents as examples; says how many documents were longer than a block.

    Args:
        rows: The documents.
        render: Cuts one of them.
        folder: Filled.
        pack_to: Put several blocks into rows of this many tokens (causal blocks only).
        what: For the progress bar.
        dropped_to: As for :func:`~tunesmith.data.batches.write_tokens`.
        on_event: Told progress and cuts.

    Raises:
        DataError: As ``render`` does, with the row's place.
    """
    long: list[str] = []

    def blocks() -> Iterator[tuple[int, Rendered]]:
        for number, found in sieved(rows, render, dropped_to, what, on_event):
            if len(found) > 1:
                long.append(str(rows[number].origin))
            yield from ((number, block) for block in found)

    examples = blocks() if pack_to is None else packed(blocks(), pack_to)
    written = write_examples(rows, examples, folder, what=what, on_event=on_event)
    if long:
        message = (
            f"{len(long):,} of {len(rows):,} documents are longer than a block and were cut, not shortened ({what})"
        )
        on_event(Notice(level="info", message=message, where=long[0], fix="`data.max_length` is the length of a block"))
    return written


def _eos(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
