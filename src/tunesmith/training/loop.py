"""The only loop: nothing else in the house calls ``backward`` or changes a weight.

The order of things in one update: forward and backward of every micro-batch of the global batch (sums, not means),
division by the weight of the *whole* batch, a check that loss and gradient are finite, clipping, and only then the
optimizer. So loss and gradient do not depend on how the batch was split.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch

from tunesmith.allocator import Heap
from tunesmith.data.batches import Batch, TokenFile, collate, epoch_batches, micro_batches
from tunesmith.errors import InterruptedRun, NonFiniteError
from tunesmith.events import (
    CheckpointSaved,
    Listener,
    Notice,
    StageFinished,
    StageStarted,
    Step,
    Validated,
    nobody,
)
from tunesmith.models.model import Model
from tunesmith.objectives.base import Objective
from tunesmith.recipe import Training
from tunesmith.training import checkpoint, layerwise
from tunesmith.training.memory import PeakMemory
from tunesmith.training.optimizer import MasterAdamW, Schedule
from tunesmith.training.position import Position
from tunesmith.training.read_rows import read_rows, sparse_gradients
from tunesmith.training.scarce_memory import ScarceMemory

WIDTH_MULTIPLE = 16
"""Rows are padded to a multiple of this: matrix units want it, and few widths mean few compiled shapes."""


@dataclass(frozen=True)
class StageResult:
    """What a stage's loop leaves: the model holds the best weights."""

    steps: int
    best_step: int
    best_metrics: dict[str, float]
    reason: str
    seconds: float
    tokens: int
    peak_memory_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Real tokens trained on (no padding) over the time of the updates alone."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Change:
    """One change of the weights: mean loss, norm of the unclipped gradient, tokens, and the objective's metrics."""

    loss: float
    grad_norm: float
    tokens: int
    metrics: dict[str, float]


class Trainer:
    """One stage of tuning.

    Args:
        model: With exactly the parameters that shall change requiring gradients.
        objective: What is minimised.
        train: Examples to learn from.
        validation: Examples to choose the best checkpoint by; ``None`` keeps the last one.
        settings: All defaults filled in: see :func:`tunesmith.training.defaults.with_defaults`.
        folder: The stage's folder; checkpoints go below it.
        identity: What must be the same for a resume: data, recipe, versions.
        name: The stage's name.
        on_event: Told everything that happens.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        train: TokenFile,
        validation: TokenFile | None,
        settings: Training,
        folder: Path,
        *,
        identity: dict[str, Any] | None = None,
        name: str = "tune",
        on_event: Listener = nobody,
    ) -> None:
        assert settings.learning_rate is not None and settings.micro_tokens is not None, "`with_defaults` fills them in"
        self.model = model
        self.objective = objective
        self.train = train
        self.validation = validation if validation is not None and len(validation) else None
        self.settings = settings
        self.checkpoints = folder / "checkpoints"
        self.identity = identity or {}
        self.name = name
        self.on_event = on_event
        self.position = Position(micro_tokens=settings.micro_tokens)
        narrow_moments = settings.optimizer == "adamw-8bit"  # in blocks of 256, which any number of rows would not fill
        self.tables = {} if narrow_moments else read_rows(model, objective.texts(train))
        rates = layerwise.rates(model, settings)
        self.optimizer = MasterAdamW(model.trainable(), settings, rates, model.undecayed, self.tables)
        self.steps = total_steps(train.lengths, settings)
        self.schedule = Schedule(settings.learning_rate, self.steps, settings.warmup, settings.schedule)
        self._kept_step = -1  # the step whose checkpoint this process wrote or read: it need not be written again
        self._epoch_batches: tuple[int, list[np.ndarray]] | None = None
        self._first_updates = layerwise.first_updates(model, settings, len(self._batches(0)))
        self._stop = threading.Event()
        self._measuring = False  # what is measured may be given up: a resume measures it
        self._memory = PeakMemory()
        self._heap = Heap() if model.device.type == "cpu" else None
        self._scarce = ScarceMemory(
            model, self.optimizer, self.position, may_recompute=settings.recompute == "auto", on_event=on_event
        )

    # --- the whole stage -----------------------------------------------------------------------------------------

    def run(self) -> StageResult:
        """Train to the end, going on from the newest valid checkpoint if there is one.

        Raises:
            InterruptedRun: SIGINT or SIGTERM came; a checkpoint was saved first.
            NonFiniteError: Loss or gradient is not finite; the weights were not touched.
            CheckpointError: The checkpoints belong to another recipe or other data.
            ResourceError: Memory or disk does not suffice.
        """
        torch.manual_seed(self.settings.seed)
        for table in self.tables.values():
            rows = f"{len(table.ids_A):,} of {table.layer.num_embeddings:,} word vectors"
            self.on_event(Notice(level="info", message=f"the texts read {rows}: the others stay as they are"))
        self._restore()
        position = self.position
        self.on_event(
            StageStarted(
                stage=self.name,
                steps=self.steps,
                first_step=position.step,
                trainable_parameters=self.model.trainable_parameters,
                total_parameters=self.model.total_parameters,
            )
        )
        reason = self._update_until_the_end()
        self._unfreeze(sys.maxsize)  # what did not begin in time has not changed, but it is the stage's to change
        self._take_best()
        result = StageResult(
            steps=position.step,
            best_step=position.best_step or position.step,
            best_metrics=position.best_metrics,
            reason=reason,
            seconds=position.seconds,
            tokens=position.tokens,
            peak_memory_bytes=self._peak_memory(),
        )
        self.on_event(
            StageFinished(
                stage=self.name,
                step=result.steps,
                best_step=result.best_step,
                reason=reason,
                seconds=result.seconds,
                tokens=result.tokens,
                tokens_per_second=result.tokens_per_second,
                peak_memory_bytes=result.peak_memory_bytes,
            )
        )
        return result

    def _update_until_the_end(self) -> str:
        """All updates that are left, with their validations and checkpoints. Returns why they ended."""
        with self._signals(), sparse_gradients(self.tables):
            self._validate_if_due()  # stopped between an update and its validation
            if self._out_of_patience():  # killed between the early stop and the end of the run
                return "early_stopping"
            for rows in self._remaining_batches():
                self._update(rows)
                if self._stop.is_set():
                    self._save_and_stop()
                if self._validate_if_due() and self._out_of_patience():
                    return "early_stopping"
                if self._checkpoint_due():
                    self._save()
                if self._stop.is_set():
                    self._save_and_stop()
        return "done" if self.settings.max_steps is None else "max_steps"

    def _save_and_stop(self) -> NoReturn:
        self._save()
        step = self.position.step
        raise InterruptedRun(f"stopped at step {step} of {self.steps}; everything up to here is saved")

    def _remaining_batches(self) -> Iterator[np.ndarray]:
        """Global batches from the present position on; the position is that *after* the batch when it is worked on."""
        position = self.position
        while position.step < self.steps:
            batches = self._batches(position.epoch)
            while position.batch < len(batches) and position.step < self.steps:
                rows = batches[position.batch]
                position.batch += 1
                yield rows
            if position.batch >= len(batches):
                position.epoch, position.batch = position.epoch + 1, 0

    # --- one update ----------------------------------------------------------------------------------------------

    def _update(self, rows: np.ndarray) -> None:
        """One step: what a global batch teaches, which for most objectives is one change of the weights."""
        started = time.perf_counter()
        rate = self.schedule.at(self.position.step)
        experience = self.objective.experience(self.model, self.train, rows, self.position.step)
        self.model.train()
        self._unfreeze(self.position.step)
        changes = []
        for part in experience.batches:
            changes.append(self._change(experience.data, part, rate))
            if self.objective.enough(changes[-1].metrics):
                break
        self._report(rows, changes, experience.metrics, rate, time.perf_counter() - started)

    def _change(self, data: TokenFile, rows: np.ndarray, rate: float) -> Change:
        """Forward, backward and one change of the weights."""
        total, weight, sums, tokens = self._scarce.fitted(data, rows, lambda: self._accumulate(data, rows))
        norm = float(torch.nn.utils.get_total_norm(self.optimizer.gradients())) / weight
        loss = total / weight
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse_non_finite(data, rows, loss)
        clip = min(1.0, self.settings.max_grad_norm / (norm + 1e-6))
        self.optimizer.step(rate, clip / weight)
        return Change(loss, norm, tokens, self.objective.metrics(sums, weight))

    def _unfreeze(self, step: int) -> None:
        """With gradual unfreezing: let train what has begun by this update."""
        if self._first_updates:
            for name, parameter in self.optimizer.named():
                parameter.requires_grad_(step >= self._first_updates[name])

    def _accumulate(self, data: TokenFile, rows: np.ndarray) -> tuple[float, float, dict[str, float], int]:
        """Sum loss, weight, metrics and gradients over the micro-batches of one global batch."""
        total, weight, tokens = 0.0, 0.0, 0
        metrics: dict[str, float] = {}
        for micro in pieces(self.model, data, rows, self.position.micro_tokens):
            batch = self._batch(data, micro)
            loss = self.objective.loss(self.model, batch)
            loss.total.backward()
            self.optimizer.accumulate()
            total += float(loss.total.detach())
            weight += loss.weight
            tokens += batch.tokens
            for name, value in loss.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(value)
        return total, weight, metrics, tokens

    def _batch(self, data: TokenFile, rows: np.ndarray) -> Batch:
        batch = collate(data, rows.tolist(), self.model.pad_id, WIDTH_MULTIPLE, self.position.epoch)
        return batch.to(self.model.device)

    def _refuse_non_finite(self, data: TokenFile, rows: np.ndarray, loss: float) -> None:
        """Name the examples whose own loss is not finite, and stop before the weights change."""
        self.optimizer.discard()
        guilty = []
        with torch.no_grad():
            for row in rows:
                one = self.objective.loss(self.model, self._batch(data, np.asarray([row])))
                if not math.isfinite(float(one.total)):
                    guilty.append(str(data.origins[int(row)]))
        places = ", ".join((guilty or [str(data.origins[int(row)]) for row in rows])[:10])
        raise NonFiniteError(
            f"the {'gradient' if math.isfinite(loss) else 'loss'} of update {self.position.step + 1} is not finite; "
            f"the weights were not changed. {'Examples' if guilty else 'The batch held the examples'}: {places}",
            where=places.split(", ")[0],
            fix="look at these examples; lower `training.learning_rate`, or use `precision: fp32`",
        )

    def _report(
        self, rows: np.ndarray, changes: Sequence[Change], metrics: dict[str, float], rate: float, seconds: float
    ) -> None:
        tokens = sum(change.tokens for change in changes)
        means = {name: sum(change.metrics[name] for change in changes) / len(changes) for name in changes[0].metrics}
        position, memory = self.position, self._memory.now()
        position.step += 1
        position.seconds += seconds
        position.tokens += tokens
        self.on_event(
            Step(
                stage=self.name,
                step=position.step,
                steps=self.steps,
                epoch=position.epoch + position.batch / len(self._batches(position.epoch)),
                loss=sum(change.loss for change in changes) / len(changes),
                learning_rate=rate,
                grad_norm=sum(change.grad_norm for change in changes) / len(changes),
                tokens=tokens,
                examples=len(rows),
                seconds=seconds,
                memory_bytes=memory,
                metrics=means | metrics,
            )
        )
        if self._heap is not None:
            self._heap.tidy(memory)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """The epoch's global batches, computed once an epoch."""
        if self._epoch_batches is None or self._epoch_batches[0] != epoch:
            self._epoch_batches = (epoch, batches_of_epoch(self.train.lengths, self.settings, epoch))
        return self._epoch_batches[1]

    # --- choosing ------------------------------------------------------------------------------------------------

    def _validate_if_due(self) -> bool:
        """Measure on the validation data at the end of an epoch, each ``eval_steps``, and at the end of the run."""
        position = self.position
        epoch_over = position.batch >= len(self._batches(position.epoch))
        every = self.settings.eval_steps
        due = position.step % every == 0 if every else epoch_over
        begun = position.step > 0 and str(position.step) not in position.scores
        if self.validation is None or not begun or not (due or position.step == self.steps):
            return False
        try:
            self._measuring = True
            metrics = self.objective.validate(self.model, self.validation, self._measure)
        except _GivenUpError:
            self._save_and_stop()
        finally:
            self._measuring = False
        score = position.scores[str(position.step)] = self.objective.score(metrics)
        best = position.best_score is None or score > position.best_score
        position.validations_without_gain = 0 if best else position.validations_without_gain + 1
        if best:
            position.best_score, position.best_step, position.best_metrics = score, position.step, metrics
        self.on_event(Validated(stage=self.name, step=position.step, metrics=metrics, best=best))
        self._save()
        return True

    def _measure(self, data: TokenFile) -> dict[str, float]:
        return self._scarce.fitted(
            data,
            np.arange(len(data)),
            lambda: evaluate_loss(self.model, self.objective, data, self.position.micro_tokens),
        )

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.position.validations_without_gain >= patience

    def _take_best(self) -> None:
        """Put the best weights into the model."""
        best = self.position.best_step
        if best and best != self.position.step:
            self._load_weights(checkpoint.read(checkpoint.at(self.checkpoints, best)).weights())

    # --- keeping -------------------------------------------------------------------------------------------------

    def _checkpoint_due(self) -> bool:
        """Each ``checkpoint_steps`` and at the end; without validations, which save too, at the end of each epoch."""
        position, every = self.position, self.settings.checkpoint_steps
        epoch_over = self.validation is None and position.batch >= len(self._batches(position.epoch))
        return (position.step % every == 0 if every else epoch_over) or position.step == self.steps

    def _save(self) -> None:
        if self.position.step == self._kept_step:
            return
        self.position.peak_memory_bytes = self._peak_memory()
        saved = checkpoint.save(
            self.checkpoints,
            self.position.step,
            weights={name: p.detach() for name, p in self.optimizer.named()},
            optimizer=self.optimizer.state() | checkpoint.random_state(),
            trainer={
                "position": vars(self.position),
                "identity": self.identity,
                "objective": self.objective.state(),
            },
            needs=self.position.best_step or None,
        )
        best = checkpoint.best_steps(self.position.scores, self.settings.keep_best_checkpoints)
        checkpoint.prune(self.checkpoints, self.settings.keep_checkpoints, {*best, self.position.best_step})
        self._kept_step = saved.step
        size = checkpoint.size(saved.path)
        self.on_event(CheckpointSaved(stage=self.name, step=saved.step, path=str(saved.path), bytes=size))

    def _peak_memory(self) -> int:
        """The most memory of this process, and of those that it goes on from."""
        return max(self.position.peak_memory_bytes, self._memory.bytes())

    def _restore(self) -> None:
        found, skipped = checkpoint.newest(self.checkpoints)
        for line in skipped:
            self.on_event(Notice(level="warning", message=f"skipped a damaged checkpoint: {line}"))
        if found is None:
            return
        checkpoint.check_identity(found.trainer["identity"], self.identity, str(found.path))
        vars(self.position).update(found.trainer["position"])
        self.objective.load_state(found.trainer["objective"])
        self._kept_step = found.step
        tensors = found.optimizer()
        self._load_weights(found.weights())
        self.optimizer.load_state(tensors)
        checkpoint.set_random_state(tensors)
        self.on_event(Notice(level="info", message=f"going on from step {self.position.step} of {self.steps}"))

    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.optimizer.named():
                parameter.copy_(weights[name])

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM let an update finish, give a validation up, save, and stop; a second SIGINT stops at once.

        Who sends SIGTERM often waits a short time only, and a validation may take long.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            if self._stop.is_set() and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop.set()
            if self._measuring:
                raise _GivenUpError

        before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _GivenUpError(Exception):
    """A validation was not finished."""


def total_steps(lengths: np.ndarray, settings: Training) -> int:
    """Updates of the whole stage: ``max_steps``, or else epochs counted batch by batch, a part of one rounded up."""
    if settings.max_steps is not None:
        return settings.max_steps
    steps, epochs = 0, settings.epochs
    for epoch in range(math.ceil(epochs)):
        share = min(1.0, epochs - epoch)
        steps += math.ceil(share * len(batches_of_epoch(lengths, settings, epoch)))
    return steps


def batches_of_epoch(lengths: np.ndarray, settings: Training, epoch: int) -> list[np.ndarray]:
    """The epoch's global batches under these settings."""
    return epoch_batches(
        lengths,
        seed=settings.seed,
        epoch=epoch,
        batch_size=settings.batch_size,
        batch_tokens=settings.batch_tokens,
    )


def pieces(model: Model, data: TokenFile, rows: np.ndarray, micro_tokens: int) -> Iterator[np.ndarray]:
    """The rows of each forward pass over a batch, by how the model computes it."""
    padded = not model.packs(int(data.lengths[rows].max()))
    return micro_batches(data.lengths, rows, micro_tokens, WIDTH_MULTIPLE, padded)


def evaluate_loss(model: Model, objective: Objective, data: TokenFile, micro_tokens: int) -> dict[str, float]:
    """Mean loss and metrics of an objective over a whole set, without dropout or gradient."""
    model.network.eval()
    total, weight = 0.0, 0.0
    metrics: dict[str, float] = {}
    with torch.inference_mode():
        for rows in pieces(model, data, np.arange(len(data)), micro_tokens):
            batch = collate(data, rows.tolist(), model.pad_id, WIDTH_MULTIPLE).to(model.device)
            loss = objective.loss(model, batch)
            total += float(loss.total)
            weight += loss.weight
            for name, value in loss.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(value)
    return {"loss": total / weight} | objective.metrics(metrics, weight)
