"""Between characters, words and pieces: what is learned of a span leads back to its characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny
from tunesmith.data.rows import Origin, Row
from tunesmith.data.spans import words_of
from tunesmith.data.tagging import (
    IGNORED,
    spans_from,
    tag_names,
    tag_renderer,
    windows,
    word_probabilities,
    word_tags,
)
from tunesmith.data.words import token_offsets, word_offsets
from tunesmith.errors import DataError
from tunesmith.models.load import load_tokenizer
from tunesmith.prediction.span_answers import by_dictionary, by_head

TEXTS = st.text("paris rome 中国!.,'_-é\u200d\n😂", min_size=1, max_size=40)


@pytest.fixture(scope="module", params=["tiny_bert", "tiny_decoder"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Word pieces, and pieces of bytes."""
    return load_tokenizer(request.getfixturevalue(request.param))


def row_of(text: str, *spans: tuple[int, int, str]) -> Row:
    return Row({"text": text, "spans": [list(span) for span in spans]}, Origin("rows.jsonl", 1))


def test_words() -> None:
    text = "In Berlin's Café, दिल्ली 中国 3.5"
    found = [text[start:end] for start, end in word_offsets(text)]
    assert found == ["In", "Berlin", "'", "s", "Café", ",", "दिल्ली", "中", "国", "3", ".", "5"]
    assert token_offsets(["@a", "b!", ""]) == [(0, 2), (3, 5), (6, 6)]


def round_trip(tokenizer: Any, row: Row, labels: list[str], max_length: int = 64) -> list[tuple[int, int, str]]:
    """What a model that learned the row by heart would answer."""
    text, words = row.fields["text"], words_of(row)
    parts = windows(tokenizer, text, words, max_length)
    names, tags = tag_names(labels), word_tags(row, words)
    found = []
    for window in parts:
        sure = np.zeros((len(window.input_ids), len(names)))
        for place, word in enumerate(window.word_of_piece):
            sure[place, 0 if word == IGNORED else names.index(tags[word])] = 1.0
        found.append(sure)
    probabilities = word_probabilities(parts, found, len(words), len(names))
    return [span.place for span in spans_from(probabilities, text, words, parts, labels)]


def test_spans_come_back_to_the_character(tokenizer: Any) -> None:
    text = "  the film in paris,madrid\n(rome) was  lovely!"
    spans = [(14, 19, "city"), (20, 26, "city"), (28, 32, "city"), (39, 45, "good")]
    assert round_trip(tokenizer, row_of(text, *spans), tiny.SPAN_LABELS) == spans


def test_given_tokens_are_the_words() -> None:
    """``@paris`` is one token here and two words of plain text."""
    row = Row({"text": "@paris , rome", "tokens": ["@paris", ",", "rome"], "spans": [[0, 6, "city"]]}, Origin("f", 1))
    assert words_of(row) == [(0, 6), (7, 8), (9, 13)]
    assert word_tags(row, words_of(row)) == ["B-city", "O", "O"]
    plain = Row({"text": "@paris , rome", "spans": [[0, 6, "city"]]}, Origin("f", 1))
    assert word_tags(plain, words_of(plain)) == ["B-city", "I-city", "O", "O"]


@given(text=TEXTS, data=st.data())
def test_spans_of_whole_words_survive_word_pieces(tiny_bert: Path, text: str, data: st.DataObject) -> None:
    tokenizer = cached_tokenizer(tiny_bert)
    words = word_offsets(text)
    kept = [word for window in windows(tokenizer, text, words, 64) for word in window.heads]
    assume(words and len(kept) == len(words))  # an unknown piece may cover several
    chosen = sorted(data.draw(st.sets(st.sampled_from(kept), max_size=4)))
    row = row_of(text, *((words[word][0], words[word][1], "city") for word in chosen))
    found = round_trip(tokenizer, row, ["city"])
    assert found == [tuple(span) for span in row.fields["spans"]]


_TOKENIZERS: dict[Path, Any] = {}


def cached_tokenizer(folder: Path) -> Any:
    if folder not in _TOKENIZERS:
        _TOKENIZERS[folder] = load_tokenizer(folder)
    return _TOKENIZERS[folder]


def test_a_piece_that_swallows_words_carries_their_tag(tiny_decoder: Path) -> None:
    """Byte pairs may join signs that are words of their own: what they cover comes back whole."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "!": 1, "!!": 2, "Ġ": 3, "Ġa": 4, "b": 5}
    raw = Tokenizer(models.BPE(vocabulary, [("!", "!"), ("Ġ", "a")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    joined = PreTrainedTokenizerFast(tokenizer_object=raw)
    text = "a!! a"
    parts = windows(joined, text, word_offsets(text), 16)
    assert [joined.convert_ids_to_tokens(window.input_ids) for window in parts] == [["a", "!!", "Ġa"]]
    assert parts[0].heads == {0: 0, 1: 1, 3: 2}  # the second `!` has no piece of its own
    assert round_trip(joined, row_of(text, (1, 3, "city")), ["city"]) == [(1, 3, "city")]


def test_the_first_piece_carries_the_tag(tiny_bert: Path) -> None:
    tokenizer = cached_tokenizer(tiny_bert)
    row = row_of("the moviescene was paris", (4, 14, "good"), (19, 24, "city"))
    rendered = tag_renderer(tokenizer, ["city", "good"], 64)(row)
    pieces = tokenizer.convert_ids_to_tokens(rendered.input_ids)
    tags = list(rendered.extra["tags"])
    assert pieces[0] == "[CLS]" and tags[0] == tags[-1] == IGNORED
    heads = [place for place, tag in enumerate(tags) if tag != IGNORED]
    assert [pieces[place] for place in heads] == ["the", pieces[2], "was", "paris"]
    assert [tags[place] for place in heads] == [0, 3, 0, 1]  # O, B-good, O, B-city
    assert len(pieces) > 6 and rendered.loss_weights == [float(tag != IGNORED) for tag in tags]
    every = tag_renderer(tokenizer, ["city", "good"], 64, all_pieces=True)(row).extra["tags"]
    assert every[2] == 3 and set(every[3 : heads[2]]) == {4}  # I-good on the rest of the word


def test_a_long_text_loses_its_end_in_training_only(tiny_bert: Path) -> None:
    tokenizer = cached_tokenizer(tiny_bert)
    text = " ".join(["the film was very good in paris"] * 12)
    row = row_of(text, (len(text) - 5, len(text), "city"))
    rendered = tag_renderer(tokenizer, ["city"], 24)(row)
    assert len(rendered.input_ids) == 24 and rendered.cut_tokens > 60
    assert not any(tag > 0 for tag in rendered.extra["tags"])
    assert round_trip(tokenizer, row, ["city"], 24) == [(len(text) - 5, len(text), "city")]
    parts = windows(tokenizer, text, word_offsets(text), 24)
    assert len(parts) > 4 and all(len(part.input_ids) <= 24 for part in parts)
    assert {word for part in parts for word in part.heads} == set(range(84))


def test_a_word_of_two_windows_is_judged_in_the_inner_place(tiny_bert: Path) -> None:
    tokenizer = cached_tokenizer(tiny_bert)
    text = " ".join(["the"] * 20)
    parts = windows(tokenizer, text, word_offsets(text), 12)
    found = [np.full((len(part.input_ids), 1), float(n)) for n, part in enumerate(parts)]
    chosen = word_probabilities(parts, found, 20, 1)[:, 0]
    assert chosen.tolist() == sorted(chosen.tolist()) and set(chosen) == set(range(len(parts)))
    shared = sorted(set(parts[0].heads) & set(parts[1].heads))
    assert len(shared) == 2 and chosen[shared].tolist() == [0.0, 1.0]


def test_a_text_without_pieces_cannot_teach(tiny_decoder: Path) -> None:
    with pytest.raises(DataError, match="nothing of this text"):
        tag_renderer(cached_tokenizer(tiny_decoder), ["city"], 64)(row_of(""))


def test_texts_are_tagged_alike_alone_and_together(tiny_bert: Path) -> None:
    model = tiny.build(tiny_bert, "tag")
    torch.nn.init.normal_(model.network.get_submodule("classifier").weight, std=1.0)
    rows = [row_of(row["text"]) for row in tiny.tagged_rows(12)] + [row_of(""), row_of("the film " * 80)]
    together = by_head(model, rows).spans or []
    assert any(together)
    for row, spans in zip(rows, together, strict=True):
        [alone] = by_head(model, [row]).spans or []
        assert [span.place for span in alone] == [span.place for span in spans]
        assert all(row.fields["text"][span.start : span.end] == span.text and 0 < span.score <= 1 for span in spans)


def test_rows_are_computed_the_same_without_padding(tiny_bert: Path, tmp_path: Path) -> None:
    from tunesmith.data.batches import collate

    model = tiny.build(tiny_bert, "tag")
    assert model.packs(40)
    model.network.eval()
    batch = collate(tiny.tokens(model, tiny.tagged_rows(8), tmp_path), list(range(8)), model.pad_id, 16)
    places = (batch.extra["tags"] != IGNORED).nonzero(as_tuple=True)
    packed = model.token_logits(batch, *places)
    model.packable_length = 0
    torch.testing.assert_close(packed, model.token_logits(batch, *places), rtol=1e-9, atol=1e-12)


def test_the_dictionary_gives_each_word_its_usual_tag() -> None:
    train = [row_of("paris is rome", (0, 5, "city")), row_of("paris", (0, 5, "city")), row_of("rome", (0, 4, "city"))]
    outputs = by_dictionary(train, [row_of("Is paris rome ?"), row_of("madrid")])
    assert [[span.place for span in spans] for spans in outputs.spans or []] == [[(3, 8, "city")], []]
