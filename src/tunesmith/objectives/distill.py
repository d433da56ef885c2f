"""Learning from a teacher: what it thinks of labels or tokens, beside the loss of the right answers.

The loss of an example or token is ``a`` times its own (``label_weight``) and ``(1 - a) T^2`` times the divergence from
the teacher at temperature T (Hinton et al. 2015, arXiv 1503.02531, section 2: the square keeps the gradients of both
parts in proportion whatever T).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.data.render import Render, Rendered
from tunesmith.data.rows import Row
from tunesmith.data.tagging import IGNORED
from tunesmith.events import Listener, Phase
from tunesmith.models.cutting import fingerprint
from tunesmith.models.model import Model
from tunesmith.objectives.base import Experience, LossSum, Measure, Objective
from tunesmith.objectives.classify import Classify
from tunesmith.objectives.cross_entropy import token_cross_entropy
from tunesmith.objectives.divergence import Target, Whole, divergence, summed
from tunesmith.objectives.layers import Layers
from tunesmith.objectives.rollouts import engine_of, to_examples, write
from tunesmith.objectives.supervised import Supervised
from tunesmith.objectives.tag import Tag
from tunesmith.objectives.teacher import Teacher, folder_of, load_teacher
from tunesmith.objectives.teacher_signals import SCORES, keep_scores, keep_words, kept_target
from tunesmith.recipe import Training

UNLABELLED = "unlabelled"
"""Field of rows that have no label: what they are, the teacher says."""
_LABELLED = "labelled"


def distill(settings: Training) -> Objective:
    """The objective that ``distillation.answers`` and the weights call for."""
    own = settings.distillation
    if own.answers == "student":
        return OnPolicy(settings)
    return Distill(settings) if own.needs_scores else FromAnswers(settings)


class FromAnswers(Supervised):
    """Answers that the teacher wrote are learned as if they stood in the data (Kim & Rush 2016, arXiv 1606.07947)."""

    name = "distill"


class Distill(Objective):
    """The teacher's distributions, over labels or over the vocabulary, beside the right answers."""

    name = "distill"

    def __init__(self, settings: Training) -> None:
        self.settings = settings
        self.own = settings.distillation
        self.share = self.own.share_of_labels
        self.teacher: Teacher | None = None
        self.layers: Layers | None = None
        self.temperature = 1.0
        # What passes through the layers is looked at, if they are compared.
        self.compiles = not (self.own.hidden_weight or self.own.attention_weight)
        self.skips_frozen = self.compiles

    def examples_of(self, rows: Sequence[Row], render: Render) -> tuple[Sequence[Row], Render]:
        """The rows; those without a label are rendered without one."""
        known = next((row.fields["label"] for row in rows if "label" in row.fields), None)

        def rendered(row: Row) -> Rendered:
            if UNLABELLED not in row.fields:
                return render(row)
            stand_in = Row({**row.fields, "label": known}, row.origin)
            return dataclasses.replace(render(stand_in), label=None)

        return rows, rendered

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Load the teacher, and ask it at once what can be kept."""
        name = self.own.teacher or model.name
        tell(Phase(step="tune", message=f"teacher {name}"))
        self.teacher = load_teacher(name, model)
        self.temperature = self.own.temperature or (1.0 if model.form == "generate" else 2.0)
        kept = folder / "teacher"
        identity = fingerprint(folder_of(name))
        for number, data in enumerate(sets):
            if not len(data):
                continue
            if model.form == "classify":
                keep_scores(self.teacher, identity, data, model.labels or [], kept / f"scores-{number}", tell)
            elif model.form == "generate" and self.own.cache != "off":
                size = _vocabulary(model, self.teacher.model)
                place, seed = kept / f"words-{number}", self.settings.seed
                keep_words(self.teacher.model, identity, data, self.own, self.temperature, size, seed, place, tell)
        if not self.compiles:
            self.layers = Layers(
                model,
                self.teacher.model,
                hidden_weight=self.own.hidden_weight,
                attention_weight=self.own.attention_weight,
                seed=self.settings.seed,
            )
        elif model.form == "classify" or self.own.cache != "off":
            self.teacher = None  # all that it had to say is kept

    def finish(self, model: Model) -> None:
        """Let the teacher go."""
        self.teacher = None
        if self.layers is not None:
            self.layers.finish(model)

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over the examples (labels) or the tokens (tags, text) of a batch; weights are those without a teacher.

        Metrics: those of the right answers, and ``divergence`` from the teacher in nats at the temperature.
        """
        if model.form == "classify":
            return self._of_labels(model, batch)
        if model.form == "tag":
            return self._of_tags(model, batch)
        return self._of_tokens(model, batch)

    def _of_labels(self, model: Model, batch: Batch) -> LossSum:
        """Each of B examples weighs 1; those without a label have no loss of their own."""
        assert batch.labels is not None, "the data were rendered for another objective"
        distance_B: torch.Tensor | float = 0.0
        if self.layers is None:
            logits_BC = model.class_logits(batch)
        else:
            logits_BC, distance_B = self._watched(self.layers, model, batch)
        divergence_B = self._divergence(logits_BC, batch.extra[SCORES])
        labelled_B = batch.labels >= 0
        right = Classify(self.settings).of_logits(model, logits_BC[labelled_B], batch.labels[labelled_B])
        total = self.share * right.total + (self._scaled(divergence_B) + distance_B).sum()
        sums = right.metrics | {"divergence": divergence_B.detach().sum(), _LABELLED: labelled_B.sum()}
        return LossSum(total, float(len(labelled_B)), sums)

    def _of_tags(self, model: Model, batch: Batch) -> LossSum:
        """Each tagged token weighs 1."""
        assert self.teacher is not None
        tags_BS = batch.extra["tags"]
        rows, columns = (tags_BS != IGNORED).nonzero(as_tuple=True)
        logits_NC = model.token_logits(batch, rows, columns)
        with torch.no_grad():
            theirs_NC = self.teacher.model.token_logits(batch, rows, columns)
        divergence_N = self._divergence(logits_NC, theirs_NC)
        right = Tag(self.settings).of_logits(logits_NC, tags_BS[rows, columns], rows)
        sums = right.metrics | {"divergence": divergence_N.detach().sum(), _LABELLED: torch.tensor(right.weight)}
        return LossSum(self.share * right.total + self._scaled(divergence_N).sum(), right.weight, sums)

    def _of_tokens(self, model: Model, batch: Batch) -> LossSum:
        """Tokens weigh what they weigh without a teacher."""
        assert batch.loss_weights is not None, "the data were rendered for another objective"
        weights_BS = batch.loss_weights[:, 1:]
        rows, columns = weights_BS.nonzero(as_tuple=True)
        weights_N, targets_N = weights_BS[rows, columns], batch.input_ids[rows, columns + 1]
        target, vocabulary = self._target(model, batch, rows, columns)

        def loss_of(scores_nV: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            divergence_n = target.distance(scores_nV, part)
            weights_n = weights_N[part].to(divergence_n.dtype)
            right = token_cross_entropy(scores_nV, targets_N[part], weights_n, self.settings.label_smoothing)
            total = self.share * right.total + self._scaled(divergence_n) @ weights_n
            correct_n = right.correct_N.to(weights_n.dtype)
            return total, torch.stack([divergence_n @ weights_n, right.losses_N @ weights_n, correct_n @ weights_n])

        if model.scores_are_plain():
            weight_Vd = model.vocabulary_weight()
            hidden_Nd = model.hidden_states(batch)[rows, columns]
            total, sums = summed(hidden_Nd, weight_Vd[:vocabulary], loss_of)
        else:
            scores_NV = model.vocabulary_scores(model.hidden_states(batch)[rows, columns])
            total, sums = loss_of(scores_NV[:, :vocabulary], slice(None))
        weight = float(weights_N.sum(dtype=torch.float64))
        names = ("divergence", "label_loss", "token_accuracy")
        sums = sums.detach()
        return LossSum(total, weight, dict(zip(names, sums, strict=True)) | {_LABELLED: torch.tensor(weight)})

    def _target(self, model: Model, batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> tuple[Target, int]:
        """What the teacher thinks of the tokens that carry loss, and how many words both models know."""
        if self.teacher is None:
            return kept_target(batch, self.own, self.temperature), _words(model)
        teacher = self.teacher.model
        with torch.no_grad():
            hidden_Nd = teacher.hidden_states(batch)[rows, columns]

        def scores(part: slice) -> torch.Tensor:
            with torch.no_grad():
                return teacher.vocabulary_scores(hidden_Nd[part])

        target = Whole(scores, self.own.divergence, self.own.beta, self.temperature)
        return target, _vocabulary(model, teacher)

    def _watched(self, layers: Layers, model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the labels, and the distances between layers of student and teacher, (B,)."""
        with layers.watching(model) as ours:
            logits_BC = model.class_logits(batch)
        with layers.watching(layers.teacher) as theirs, torch.no_grad():
            layers.teacher.class_logits(batch)
        return logits_BC, layers.distance(model, ours, theirs, batch.attention_mask)

    def _divergence(self, logits_NC: torch.Tensor, theirs_NC: torch.Tensor) -> torch.Tensor:
        """From the teacher's scores of the labels, (N,)."""
        log_q, log_p = (torch.log_softmax(s.to(logits_NC.dtype) / self.temperature, -1) for s in (logits_NC, theirs_NC))
        return divergence(log_q, log_p, self.own.divergence, self.own.beta)

    def _scaled(self, divergence_N: torch.Tensor) -> torch.Tensor:
        return (1 - self.share) * self.temperature**2 * divergence_N

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Means: the divergence over all, the rest over what has a right answer."""
        labelled = max(1e-9, sums[_LABELLED])
        found = {name: value / labelled for name, value in sums.items() if name not in ("divergence", _LABELLED)}
        if "true_spans" in sums:
            found = Tag(self.settings).metrics({n: v for n, v in sums.items() if n != _LABELLED}, weight)
        return found | {"divergence": sums["divergence"] / weight}

    def score(self, metrics: dict[str, float]) -> list[float]:
        """What the task is about first (accuracy, spans), then the lower loss."""
        return [*(metrics[name] for name in ("accuracy", "span_f1") if name in metrics), -metrics["loss"]]


class OnPolicy(Distill):
    """The student writes and the teacher says how it would have gone on (GKD, Agarwal et al. 2023, arXiv 2306.13649).

    The answers are those of the student as it is; as there, the gradient does not go through the writing.
    """

    reads_prompts = True
    shows_others = True

    def __init__(self, settings: Training) -> None:
        super().__init__(settings)
        self.skips_frozen = False  # each step has new texts

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Load the teacher, which stays."""
        super().start(model, sets, folder, tell)
        self.folder = folder / "answers"
        self.engine = engine_of(model, self.settings.rollouts)

    def finish(self, model: Model) -> None:
        """Let go of what wrote."""
        super().finish(model)
        if self.engine is not None:
            self.engine.close()

    def experience(self, model: Model, data: TokenFile, rows: np.ndarray, step: int) -> Experience:
        """One answer to each prompt of the batch."""
        examples, metrics = self._write(model, data, rows, f"{step}")
        return Experience(examples, [np.arange(len(examples))], metrics)

    def validate(self, model: Model, data: TokenFile, measure: Measure) -> dict[str, float]:
        """The divergence on answers to validation prompts, always the same ones with the same seeds."""
        rows = np.arange(min(len(data), self.settings.rollouts.validation_prompts))
        examples, metrics = self._write(model, data, rows, "validation")
        return measure(examples) | metrics

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """The divergence alone: the student's own words are no right answers."""
        return {"divergence": sums["divergence"] / weight}

    def _write(self, model: Model, data: TokenFile, rows: np.ndarray, seed: str) -> tuple[TokenFile, dict[str, float]]:
        chosen = self.settings.rollouts
        samples = write(
            model,
            data,
            rows.tolist(),
            group=1,
            max_new_tokens=chosen.max_new_tokens,
            temperature=chosen.temperature,
            seed=f"{self.settings.seed}:{seed}",
            engine=self.engine,
        )
        metrics = {
            "length": float(np.mean([len(sample.tokens) for sample in samples])),
            "finished": float(np.mean([sample.finished for sample in samples])),
        }
        return to_examples(samples, self.folder, [{} for _ in samples]), metrics


def _vocabulary(model: Model, teacher: Model) -> int:
    """Words that both know: matrices are often padded to a round number of rows."""
    return min(_words(model), _words(teacher))


def _words(model: Model) -> int:
    head: Any = model.vocabulary_head()
    return int(head.weight.shape[0])
