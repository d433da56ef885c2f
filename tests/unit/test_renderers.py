"""The rendering for checks is the one for training, but for labels that are not known yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from tunesmith.data.render import Rendered
from tunesmith.data.renderers import check_renderer, recipe_renderer
from tunesmith.errors import DataError
from tunesmith.models.load import load_tokenizer
from tunesmith.recipe_file import parse

LONG = "the film was good and the plot was bad " * 6
ROWS: dict[str, tuple[str, list[str] | None, dict[str, Any]]] = {
    "text-classification": ("classify", ["bad", "good"], {"text": LONG, "label": "good"}),
    "multi-label-classification": ("multi-label", ["bad", "good"], {"text": LONG, "labels": ["good"]}),
    "text-regression": ("score", None, {"text": LONG, "score": 1.5}),
    "token-classification": ("tag", ["city"], {"text": LONG, "spans": [[4, 8, "city"]]}),
}


def renderings(folder: Path, task: str, form: str, labels: list[str] | None, **data: Any) -> tuple[Any, Any]:
    recipe = parse({"task": task, "model": "m", "data": {"train": "x.jsonl", **data}})
    tokenizer, natural = load_tokenizer(folder), "generate" if form == "generate" else "classify"
    training = recipe_renderer(recipe, tokenizer, form=form, labels=labels, max_length=24)
    return check_renderer(recipe, tokenizer, natural=natural, max_length=24), training


@pytest.mark.parametrize("task", ROWS)
def test_a_check_counts_the_tokens_that_training_sees(task: str, tiny_bert: Path) -> None:
    form, labels, fields = ROWS[task]
    checking, training = renderings(tiny_bert, task, form, labels)
    [row] = tiny.rows_of([fields])
    found, expected = checking(row), training(row)
    assert (found.input_ids, found.cut_tokens) == (expected.input_ids, expected.cut_tokens)
    assert found.cut_tokens > 0


@pytest.mark.parametrize("data", [{}, {"loss_on": "last-answer"}])
def test_a_conversation_is_checked_as_it_is_learned(data: dict[str, Any], tiny_decoder: Path) -> None:
    checking, training = renderings(tiny_decoder, "chat", "generate", None, **data)
    turns = [{"role": role, "content": word} for role, word in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    [row] = tiny.rows_of([{"messages": turns}])
    found: Rendered = checking(row)
    assert found == training(row)


def test_a_document_is_counted_with_all_its_blocks(tiny_decoder: Path) -> None:
    """A special token that the text spells out is text, as in training."""
    checking, training = renderings(tiny_decoder, "language-modeling", "generate", None)
    [row] = tiny.rows_of([{"text": "<|im_end|>" + LONG}])
    found, first = checking(row), training(row)
    assert len(first.input_ids) == 24 < len(found.input_ids) and found.input_ids[:24] == first.input_ids
    assert found.input_ids.count(load_tokenizer(tiny_decoder).eos_token_id) == 1


def test_rows_that_would_be_cut_are_refused_in_training_and_told_by_the_check(tiny_bert: Path) -> None:
    form, labels, fields = ROWS["text-classification"]
    checking, training = renderings(tiny_bert, "text-classification", form, labels, truncate=False)
    [row] = tiny.rows_of([fields])
    assert checking(row).cut_tokens > 0
    with pytest.raises(DataError, match="tokens too many") as caught:
        training(row)
    assert caught.value.where == "rows.jsonl:1"
