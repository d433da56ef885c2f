"""A model that was never tuned for it as the judge: OpenAI's ``score_model`` with a model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import RecipeError
from tunesmith.tasks.base import Message

GRADES = 10
"""Steps between the lowest and the highest grade that the judge may give."""


class ModelJudge:
    """Grades with a model that writes.

    OpenAI's judge writes its reasons and then a grade. A small model's single written grade is coarse, so this one is
    asked how likely each grade is, and their mean counts (G-Eval, Liu et al. 2023, arXiv 2303.16634, section 2).

    Args:
        grader: With ``model`` (a run, a model of the catalog or a folder), ``input`` (messages) and ``range``.

    Raises:
        RecipeError: A field is missing or malformed, or the model does not write.
    """

    def __init__(self, grader: dict[str, Any]) -> None:
        from tunesmith.data.render import ConversationRenderer

        self.grades = _grades(grader.get("range") or [0, 1])
        if not grader.get("input"):
            raise RecipeError("score_model needs `input`: the messages that its model reads", where="rewards.grader")
        self.model = _load(str(grader.get("model") or ""))
        self.renderer = ConversationRenderer(self.model.tokenizer, self.model.max_length, self.model.eos_ids)

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """The expected grade of each conversation, (N,)."""
        from tunesmith.models.inference import choice_probabilities

        asked = [[*turns[:-1], self._with_scale(turns[-1])] for turns in conversations]
        prompts = [self.renderer.prompt(turns) for turns in asked]
        end = [] if self.model.end_id is None else [self.model.end_id]
        choices = [
            self.model.tokenizer(f"{grade:g}", add_special_tokens=False)["input_ids"] + end for grade in self.grades
        ]
        probabilities_NC = choice_probabilities(self.model, prompts, choices)
        return [float(value) for value in probabilities_NC @ self.grades]

    def _with_scale(self, turn: Message) -> Message:
        low, high = self.grades[0], self.grades[-1]
        return {**turn, "content": f"{turn['content']}\n\nAnswer with a number from {low:g} to {high:g} alone."}


def _grades(bounds: Any) -> np.ndarray:
    """The grades that may be given: whole numbers where there are few of them, else evenly spaced."""
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(b, int | float) for b in bounds)
    if not numbers or bounds[0] >= bounds[1]:
        raise RecipeError(
            f"the range {bounds!r} of score_model is no lower and upper bound",
            where="rewards.grader.range",
            fix="e.g. `range: [0, 1]`",
        )
    low, high = bounds
    whole = low == int(low) and high == int(high) and 1 < high - low <= GRADES
    return np.linspace(low, high, int(high - low) + 1 if whole else GRADES + 1)


def _load(name: str) -> Any:
    from tunesmith import catalog
    from tunesmith.models.load import load_model
    from tunesmith.models.precision import choose_dtype, default_device
    from tunesmith.models.saving import load_artefact

    if not name:
        raise RecipeError("score_model needs `model`", where="rewards.grader.model", fix="a run, or a model's name")
    device = default_device()
    if (Path(name) / "recipe.yaml").is_file():
        model = load_artefact(Path(name) / "model", device=device)[0]
    else:
        model = load_model(catalog.model_folder(name), name=name, dtype=choose_dtype("auto", device), device=device)
    if model.form != "generate":
        raise RecipeError(
            f"{name} is no causal language model, so it cannot be asked for a grade",
            where="rewards.grader.model",
            fix="name one that writes; for a reward model or a classifier use `kind: run`",
        )
    return model
