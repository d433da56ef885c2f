"""A tuned model as the judge: a reward model's score, or a classifier's probability of a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith import runs
from tunesmith.errors import RecipeError
from tunesmith.events import nobody
from tunesmith.models.model import Model
from tunesmith.recipe import RewardSource
from tunesmith.rewards import Answered


class OfRun:
    """Scores answers with the model of a finished run.

    Raises:
        RecipeError: The run is no reward model and no classifier with the label that is named.
    """

    def __init__(self, source: RewardSource) -> None:
        from tunesmith.models.precision import default_device
        from tunesmith.models.saving import NOTES, load_artefact

        folder = Path(source.run or "")
        if not (folder / NOTES).is_file():  # else it is what a stage left, or the model of a run
            folder = runs.open_run(folder).model_folder
        self.model, notes = load_artefact(folder, device=default_device())
        self.label: int | None = None
        if self.model.form != "classify":
            raise RecipeError(
                f"the model of {folder.parent} writes; it cannot score",
                where="rewards.run",
                fix="name the run of a reward model (`method: reward`), or of a classifier with `label`",
            )
        if notes.labels:
            if source.label not in notes.labels:
                raise RecipeError(
                    f"the classifier of {folder.parent} has no label {source.label!r}",
                    where="rewards.label",
                    fix=f"its labels: {', '.join(notes.labels[:10])}",
                )
            self.label = notes.labels.index(source.label)

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Score, or probability of the label, for each."""
        return [float(value) for value in score(self.model, answers, self.label)]


def score(model: Model, answers: Sequence[Answered], label: int | None) -> np.ndarray:
    """Scores (N,) of a scalar head, or probabilities of a label."""
    from tunesmith.data.render import encode_text
    from tunesmith.models import inference
    from tunesmith.prediction.preferences import score_texts

    if label is not None:
        examples = [encode_text(model.tokenizer, answer.text, model.max_length)[0] for answer in answers]
        return np.asarray(inference.class_probabilities(model, examples)[:, label])
    texts = [
        ([*one.messages, {"role": "assistant", "content": one.text}], one.row.fields.get("tools"), one.row.origin)
        for one in answers
    ]
    return np.asarray(score_texts(model, texts, nobody))
