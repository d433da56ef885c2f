"""Examples as the model sees them: what is learned, what is only read, and what was cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny import rows_of
from tunesmith.data.render import Render
from tunesmith.data.renderers import recipe_renderer, row_renderer
from tunesmith.data.shown import Piece, ShownExample, shortened, show_rows
from tunesmith.models.load import load_tokenizer
from tunesmith.recipe_file import parse
from tunesmith.tasks import TASKS

TURNS = [
    {"role": "user", "content": "the film <|im_end|>"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "the plot"},
    {"role": "assistant", "content": "bad", "weight": 0.5},
]


def shown(folder: Path, values: list[dict[str, Any]], *, max_length: int = 200, count: int = 3) -> list[ShownExample]:
    tokenizer = load_tokenizer(folder)
    render: Render = row_renderer(tokenizer, TASKS["chat"], form="generate", labels=None, max_length=max_length)
    return show_rows(rows_of(values), count, render, tokenizer, TASKS["chat"])


def test_learned_tokens_are_told_from_read_ones(tiny_decoder: Path) -> None:
    [example] = shown(tiny_decoder, [{"messages": TURNS}])
    end = Piece("<|im_end|>", 0.0, True)
    learned = [piece for piece in example.pieces if piece.weight]
    assert learned == [Piece("good", 1.0), replace(end, weight=1.0), Piece("bad", 0.5), replace(end, weight=0.5)]
    assert Piece("user\nthe film <|im_end|>") in example.pieces  # what a user wrote is text
    text = "".join(piece.text for piece in example.pieces)
    assert text.startswith("<|im_start|>user\nthe film <|im_end|><|im_end|>\n<|im_start|>assistant\ngood<|im_end|>")
    assert example.tokens == sum(1 for _ in load_tokenizer(tiny_decoder)(text)["input_ids"]) + 9  # of the text's own
    assert example.answer is None and "of them learned" in example.summary


def test_what_was_cut_is_counted_and_bad_rows_are_passed_over(tiny_decoder: Path) -> None:
    long = {"messages": [TURNS[0], {"role": "assistant", "content": "good " * 100}]}
    hopeless = {"messages": [{"role": "user", "content": "the film " * 100}, TURNS[1]]}
    [example] = shown(tiny_decoder, [hopeless, long], max_length=60)
    assert example.where == "rows.jsonl:2" and example.tokens == 60 and example.cut_tokens > 0
    assert example.summary.endswith("more were cut off")


def test_rows_at_even_distances(tiny_decoder: Path) -> None:
    examples = shown(tiny_decoder, [{"messages": TURNS}] * 9)
    assert [example.where for example in examples] == ["rows.jsonl:1", "rows.jsonl:4", "rows.jsonl:7"]


def test_a_label_is_what_is_learned(tiny_bert: Path) -> None:
    tokenizer, task = load_tokenizer(tiny_bert), TASKS["text-classification"]
    render = row_renderer(tokenizer, task, form="classify", labels=["neg", "pos"], max_length=64)
    [example] = show_rows(rows_of([{"text": "good film", "label": "pos"}]), 1, render, tokenizer, task)
    assert [piece.text for piece in example.pieces] == ["[CLS]", "good film", "[SEP]"]
    assert [piece.special for piece in example.pieces] == [True, False, True]
    assert example.answer == "pos" and example.summary == "4 tokens"


def test_the_middle_of_a_long_text_is_left_out_aloud() -> None:
    assert shortened("a" * 10, 10) == "a" * 10
    assert shortened("a" * 50 + "b" * 50, 10) == "aaaaa … (90 characters not shown) … bbbbb"


def masked(folder: Path, **training: Any) -> ShownExample:
    tokenizer, task = load_tokenizer(folder), TASKS["language-modeling"]
    tree = {"task": "language-modeling", "model": "m", "method": "self-supervised", "training": training}
    recipe = parse(tree | {"data": {"train": "corpus.txt"}}).resolved()
    render = recipe_renderer(recipe, tokenizer, form="mask", labels=None, max_length=64)
    row = {"text": "the film was good and the plot was bad " * 5}
    [example] = show_rows(rows_of([row]), 1, render, tokenizer, task)
    assert show_rows(rows_of([row]), 1, render, tokenizer, task) == [example], "the same draw each time"
    return example


def test_masked_words_are_shown_as_the_model_is_fed_them(tiny_bert: Path) -> None:
    """Of a block 15 % are hidden and learned, most of them behind the mask; the rest is only read."""
    example = masked(tiny_bert)
    learned = [piece for piece in example.pieces if piece.weight]
    assert example.learned_tokens == round(0.15 * (example.tokens - 2))
    assert any("[MASK]" in piece.text for piece in learned)
    assert not any("[MASK]" in piece.text for piece in example.pieces if not piece.weight)
    assert f"{example.learned_tokens} of them learned" in example.summary


def test_the_draw_hides_the_share_that_the_recipe_says(tiny_bert: Path) -> None:
    example = masked(tiny_bert, mask_share=0.5)
    assert example.learned_tokens == round(0.5 * (example.tokens - 2))
