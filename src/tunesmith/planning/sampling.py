"""A sample of the rows as the model would read them, taken for the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.batches import SECOND_TEXT
from tunesmith.planning.costs import Sample
from tunesmith.recipe import Recipe, Training

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData
    from tunesmith.data.render import Rendered
    from tunesmith.data.rows import Row
    from tunesmith.errors import DataError
    from tunesmith.models.model import Form

SAMPLE_ROWS = 512


def render(recipe: Recipe, data: PreparedData, folder: Path, config: Any, form: Form, training: Training) -> Sample:
    """Render rows at even distances and take them for the whole.

    Raises:
        DataError: Nothing can be learned from one of them, and such rows are not left out, or from none of them.
    """
    from tunesmith.data.documents import block_renderer
    from tunesmith.data.dropped import each_rendered
    from tunesmith.data.renderers import recipe_renderer
    from tunesmith.models.load import load_tokenizer, longest_example
    from tunesmith.tasks import TASKS

    tokenizer = load_tokenizer(folder)
    max_length = longest_example(folder, config, recipe.data.max_length)
    task = TASKS[recipe.task]
    rows = [data.train[n] for n in range(0, len(data.train), max(1, len(data.train) // SAMPLE_ROWS))]
    errors: list[DataError] = []

    def keep_first(row: Row, error: DataError) -> None:  # the rendering for training tells them all
        if not errors:
            error.where = error.where or str(row.origin)
            errors.append(error)

    leave_out = keep_first if recipe.data.drop_bad else None
    if task.answer == "likelihood":
        blocks = block_renderer(tokenizer, task, masked=form == "mask", max_length=max_length)
        rendered = [block for _, found in each_rendered(rows, blocks, leave_out) for block in found]
    else:
        render = recipe_renderer(recipe, tokenizer, form=form, labels=data.labels, max_length=max_length)
        rendered = [example for _, example in each_rendered(rows, render, leave_out)]
    if errors and not rendered:
        raise errors[0]
    lengths = np.array([len(example.input_ids) for example in rendered], dtype=np.int64)
    weighted = sum(sum(w > 0 for w in example.loss_weights or []) for example in rendered)
    asked = training.mask_share if form == "mask" else 1.0
    return Sample(
        lengths=np.resize(lengths, len(data.train) * len(rendered) // len(rows)),
        validation_tokens=int(len(data.validation) * lengths.sum() / len(rows)),
        loss_share=asked * weighted / max(1, int(lengths.sum())),
        cut_share=sum(example.cut_tokens > 0 for example in rendered) / max(1, len(rendered)),
        words=different_tokens([_shown(example) for example in rendered], len(data.train) / len(rows)),
    )


def _shown(example: Rendered) -> list[int]:
    """The tokens of an example, those of a second text too."""
    return [*example.input_ids, *(int(token) for token in example.extra.get(SECOND_TEXT, []))]


def different_tokens(examples: Sequence[Sequence[int]], times: float) -> float:
    """Different tokens in so many times as many examples, from those in one example alone and in two.

    Extrapolated by Colwell et al. 2012 ("Models and estimators linking individual-based and sample-based rarefaction,
    extrapolation and comparison of assemblages", equation 18), with Chao's estimate of what no example has shown.
    """
    n = len(examples)
    _, found = np.unique(np.concatenate([np.unique(example) for example in examples]), return_counts=True)
    once, twice = int((found == 1).sum()), int((found == 2).sum())
    unseen = (n - 1) / n * (once**2 / (2 * twice) if twice else once * (once - 1) / 2)
    if not unseen:
        return float(len(found))
    return float(len(found) + unseen * (1 - (1 - once / (n * unseen + once)) ** ((times - 1) * n)))


def grouped(sample: Sample, training: Training) -> Sample:
    """The same rows in the groups of contrastive learning, each as often as it has rounds."""
    from tunesmith.data.groups import default_rounds

    size = training.contrastive.group_size
    rounds = training.contrastive.rounds or default_rounds(len(sample.lengths), size)
    groups = max(1, len(sample.lengths) // size) * rounds
    mean = int(sample.lengths.mean() * min(size, len(sample.lengths)))
    return dataclasses.replace(
        sample, lengths=np.full(groups, mean), validation_tokens=sample.validation_tokens * rounds
    )
