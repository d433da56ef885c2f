"""Which rendering a model and a task call for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data import render_pairs
from tunesmith.data.documents import Blocks, block_renderer
from tunesmith.data.render import ConversationRenderer, Render, Rendered, conversation_renderer, uncut
from tunesmith.data.render_labels import (
    classification_renderer,
    grade_renderer,
    input_renderer,
    label_set_renderer,
    score_renderer,
)
from tunesmith.data.rows import Row
from tunesmith.data.settings import LossOn
from tunesmith.data.source_target import source_target_renderer
from tunesmith.data.tagging import tag_renderer
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS
from tunesmith.tasks.base import Task

if TYPE_CHECKING:
    from tunesmith.models.model import Model

_HEADS = {"spans": "tag", "labels": "multi-label", "score": "score"}  # kinds of answers that a head gives in any model
_NEED_LABELS = ("multi-label", "ordinal", "classify")  # forms whose answer is a place among the labels


def row_renderer(
    tokenizer: Any,
    task: Task,
    *,
    form: str,
    labels: Sequence[str] | None,
    max_length: int,
    system_prompt: str | None = None,
    eos_ids: Sequence[int] | None = None,
    loss_on: LossOn = "every-answer",
    all_pieces: bool = False,
) -> Render:
    """The rendering of a task's rows for a model: the one that training, planning and checks share.

    Args:
        tokenizer: The model's.
        task: Whose rows.
        form: How the model answers (:data:`tunesmith.models.model.Form`).
        labels: The classes, if the task has any; as long as they are not known, only what goes into a head is rendered.
        max_length: Longest example in tokens.
        system_prompt: Put before every conversation.
        eos_ids: Token ids that end an answer; default: the tokenizer's EOS.
        loss_on: Which answers of a conversation are learned, of those that name no weight of their own.
        all_pieces: Whether all pieces of a word carry its tag (``data.tag_pieces``).
    """
    if task.answer == "pair":
        if form == "classify":
            reader = render_pairs.score_reader(tokenizer, max_length, eos_ids)
            return render_pairs.score_pair_renderer(reader, system_prompt)
        return render_pairs.pair_renderer(ConversationRenderer(tokenizer, max_length, eos_ids), system_prompt)
    if labels is None and form in _NEED_LABELS:
        return input_renderer(tokenizer, task, max_length)
    if form == "tag":
        return tag_renderer(tokenizer, labels or [], max_length, all_pieces=all_pieces)
    if form == "multi-label":
        return label_set_renderer(tokenizer, task, labels or [], max_length)
    if form == "score":
        return score_renderer(tokenizer, task, max_length)
    if form == "ordinal":
        return grade_renderer(tokenizer, task, labels or [], max_length)
    if form == "classify":
        return classification_renderer(tokenizer, task, labels or [], max_length)
    if form == "seq2seq":
        return source_target_renderer(tokenizer, task, max_length, system_prompt)
    renderer = ConversationRenderer(tokenizer, max_length, eos_ids)
    if task.answer == "thumb":
        return render_pairs.thumb_renderer(renderer, task, system_prompt)
    return conversation_renderer(renderer, task, labels, system_prompt, loss_on)


def recipe_renderer(
    recipe: Recipe,
    tokenizer: Any,
    *,
    form: str,
    labels: Sequence[str] | None,
    max_length: int,
    eos_ids: Sequence[int] | None = None,
) -> Render:
    """The rendering that a recipe asks for; see :func:`row_renderer`. Of a document it is the first block.

    Where masked words are learned, the block is as an epoch might show it: with one draw of the mask, and loss on what
    is hidden. Rows that are too long are refused with ``data.truncate: false``.
    """
    task = TASKS[recipe.task]
    if task.answer == "likelihood":
        blocks = block_renderer(tokenizer, task, masked=form == "mask", max_length=max_length)
        if form == "mask":
            return _masked(blocks, tokenizer, recipe)
        return lambda row: blocks(row)[0]
    render = _by_recipe(recipe, tokenizer, form, labels, max_length, eos_ids)
    return render if recipe.data.truncate else uncut(render)


def check_renderer(recipe: Recipe, tokenizer: Any, *, natural: str, max_length: int) -> Render:
    """The rendering for checks, which do not know the labels yet: for a head that needs them it is what goes in alone.

    A document is rendered whole, for all of its blocks are learned. Rows that are too long are cut: the check says so.

    Args:
        recipe: As the stage sees it.
        tokenizer: The model's.
        natural: What the model is made for (:func:`tunesmith.models.load.natural_form`).
        max_length: Longest example in tokens.
    """
    task = TASKS[recipe.task]
    if task.answer == "likelihood":
        blocks = block_renderer(tokenizer, task, masked=natural == "classify", max_length=max_length)
        return lambda row: Rendered([token for block in blocks(row) for token in block.input_ids])
    return _by_recipe(recipe, tokenizer, _HEADS.get(task.answer, natural), None, max_length, None)


def _by_recipe(
    recipe: Recipe,
    tokenizer: Any,
    form: str,
    labels: Sequence[str] | None,
    max_length: int,
    eos_ids: Sequence[int] | None,
) -> Render:
    return row_renderer(
        tokenizer,
        TASKS[recipe.task],
        form=form,
        labels=labels,
        max_length=max_length,
        system_prompt=recipe.system_prompt,
        eos_ids=eos_ids,
        loss_on=recipe.data.loss_on,
        all_pieces=recipe.data.tag_pieces == "all",
    )


def _masked(blocks: Blocks, tokenizer: Any, recipe: Recipe) -> Render:
    """The first block of a document with words hidden, by a draw that its content decides."""
    from tunesmith.objectives.language import KEPT, hide

    training = (recipe.stages[-1].training if recipe.stages else None) or recipe.training

    def render(row: Row) -> Rendered:
        block = blocks(row)[0]
        ids, maskable = np.asarray(block.input_ids), np.asarray(block.loss_weights) > 0
        words = np.asarray(block.extra["word"]) if training.whole_words else np.arange(len(ids))
        random = np.random.default_rng([training.seed, int(row.key, 16)])
        shown, targets = hide(ids, words, maskable, tokenizer, training.mask_share, random)
        return replace(block, input_ids=shown.tolist(), loss_weights=(targets != KEPT).astype(float).tolist())

    return render


def model_renderer(recipe: Recipe, model: Model, labels: Sequence[str] | None) -> Render:
    """The same for a model that is loaded."""
    return recipe_renderer(
        recipe,
        model.tokenizer,
        form=model.form,
        labels=labels,
        max_length=model.max_length,
        eos_ids=model.eos_ids,
    )
