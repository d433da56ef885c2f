"""Examples as token arrays on disk, the order in which they are seen, and their batches.

The order is a function of (seed, epoch) alone, so a data position is two numbers and going back to it costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.dropped import sieved
from tunesmith.data.render import Rendered
from tunesmith.data.rows import Origin, Row
from tunesmith.events import Listener, Notice, Progress, nobody

if TYPE_CHECKING:
    import torch

PASS_COST = 256
"""What one more forward and backward pass costs, in tokens of a longer one: for each pass the weights are laid out
anew for the matrix units. Of 64, 128 and 256, this made SmolLM2-135M fastest on a CPU."""

SECOND_TEXT = "rejected"
"""The column of :attr:`TokenFile.extra` with the tokens of a second text, which the model is shown too."""

_REPORT_EVERY = 500


class TokenFile:
    """Rendered examples as flat arrays in a folder, memory-mapped: the set may be larger than memory.

    Attributes:
        offsets: (N + 1,) where each example's tokens begin, and where the last one's end.
        lengths: (N,) tokens of each example.
        has_weights: Whether tokens of the input are predicted.
        loss_weight: (N,) total loss weight of each example (1 for a class label).
        extra: Name -> what the renderer gave besides, a ragged column each.
        rows: What each example was rendered from.
        origins: Where each example came from.
        states: What the frozen layers of the model make of each token, where that is known.
    """

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.has_labels = bool(meta["has_labels"])
        self.cut_examples = int(meta["cut_examples"])
        self.rows = rows
        self.origins: Sequence[Origin] = _Origins(rows)
        self.offsets = np.fromfile(folder / "offsets.bin", dtype=np.int64)
        self._labels = np.fromfile(folder / "labels.bin", dtype=np.int32)
        self._tokens = _map(folder / "tokens.bin", np.int32)
        self._weights = _map(folder / "weights.bin", np.float32)
        self.has_weights = len(self._weights) > 0
        self.extra = {
            name: Ragged.read(folder, f"extra.{name}", np.dtype(kind)) for name, kind in meta["extra"].items()
        }
        self.lengths = np.diff(self.offsets)
        self.loss_weight = np.fromfile(folder / "loss_weight.bin", dtype=np.float64)
        self.states: States | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, name: str, values: np.ndarray) -> None:
        """Give every example further values, (N, W): a column of :attr:`Batch.extra` that is kept in memory."""
        offsets = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
        self.extra[name] = Ragged(offsets, values.reshape(-1))

    @property
    def digest(self) -> str:
        """Hash of the examples' tokens, of their loss weights, and of which tokens see each other."""
        digest = hashlib.sha256()
        seen = [self.extra["segments"].values] if "segments" in self.extra else []
        for array in (self.offsets, self._tokens, self._weights, *seen):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def tokens(self, index: int) -> np.ndarray:
        """Token ids of one example, (S,) int32."""
        return self._tokens[self.offsets[index] : self.offsets[index + 1]]

    def weights(self, index: int) -> np.ndarray:
        """Loss weights of one example's tokens, (S,) float32."""
        return self._weights[self.offsets[index] : self.offsets[index + 1]]

    def label(self, index: int) -> int:
        """Class index of one example."""
        return int(self._labels[index])

    @property
    def total_tokens(self) -> int:
        """Tokens of all examples, without padding."""
        return int(self.offsets[-1])

    def used(self, size: int) -> np.ndarray:
        """Which of the first ``size`` token ids occur, (size,) bool."""
        found = np.zeros(size, dtype=bool)
        for column in (self._tokens, *(column.values for name, column in self.extra.items() if name == SECOND_TEXT)):
            found[column] = True
        return found

    @property
    def varies(self) -> bool:
        """Whether the model is shown something else of an example in each epoch."""
        return False

    @property
    def state_offsets(self) -> np.ndarray:
        """(N + 1,) where each example's :attr:`states` begin, and where the last one's end."""
        return self.offsets

    def batch(self, rows: Sequence[int], pad_id: int, multiple_of: int, epoch: int | None) -> Batch:
        """What :func:`collate` gives: the examples padded to one rectangle."""
        import torch

        width = max(int(self.lengths[row]) for row in rows)
        width = math.ceil(width / multiple_of) * multiple_of
        input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
        weights = np.zeros((len(rows), width), dtype=np.float32) if self.has_weights else None
        for n, row in enumerate(rows):
            length = int(self.lengths[row])
            input_ids[n, :length] = self.tokens(row)
            if weights is not None:
                weights[n, :length] = self.weights(row)
        lengths = self.lengths[list(rows)]
        mask = np.arange(width)[None, :] < lengths[:, None]
        ids = torch.from_numpy(input_ids)
        return Batch(
            input_ids=ids,
            attention_mask=torch.from_numpy(mask),
            loss_weights=None if weights is None else torch.from_numpy(weights),
            labels=torch.tensor([self.label(row) for row in rows]) if self.has_labels else None,
            rows=list(rows),
            tokens=int(lengths.sum()),
            extra={name: torch.from_numpy(_rectangle(column, rows)) for name, column in self.extra.items()},
            epoch=epoch,
            states=None if self.states is None else (ids, self.states.rectangle(rows, width)),
        )


@dataclass(frozen=True)
class States:
    """Hidden states of all tokens of a :class:`TokenFile`: one after the other, mapped from a file.

    Attributes:
        offsets: (N + 1,) where each example's tokens begin.
        values_Td: Of all its T tokens.
    """

    offsets: np.ndarray
    values_Td: torch.Tensor

    def rectangle(self, rows: Sequence[int], width: int) -> torch.Tensor:
        """Those of some examples, (B, S, d), zero on padding."""
        result_BSd = self.values_Td.new_zeros(len(rows), width, self.values_Td.shape[1])
        for states_Sd, row in zip(result_BSd, rows, strict=True):
            begin, end = int(self.offsets[row]), int(self.offsets[row + 1])
            states_Sd[: end - begin] = self.values_Td[begin:end]
        return result_BSd


@dataclass(frozen=True)
class Ragged:
    """Rows of differing lengths in one flat array on disk."""

    offsets: np.ndarray
    values: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @staticmethod
    def read(folder: Path, name: str, kind: np.dtype[Any]) -> Ragged:
        """Map the column that :class:`_RaggedWriter` wrote."""
        return Ragged(np.fromfile(folder / f"{name}.offsets.bin", dtype=np.int64), _map(folder / f"{name}.bin", kind))


class _RaggedWriter:
    """Appends rows to a column: int32 if the first row that is not empty holds integers, else float32."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._file = (folder / f"{name}.bin").open("wb")
        self._offsets = [0]
        self.kind: np.dtype[Any] | None = None

    def add(self, values: Sequence[int] | Sequence[float]) -> None:
        array = np.asarray(values)
        if len(array) and self.kind is None:
            self.kind = np.dtype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)
        array.astype(self.kind or np.int32).tofile(self._file)
        self._offsets.append(self._offsets[-1] + len(array))

    def close(self) -> None:
        self._file.close()
        np.asarray(self._offsets, dtype=np.int64).tofile(self._folder / f"{self._name}.offsets.bin")


def write_tokens(
    rows: Sequence[Row],
    render: Callable[[Row], Rendered],
    folder: Path,
    *,
    what: str = "rendering",
    dropped_to: Path | None = None,
    on_event: Listener = nobody,
) -> TokenFile:
    """Render rows into a :class:`TokenFile`. Examples that had to be cut are counted and announced.

    Args:
        rows: What to render.
        render: Raises :class:`DataError` for a row from which nothing can be learned as the recipe wants it.
        folder: Filled.
        what: For the progress bar.
        dropped_to: File for such rows (``data.drop_bad``), whose number is announced; ``None``: they are an error.
        on_event: Told progress, what was cut and what was left out.

    Raises:
        DataError: As ``render`` does, with the row's place.
    """
    return write_examples(rows, sieved(rows, render, dropped_to, what, on_event), folder, what=what, on_event=on_event)


def write_examples(
    rows: Sequence[Row],
    examples: Iterable[tuple[int, Rendered]],
    folder: Path,
    *,
    what: str = "rendering",
    on_event: Listener = nobody,
) -> TokenFile:
    """Write examples of which a row may give several, or which hold several rows.

    Args:
        rows: Where the examples come from.
        examples: Each with the number of the (first) row it comes from.
        folder: Filled.
        what: For the progress bar.
        on_event: Told the progress, and how many examples were cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owners: list[int] = []
    offsets, labels, loss_weight, cut = [0], [], [], 0
    first_cut: str | None = None
    extra: dict[str, _RaggedWriter] = {}
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "weights.bin").open("wb") as weights:
        for number, example in examples:
            owners.append(number)
            np.asarray(example.input_ids, dtype=np.int32).tofile(tokens)
            if example.loss_weights is not None:
                np.asarray(example.loss_weights, dtype=np.float32).tofile(weights)
            offsets.append(offsets[-1] + len(example.input_ids))
            labels.append(-1 if example.label is None else example.label)
            loss_weight.append(1.0 if example.loss_weights is None else float(sum(example.loss_weights)))
            cut += example.cut_tokens > 0
            first_cut = first_cut or (str(rows[number].origin) if example.cut_tokens else None)
            if len(owners) == 1:
                extra = {name: _RaggedWriter(folder, f"extra.{name}") for name in example.extra}
            for name, column in extra.items():
                column.add(example.extra[name])
            if len(owners) % _REPORT_EVERY == 0:
                on_event(Progress(what=what, done=number, total=len(rows)))
    on_event(Progress(what=what, done=len(rows), total=len(rows)))
    np.asarray(offsets, dtype=np.int64).tofile(folder / "offsets.bin")
    np.asarray(labels, dtype=np.int32).tofile(folder / "labels.bin")
    np.asarray(loss_weight, dtype=np.float64).tofile(folder / "loss_weight.bin")
    for column in extra.values():
        column.close()
    kinds = {name: (column.kind or np.dtype(np.int32)).name for name, column in extra.items()}
    meta = {"has_labels": bool(labels) and labels[0] >= 0, "cut_examples": cut, "extra": kinds}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    if cut:
        on_event(
            Notice(
                level="warning",
                message=f"{cut} of {len(rows)} examples were too long and lost their tail ({what})",
                where=first_cut,
                fix="raise `data.max_length` if the model allows it, or shorten the texts",
            )
        )
    return TokenFile(folder, _Taken(rows, np.asarray(owners, dtype=np.int64)))


@dataclass(frozen=True)
class _Taken(Sequence[Row]):
    """The row of each example: ``owners`` has its number."""

    rows: Sequence[Row]
    owners: np.ndarray

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # slices are not needed
        return self.rows[int(self.owners[index])]


@dataclass(frozen=True)
class _Origins(Sequence[Origin]):
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Origin:  # type: ignore[override]  # slices are not needed
        return self.rows[index].origin


def _map(path: Path, dtype: type | np.dtype[Any]) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


@dataclass(frozen=True)
class Batch:
    """A padded rectangle of examples: B rows of S tokens.

    Attributes:
        input_ids: (B, S) int64, padded on the right.
        attention_mask: (B, S) bool, false on padding.
        loss_weights: (B, S) float32, weight of predicting each token; ``None`` where none of them is predicted.
        labels: (B,) int64 class indices; ``None`` for text.
        rows: Index of each example in its data set.
        tokens: Real tokens, without padding.
        extra: Name -> (B, W) int64 or float32, W the longest row of this column here; integers padded with -1, others
            with 0.
        epoch: In which it is learned from; ``None`` if it is only measured on. Objectives that draw at random draw
            from (seed, epoch, row), so that neither a resume nor the size of a forward pass changes what is drawn.
        states: What the frozen layers make of these very ``input_ids``, see :attr:`known_states`.
        pixels: (B, 3, H, W) float32, of pictures; their ``input_ids`` say nothing.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    loss_weights: torch.Tensor | None
    labels: torch.Tensor | None
    rows: list[int]
    tokens: int
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    epoch: int | None = None
    states: tuple[torch.Tensor, torch.Tensor] | None = None
    pixels: torch.Tensor | None = None

    @property
    def known_states(self) -> torch.Tensor | None:
        """(B, S, d) of the frozen layers; ``None`` if not known, or if the tokens are others than those of the set.

        Whoever makes another batch of this one (hides words, takes texts apart) makes other ``input_ids``.
        """
        return self.states[1] if self.states is not None and self.states[0] is self.input_ids else None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        input_ids, known = self.input_ids.to(device, non_blocking=True), self.known_states
        return Batch(
            input_ids,
            self.attention_mask.to(device, non_blocking=True),
            None if self.loss_weights is None else self.loss_weights.to(device, non_blocking=True),
            None if self.labels is None else self.labels.to(device, non_blocking=True),
            self.rows,
            self.tokens,
            {name: values.to(device, non_blocking=True) for name, values in self.extra.items()},
            self.epoch,
            None if known is None else (input_ids, known.to(device, non_blocking=True)),
            None if self.pixels is None else self.pixels.to(device, non_blocking=True),
        )


def collate(data: TokenFile, rows: Sequence[int], pad_id: int, multiple_of: int = 1, epoch: int | None = None) -> Batch:
    """Some examples as one batch.

    Args:
        data: The examples.
        rows: Which of them.
        pad_id: Token that fills the rows; it carries no loss and is masked by length, never by its id.
        multiple_of: The width is rounded up to a multiple of this, so that few different shapes occur.
        epoch: In which the examples are learned from.
    """
    return data.batch(rows, pad_id, multiple_of, epoch)


def _rectangle(column: Ragged, rows: Sequence[int]) -> np.ndarray:
    """Rows of a ragged column padded on the right, see :attr:`Batch.extra`."""
    found = [column[row] for row in rows]
    whole = np.issubdtype(column.values.dtype, np.integer)
    result = np.full((len(rows), max(len(row) for row in found)), -1 if whole else 0, np.int64 if whole else np.float32)
    for line, row in zip(result, found, strict=True):
        line[: len(row)] = row
    return result


def epoch_batches(
    lengths: np.ndarray, *, seed: int, epoch: int, batch_size: int | None = None, batch_tokens: int | None = None
) -> list[np.ndarray]:
    """The global batches of one epoch: every example exactly once, in an order that (seed, epoch) alone decides.

    Batches are drawn at random. Batches of like length would save padding, but a batch's loss is a mean over its
    tokens, so the tokens of short texts would weigh more; like lengths meet in :func:`micro_batches` instead.

    Args:
        lengths: (N,) tokens of each example.
        seed: The run's seed.
        epoch: Counted from 0.
        batch_size: Examples in a batch; or
        batch_tokens: the most real tokens in a batch of more than one example.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    if batch_size:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return _cut_by_tokens(order, lengths, batch_tokens or 1)


def _cut_by_tokens(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut into runs of as many examples as the budget allows, of one at least."""
    cuts, start, total = [], 0, 0
    for n, length in enumerate(lengths[order].tolist()):
        if n > start and total + length > budget:
            cuts.append(order[start:n])
            start, total = n, 0
        total += length
    return [*cuts, order[start:]] if len(order) else []


def micro_batches(
    lengths: np.ndarray,
    batch: np.ndarray,
    micro_tokens: int,
    multiple_of: int = 1,
    padded: bool = True,
) -> Iterator[np.ndarray]:
    """Split a global batch into pieces of at most ``micro_tokens`` tokens, one forward pass each, the longest first.

    How a batch is split never changes its gradient (up to rounding): the loop divides by the whole batch's weight.
    Pieces that will be padded are cut where their tokens, padding included, and :data:`PASS_COST` are fewest in sum.

    Args:
        lengths: (N,) tokens of each example of the set.
        batch: Indices of the batch's examples.
        micro_tokens: The most tokens of a piece of more than one row, padding included where there is any.
        multiple_of: As for :func:`collate`, which rounds the width up.
        padded: Whether the model computes the padding; if not (:mod:`tunesmith.models.packing`), the fewest pieces.
    """
    ordered = batch[np.argsort(-lengths[batch], kind="stable")]
    if not padded:
        yield from _cut_by_tokens(ordered, lengths, micro_tokens)
        return
    widths = np.maximum(1, -(-lengths[ordered] // multiple_of)) * multiple_of
    start = 0
    for end in cheapest_cuts(widths, micro_tokens, PASS_COST):
        yield ordered[start:end]
        start = end


def cheapest_cuts(widths: np.ndarray, most: int | None, overhead: int) -> list[int]:
    """Where to cut rows of falling width into rectangles: the end of each, by dynamic programming over the ends.

    Args:
        widths: (N,) width of each row; a rectangle is as wide as its first.
        most: Tokens of a rectangle of more than one row, if there is a limit.
        overhead: Cost of a rectangle besides its tokens, in tokens.
    """
    total = len(widths)
    cost = np.full(total + 1, np.iinfo(np.int64).max)  # of the rows before each cut
    cost[0] = 0
    begin = np.zeros(total + 1, dtype=np.int64)  # where the rectangle that ends at each cut begins
    for start in range(total):
        width = int(widths[start])
        fitting = total if most is None else max(1, most // width)
        rows = np.arange(1, 1 + min(fitting, total - start))
        reached = cost[start] + overhead + width * rows
        ends = start + rows
        better = reached < cost[ends]
        cost[ends[better]] = reached[better]
        begin[ends[better]] = start
    cuts = [total] if total else []
    while cuts and begin[cuts[-1]]:
        cuts.append(int(begin[cuts[-1]]))
    return cuts[::-1]
