"""The running batch: requests join and leave at every step (continuous batching; Yu et al. 2022, "Orca").

A step reads the prompts of rows that have joined, up to a budget of tokens, then lets every row that is through with
its prompt write one token. Rows lie in the first slots of one :class:`SlotCache`; when one leaves, the last takes its
slot. The slots behind remember what they held: a prompt that begins with the same tokens (the next turn of a
conversation, a shared system prompt, the other answers of a group) starts from there.

transformers' own continuous batching (5.23) is made for GPUs: on a CPU it attends over the whole packed batch, 109
tokens a second where its padded ``generate`` makes 29,756 (64 prompts on a tiny Llama, two cores).
"""

from __future__ import annotations

import inspect
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch

from tunesmith.errors import UsageError
from tunesmith.generation.cache import SlotCache
from tunesmith.generation.sampling import Choice, Constraint, Draw, Sampling, choose
from tunesmith.generation.text import TextStream
from tunesmith.models import virtual_tokens, visibility
from tunesmith.models.model import Model, decoder_of

PROMPT_TOKENS = 1024
"""Prompt tokens, padding included, that one step reads: running rows wait no longer than that for a newcomer."""

MAX_ROWS = 64
"""Rows of the running batch."""

LENGTH_STEP = 64
"""The cache's length is a multiple of this: it grows (by a copy) once in so many tokens."""

FinishReason = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, or its end.

    Attributes:
        choice: The token; ``None`` where the answer ends without one (by an EOS, a cancellation, a failure).
        text: What text is settled now.
        finish_reason: Set on the last.
        end: The EOS that ended the answer, if one did.
    """

    choice: Choice | None
    text: str = ""
    finish_reason: FinishReason | None = None
    end: int | None = None


@dataclass(eq=False, kw_only=True)
class Request:
    """One answer to write.

    Attributes:
        prompt: Token ids; at least one.
        sampling: How its tokens are chosen.
        on_token: Told each token; called in the thread that steps the batch.
        adapter: Name of the adapter that the row uses; ``None`` for the base model.
        text: Turns the tokens into text and knows the stop strings; ``None`` if only tokens are wanted.
        constraint: What the answer may consist of.
        reused_tokens: Filled in: how many tokens of the prompt were known from earlier when it joined.
    """

    prompt: Sequence[int]
    sampling: Sampling
    on_token: Callable[[Token], None]
    adapter: str | None = None
    text: TextStream | None = None
    constraint: Constraint | None = None
    reused_tokens: int = 0


@dataclass(eq=False)
class _Row:
    """A request with what was written so far. The first ``filled`` of its tokens have their keys in its slot."""

    request: Request
    tokens: list[int]
    written: list[int]
    random: random.Random
    arrival: int
    filled: int = 0

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.filled

    def draw(self) -> Draw:
        return Draw(self.request.sampling, self.random, self.written, self.request.constraint)


@dataclass(frozen=True)
class _Memory:
    """What a slot behind the running rows still holds."""

    tokens: list[int] = field(default_factory=list)
    adapter: str | None = None
    age: int = 0


class RowAdapters(Protocol):
    """Adapters of which each row of a batch uses its own."""

    def __contains__(self, name: str) -> bool: ...

    def use(self, names: Sequence[str | None]) -> AbstractContextManager[None]:
        """While it lasts, each row of a pass has the adapter of its place; ``None``: the bare network."""
        ...


class RunningBatch:
    """Writes answers with one model. Not thread-safe: one thread adds, cancels and steps.

    Args:
        model: A causal model.
        max_rows: Rows that run together; more wait.
        cache_tokens: Slots times their length stay below this; where the rows grow too long for it, the youngest waits
            again (what it wrote is kept), and no row gets longer than that. ``None``: no limit.
        adapters: Those that requests may name; default: the network as it is, whatever they name.
        reuse_prompts: Whether to start from what a slot holds where a prompt begins the same.

    Raises:
        UsageError: The model's attention is of a kind that cannot be batched so.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_rows: int = MAX_ROWS,
        cache_tokens: int | None = None,
        adapters: RowAdapters | None = None,
        reuse_prompts: bool = True,
    ) -> None:
        reason = unsupported(model)
        if reason:
            raise UsageError(f"{model.name} cannot write in a running batch: {reason}")
        self.model = model
        self.max_rows = max_rows
        self.context = context_length(model)
        if cache_tokens is not None:  # with one place more for the padding
            room = cache_tokens // LENGTH_STEP * LENGTH_STEP - model.virtual_tokens - 1
            self.context = max(0, min(self.context, room))
        self._before = model.virtual_tokens
        with torch.inference_mode():
            self._opening = virtual_tokens.keys_and_values(model.wrapped) if self._before else []
        self.waiting: deque[_Row] = deque()
        self.running: list[_Row] = []
        self.tokens_written = 0
        self._cache = SlotCache()
        self._cache_tokens = cache_tokens
        self._adapters = adapters
        self._reuse = reuse_prompts
        self._memories: dict[int, _Memory] = {}
        self._clock = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Let a request join as soon as there is room.

        Raises:
            UsageError: The prompt is empty, or fills the model's context; the adapter is not loaded.
        """
        if self._adapters is not None and request.adapter is not None and request.adapter not in self._adapters:
            raise UsageError(f"the adapter {request.adapter} is not loaded", fix="load it first")
        if not request.prompt or len(request.prompt) >= self.context:
            raise UsageError(
                f"the prompt has {len(request.prompt)} tokens; the model takes 1 to {self.context - 1}",
                fix="shorten the prompt",
            )
        row = _Row(request, list(request.prompt), [], request.sampling.generator(), self._tick())
        self.waiting.append(row)

    def cancel(self, request: Request) -> None:
        """Take a request out, wherever it is; it is told that it was cancelled."""
        row = next((row for row in (*self.running, *self.waiting) if row.request is request), None)
        if row is None:
            return
        self._take_out(row)
        request.on_token(Token(None, finish_reason="cancelled"))

    def fail_all(self) -> None:
        """Give up everything, and begin with a fresh cache: a step has failed."""
        rows = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self._memories.clear()
        self._cache = SlotCache()
        for row in rows:
            row.request.on_token(Token(None, finish_reason="failed"))

    def withdraw(self, adapter: str | None) -> None:
        """An adapter was changed or is taken away: its answers fail, and nothing computed with it is used again."""
        for row in [row for row in (*self.running, *self.waiting) if row.request.adapter == adapter]:
            self._take_out(row)
            row.request.on_token(Token(None, finish_reason="failed"))
        self._memories = {slot: memory for slot, memory in self._memories.items() if memory.adapter != adapter}

    def _take_out(self, row: _Row) -> None:
        if row in self.running:
            self._leave(row)
        else:
            self.waiting.remove(row)

    def step(self) -> None:
        """Let rows join, read prompts, and write one token in each row that is through with its prompt."""
        self._make_room()
        self._admit()
        with torch.inference_mode():
            read = self._read_prompts()
            writing = [row for row in self.running if row.unread == 1 and row not in read]
            scores = [self._pass(rows) for rows in (read, writing) if rows]
            if scores:
                rows = read + writing
                choices = choose(torch.cat(scores), [row.draw() for row in rows])
                for row, choice in zip(rows, choices, strict=True):
                    self._write(row, choice)

    def run(self) -> None:
        """Step until all is written."""
        while self.busy:
            self.step()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    # --- joining and leaving -----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let rows join in the order of their arrival, until there is no room or the next had better wait."""
        while self.waiting and len(self.running) < self._slots_for([*self.running, self.waiting[0]]):
            row = self.waiting[0]
            slot = len(self.running)
            self._reserve([*self.running, row])  # it may take slots away, and what they remember
            source, shared = self._longest_start(row)
            if source is None:  # a running row is about to read the same tokens: this one waits and copies
                return
            self.waiting.popleft()
            if source != slot or not shared:
                self._keep(slot, spare=source)
            if source != slot and shared:
                self._cache.copy(source, slot, self._before + shared)
            self._cache.begin(slot, self._opening)
            self._memories.pop(slot, None)
            row.filled = row.request.reused_tokens = shared
            self.running.append(row)

    def _make_room(self) -> None:
        """Where the rows have grown too long for the cache, send the youngest back to wait."""
        while len(self.running) > self._slots_for(self.running):
            row = max(self.running, key=lambda row: row.arrival)
            self._leave(row)
            row.filled = 0
            self.waiting.appendleft(row)
        if self.running:
            self._reserve(self.running)

    def _slots_for(self, rows: Sequence[_Row]) -> int:
        """How many slots the cache may have while these rows are in it; at least one."""
        if self._cache_tokens is None:
            return self.max_rows
        return min(self.max_rows, max(1, self._cache_tokens // self._length_for(rows)))

    def _length_for(self, rows: Sequence[_Row]) -> int:
        """Length of the slots with which these rows can make their next step."""
        return slot_length(self.model, max((len(row.tokens) for row in rows), default=0))

    def _reserve(self, rows: Sequence[_Row]) -> None:
        """Give the cache a slot for each row, with some to spare, and a length that suffices for the next step."""
        cache = self._cache
        wanted = len(rows) + len(self._memories)  # what is remembered shall not be written over while there is room
        slots = cache.num_slots if cache.num_slots >= wanted else max(wanted, 2 * cache.num_slots)
        slots = min(slots, self._slots_for(rows))
        length = max(cache.length, self._length_for(rows))
        if self._cache_tokens is not None and slots * length > self._cache_tokens:
            length = self._length_for(rows)  # it was longer than it needs to be now
        if length < cache.length or slots < cache.num_slots:
            self._memories = {
                n: m for n, m in self._memories.items() if n < slots and self._before + len(m.tokens) <= length
            }
        cache.resize(slots, length)

    def _longest_start(self, row: _Row) -> tuple[int | None, int]:
        """The slot that holds the longest start of a row's tokens, and how many of them; all but the last at most.

        The slot is ``None`` where it pays to wait: a running row is still reading most of what this one would read.
        """
        free = len(self.running)
        if not self._reuse:
            return free, 0
        best, shared, coming = free, 0, 0
        for slot, other in enumerate(self.running):
            if other.request.adapter == row.request.adapter:
                length = _common_start(row.tokens, other.tokens)
                coming = max(coming, length)
                if min(length, other.filled) > shared:
                    best, shared = slot, min(length, other.filled)
        for slot, memory in self._memories.items():
            if slot >= free and memory.adapter == row.request.adapter:
                length = _common_start(row.tokens, memory.tokens)
                if length > shared:
                    best, shared = slot, length
        if coming > shared and 2 * (coming - shared) > len(row.tokens) - shared:
            return None, 0
        return best, shared

    def _keep(self, slot: int, spare: int) -> None:
        """Before a slot is written over, bring what it remembers to the slot that was left alone for longest."""
        memory = self._memories.get(slot)
        others = [n for n in range(slot + 1, self._cache.num_slots) if n != spare]
        if memory is None or not others:
            return
        oldest = min(others, key=lambda n: self._memories[n].age if n in self._memories else 0)
        self._cache.copy(slot, oldest, self._before + len(memory.tokens))
        self._memories[oldest] = memory

    def _leave(self, row: _Row) -> None:
        """Take a row out; the last one moves to its slot, and the last slot remembers it."""
        slot, last = self.running.index(row), len(self.running) - 1
        other = self.running[last]
        if other is not row:
            if self._reuse:
                self._cache.swap(slot, last, self._before + max(row.filled, other.filled))
            else:
                self._cache.copy(last, slot, self._before + other.filled)
            self.running[slot] = other
        self.running.pop()
        if self._reuse:
            self._memories[last] = _Memory(row.tokens[: row.filled], row.request.adapter, self._tick())

    # --- one step ----------------------------------------------------------------------------------------------------

    def _read_prompts(self) -> list[_Row]:
        """The rows that read all they have unread in this step: in the order of arrival, within the budget.

        Of a prompt that is longer than the budget by itself, one part is read here.
        """
        reading = sorted((row for row in self.running if row.unread > 1), key=lambda row: row.arrival)
        if reading and reading[0].unread > PROMPT_TOKENS:
            self._pass(reading[:1], PROMPT_TOKENS)
            return []
        widest, chosen = 0, 0
        for number, row in enumerate(reading, 1):
            widest = max(widest, row.unread)
            if widest * number > PROMPT_TOKENS:
                break
            chosen = number
        return reading[:chosen]

    def _pass(self, rows: Sequence[_Row], most: int | None = None) -> torch.Tensor:
        """Run the unread tokens of some rows (at most ``most`` of each) through the network.

        Returns:
            Scores of the token that follows each row's last one, (B, V) in at least fp32.
        """
        device = self.model.device
        counts = [min(row.unread, most or row.unread) for row in rows]
        ids = torch.full((len(rows), max(counts)), self.model.pad_id, dtype=torch.long)
        for n, (row, count) in enumerate(zip(rows, counts, strict=True)):
            ids[n, :count] = torch.tensor(row.tokens[row.filled : row.filled + count])
        # Padding goes to the place behind the longest row, where no real token of this pass lies.
        starts = torch.tensor([self._before + row.filled for row in rows])
        longest = int((starts + torch.tensor(counts)).max())
        places = (starts[:, None] + torch.arange(ids.shape[1])).clamp(max=longest)
        last = torch.tensor(counts) - 1
        positions = torch.minimum(places, (starts + last)[:, None])  # padding stays within the table of positions
        reach = int(places.max()) + 1
        places = places.to(device)
        self._cache.aim([self.running.index(row) for row in rows], places, reach)
        names = [row.request.adapter for row in rows]
        with self._adapters.use(names) if self._adapters else nullcontext():
            hidden_BSd = decoder_of(self.model.transformer())(
                input_ids=ids.to(device),
                attention_mask=_masks(self.model, places, reach),
                position_ids=positions.to(device),
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
            scores = self.model.vocabulary_scores(hidden_BSd[torch.arange(len(rows)), last])
        for row, count in zip(rows, counts, strict=True):
            row.filled += count
        return scores

    def _write(self, row: _Row, choice: Choice) -> None:
        request, text = row.request, row.request.text
        if choice.token in self.model.eos_ids:
            self._end(row, Token(None, text.finish() if text else "", "stop", choice.token))
            return
        self.tokens_written += 1
        row.tokens.append(choice.token)
        row.written.append(choice.token)
        if request.constraint is not None:
            request.constraint.accept(choice.token)
        piece = text.push(choice.token) if text else ""
        if text and text.stopped:
            self._end(row, Token(choice, piece, "stop"))
        elif request.constraint is not None and request.constraint.finished:
            self._end(row, Token(choice, piece + (text.finish() if text else ""), "stop"))
        elif len(row.written) >= request.sampling.max_new_tokens or len(row.tokens) >= self.context:
            piece += text.finish() if text else ""
            self._end(row, Token(choice, piece, "stop" if text and text.stopped else "length"))
        else:
            request.on_token(Token(choice, piece))

    def _end(self, row: _Row, last: Token) -> None:
        self._leave(row)
        row.request.on_token(last)


def unsupported(model: Model) -> str | None:
    """Why a model cannot write in a running batch; ``None`` if it can."""
    config: Any = cast(Any, model.transformer()).config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of the kind {', '.join(sorted(kinds))}"
    known = inspect.signature(decoder_of(model.transformer()).forward).parameters
    missing = {"position_ids", "past_key_values", "attention_mask"} - set(known)
    if missing:
        return f"its forward pass takes no {', '.join(sorted(missing))}"
    return None


def context_length(model: Model) -> int:
    """Tokens of prompt and answer together that the model's positions allow."""
    config: Any = cast(Any, model.transformer()).config
    positions = int(getattr(config, "max_position_embeddings", None) or model.max_length)
    return positions - model.virtual_tokens


def slot_length(model: Model, tokens: int) -> int:
    """Places that a slot for so many tokens has: with the virtual ones, and one for the padding."""
    return -(-(model.virtual_tokens + tokens + 1) // LENGTH_STEP) * LENGTH_STEP


def _masks(model: Model, places_BS: torch.Tensor, reach: int) -> Any:
    """Every token sees what stands at the same place of its slot or before."""
    keys_T = torch.arange(reach, device=places_BS.device)
    allowed_BST = keys_T <= places_BS[:, :, None]
    return visibility.masks(cast(Any, model.transformer()).config, allowed_BST, places_BS, keys_T[None])


def _common_start(tokens: Sequence[int], known: Sequence[int]) -> int:
    """How many tokens both begin with, leaving the first at least one to read. By halving: lists compare fast."""
    low, high = 0, min(len(tokens) - 1, len(known))
    while low < high:
        middle = (low + high + 1) // 2
        if tokens[low:middle] == known[low:middle]:
            low = middle
        else:
            high = middle - 1
    return max(0, low)
