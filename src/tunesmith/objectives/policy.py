"""What objectives share that learn from answers of their own: writing, scoring, the reference, and signs of illness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith import rewards
from tunesmith.arrays import FloatArray
from tunesmith.data.batches import TokenFile
from tunesmith.errors import RecipeError
from tunesmith.events import Listener, Notice, nobody
from tunesmith.models.model import Model
from tunesmith.objectives.base import Measure, Objective
from tunesmith.objectives.rollouts import Reference, Sample, engine_of, log_likelihoods, to_examples, write
from tunesmith.recipe import Training

if TYPE_CHECKING:
    from tunesmith.generation.vllm_rollouts import VLLMRollouts

BLOWN_UP = 50.0
"""Nats of divergence of a whole answer beyond which a policy probably writes for its judge rather than for people. A
rule of thumb, not measured here; that reward and preference part ways with distance: arXiv 2210.10760."""

COLLAPSED = 0.1
"""Share of its first entropy below which a policy hardly tries anything any more (a rule of thumb)."""

GROWN, CORRELATED = 1.5, 0.6
"""Mean length, in lengths of the first step, and correlation of length and reward, beyond which length is suspected."""

BLIND = -0.5
"""Explained variance below which the values mislead; a constant has 0."""


class Policy(Objective):
    """The model writes, its answers are scored, and it learns from them.

    Subclasses say what a step learns (``experience``) and the loss.
    """

    reads_prompts = True
    skips_frozen = False
    shows_others = True

    def __init__(self, settings: Training) -> None:
        self.settings = settings
        if not settings.rewards:
            raise RecipeError(
                f"`objective: {self.name}` needs something that scores the answers",
                where="training.rewards",
                fix="e.g. `training: {rewards: [{kind: number}]}`, or `{kind: run, run: runs/my-reward-model}`",
            )
        self.reward = rewards.make(settings.rewards)
        self.tell: Listener = nobody
        self.folder = Path()
        self.reference: Reference | None = None
        self.engine: VLLMRollouts | None = None
        self._first: dict[str, float] = {}
        self._told: set[str] = set()

    needs_reference = True

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Remember what the model is now: the reference."""
        self.folder, self.tell = folder / "answers", tell
        self.engine = engine_of(model, self.settings.rollouts)
        if self.needs_reference:
            self.reference = Reference(model)

    def finish(self, model: Model) -> None:
        """Let go of what wrote."""
        if self.engine is not None:
            self.engine.close()

    def write(self, model: Model, data: TokenFile, rows: np.ndarray, group: int, seed: str) -> list[Sample]:
        """Answers to the prompts of a batch."""
        chosen = self.settings.rollouts
        return write(
            model,
            data,
            rows.tolist(),
            group=group,
            max_new_tokens=chosen.max_new_tokens,
            temperature=chosen.temperature,
            seed=f"{self.settings.seed}:{seed}",
            engine=self.engine,
        )

    def scored(self, samples: Sequence[Sample]) -> FloatArray:
        """The reward of each answer, (N,)."""
        return np.asarray(self.reward([rewards.answered(s.row, s.text, s.tokens) for s in samples]), dtype=np.float64)

    def examples(self, samples: Sequence[Sample], extra: Sequence[dict[str, list[float]]] | None = None) -> TokenFile:
        """Answers as examples, with further columns."""
        return to_examples(samples, self.folder, extra or [{} for _ in samples])

    def of_reference(self, model: Model, data: TokenFile) -> list[FloatArray]:
        """What the reference thinks of each token."""
        assert self.reference is not None
        with self.reference.of(model) as first:
            return log_likelihoods(first, data, self.settings.rollouts.temperature)

    def validate(self, model: Model, data: TokenFile, measure: Measure) -> dict[str, float]:
        """Mean reward of answers to validation prompts, always the same ones with the same seeds."""
        rows = np.arange(min(len(data), self.settings.rollouts.validation_prompts))
        samples = self.write(model, data, rows, 1, "validation")
        values = self.scored(samples)
        metrics = {"loss": -float(values.mean()), "reward": float(values.mean()), "length": _mean_length(samples)}
        if self.reference is not None:
            examples = self.examples(samples)
            ours = log_likelihoods(model, examples, self.settings.rollouts.temperature)
            theirs = self.of_reference(model, examples)
            metrics["kl"] = float(np.mean([(a - b).sum() for a, b in zip(ours, theirs, strict=True)]))
        return metrics

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The greater reward is the better."""
        return [metrics["reward"]]

    def state(self) -> dict[str, float]:
        """The figures of the first step, against which later ones are judged."""
        return {f"first_{name}": value for name, value in self._first.items()}

    def load_state(self, state: dict[str, float]) -> None:
        """Take them back."""
        self._first = {k.removeprefix("first_"): v for k, v in state.items() if k.startswith("first_")}

    def watch(self, samples: Sequence[Sample], values: FloatArray, metrics: dict[str, Any]) -> None:
        """Warn, once each, of the known illnesses of learning from rewards."""
        lengths = np.asarray([len(sample.tokens) for sample in samples], dtype=np.float64)
        for name in ("entropy", "length"):
            if name in metrics:
                self._first.setdefault(name, float(metrics[name]))
        if metrics.get("kl", 0.0) > BLOWN_UP:
            self._warn(
                f"the policy is {metrics['kl']:.0f} nats an answer away from where it began",
                "raise `kl`, lower the learning rate, or stop earlier; look at the answers",
            )
        if metrics.get("entropy", 1.0) < COLLAPSED * self._first.get("entropy", 0.0):
            self._warn(
                "the policy hardly varies its answers any more (entropy below a tenth of the first)",
                "raise `entropy_weight`, `clip_high` or `kl`, or lower the learning rate",
            )
        grown = lengths.mean() > GROWN * self._first.get("length", np.inf)
        if grown and values.std() > 0 and lengths.std() > 0 and np.corrcoef(lengths, values)[0, 1] > CORRELATED:
            self._warn(
                "answers grow longer, and longer ones are rewarded more: the reward may be taken by length",
                "look at the answers; let the reward ignore length, or lower `rollouts.max_new_tokens`",
            )
        if metrics.get("explained_variance", 0.0) < BLIND:
            self._warn(
                "the values foresee the returns worse than a constant would",
                "raise `value_weight`, or lower the learning rate",
            )

    def _warn(self, message: str, fix: str) -> None:
        key = message.split(" ", 3)[2]
        if key not in self._told:
            self._told.add(key)
            self.tell(Notice(level="warning", message=message, fix=fix))


def _mean_length(samples: Sequence[Sample]) -> float:
    return float(np.mean([len(sample.tokens) for sample in samples]))


def described(samples: Sequence[Sample], values: FloatArray) -> dict[str, float]:
    """What is logged of a batch of answers."""
    return {
        "reward": float(values.mean()),
        "reward_std": float(values.std()),
        "length": _mean_length(samples),
        "finished": float(np.mean([sample.finished for sample in samples])),
    }


def minibatches(count: int, *, epochs: int, parts: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Rows of each change of the weights: each epoch sees every row once, in a new order."""
    random = np.random.default_rng(list(seed))
    parts = min(parts, count)
    return [part for _ in range(epochs) for part in np.array_split(random.permutation(count), parts)]
