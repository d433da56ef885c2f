"""Spans of all shapes and tags of all schemes become the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from tunesmith.data.prepare import check, prepare
from tunesmith.data.sources import find_sources
from tunesmith.data.spans import Span, inline, spans_of
from tunesmith.events import Notice
from tunesmith.recipe_file import parse
from tunesmith.tasks import TASKS
from tunesmith.tasks.token_classification import written_spans

TEXT = "Ada Lovelace met Charles in London"
PLACES = [(0, 12, "person"), (17, 24, "person"), (28, 34, "place")]
TAGS = "B-person I-person O B-person O B-place"


def rows(tmp_path: Path, name: str, content: str, events: tiny.Events | None = None, **data: Any) -> list[Any]:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    keys = {"train": [str(path)], "validation": 0, "test": 0, **data}
    recipe = parse({"task": "token-classification", "model": "none", "data": keys})
    prepared = prepare(recipe, on_event=events if events is not None else tiny.Events())
    assert prepared.labels == ["person", "place"]
    return list(prepared.train)


def test_shapes_of_spans(tmp_path: Path) -> None:
    shapes: list[dict[str, Any]] = [
        {"text": TEXT, "spans": [{"start": s, "end": e, "label": name} for s, e, name in PLACES]},
        {"text": TEXT, "entities": [[s, e, name] for s, e, name in reversed(PLACES)]},
        {"content": TEXT, "label": [{"start_offset": s, "end_offset": e, "type": name} for s, e, name in PLACES]},
        {"text": TEXT, "spans": json.dumps([list(place) for place in PLACES])},
    ]
    for number, shape in enumerate(shapes):
        [row] = rows(tmp_path, f"{number}.jsonl", json.dumps(shape) + "\n")
        assert row.fields == {"text": TEXT, "spans": [list(place) for place in PLACES]}


def test_shapes_of_tags(tmp_path: Path) -> None:
    tokens = TEXT.split()
    names = ["O", "B-person", "I-person", "B-place", "I-place"]
    lists: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"tokens": tokens, "tags": TAGS.split()}, {}),
        ({"tokens": tokens, "ner_tags": [names.index(tag) for tag in TAGS.split()]}, {"label_names": names}),
        ({"words": TEXT, "labels": TAGS}, {}),
    ]
    wanted = {"text": TEXT, "tokens": tokens, "spans": [list(place) for place in PLACES]}
    for number, (shape, data) in enumerate(lists):
        assert [row.fields for row in rows(tmp_path, f"{number}.jsonl", json.dumps(shape) + "\n", **data)] == [wanted]
    table = f"tokens,tags\n{TEXT},{TAGS}\n"
    assert [row.fields for row in rows(tmp_path, "table.csv", table)] == [wanted]


CONLL = """-DOCSTART- -X- O O

Ada NNP B-NP B-person
Lovelace NNP I-NP I-person
met VBD B-VP O
Charles NNP B-NP B-person
in IN B-PP O
London NNP B-NP B-place

# a comment
Charles NNP B-NP B-person
"""


@pytest.mark.parametrize("name", ["train.conll", "train.bio", "train.txt", "eng.testa", "train.conll.gz"])
def test_conll_files_by_name_or_content(tmp_path: Path, name: str) -> None:
    import gzip

    path = tmp_path / name
    path.write_bytes(gzip.compress(CONLL.encode()) if name.endswith(".gz") else CONLL.encode())
    assert [source.format for source in find_sources([str(path)])] == ["conll"]
    recipe = parse({"task": "token-classification", "model": "x", "data": {"train": str(path), "test": 0}})
    prepared = prepare(recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": 0.0})}))
    first, second = prepared.train
    assert first.fields["text"] == TEXT and spans_of(first) == [Span(s, e, n, TEXT[s:e]) for s, e, n in PLACES]
    assert (first.origin.line, second.origin.line) == (3, 11)


def test_another_column_of_a_conll_file_can_be_learned(tmp_path: Path) -> None:
    path = tmp_path / "chunks.conll"
    path.write_text(CONLL, encoding="utf-8")
    data = {"train": str(path), "validation": 0, "test": 0, "columns": {"tags": "column 3"}}
    prepared = prepare(parse({"task": "token-classification", "model": "x", "data": data}))
    assert prepared.labels == ["NP", "PP", "VP"]
    assert [span.text for span in spans_of(prepared.train[0])] == ["Ada Lovelace", "met", "Charles", "in", "London"]


def test_wnut_quirks(tmp_path: Path) -> None:
    """A blank line that holds a tab; a token that is a space of its own kind; `#` at the start of a token."""
    content = "#Ada\tB-person\n\xa0\tO\n#\tO\n\t\nParis\tB-place\n"
    first, second = rows(tmp_path, "a.conll", content)
    assert first.fields["tokens"] == ["#Ada", "\xa0", "#"] and first.fields["spans"] == [[0, 4, "person"]]
    assert second.fields["text"] == "Paris" and second.origin.line == 5


@pytest.mark.parametrize(("content", "warned"), [("Ada\tB-person\n" * 101, True), (CONLL, False)])
def test_conll_without_blank_lines_is_a_warning(tmp_path: Path, content: str, warned: bool) -> None:
    path = tmp_path / "a.conll"
    path.write_text(content, encoding="utf-8")
    found = check(parse({"task": "token-classification", "model": "x", "data": {"train": str(path)}})).problems
    hints = [problem.fix for problem in found if problem.code == "one-sentence"]
    assert hints == (["put a blank line behind each sentence"] if warned else [])


def test_plain_text_is_not_taken_for_conll(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("Option A is O\nthe whole is more\n", encoding="utf-8")
    assert [source.format for source in find_sources([str(path)])] == ["text"]


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB2", "B-person I-person O B-person O B-place"),
        ("IOB1", "I-person I-person O I-person B-person I-place"),
        ("IOBES", "B-person E-person O S-person O S-place"),
        ("BILOU", "B-person L-person O U-person O U-place"),
    ],
)
def test_the_scheme_is_said_aloud(tmp_path: Path, scheme: str, tags: str) -> None:
    events = tiny.Events()
    content = "".join(f"{token}\t{tag}\n" for token, tag in zip(TEXT.split(), tags.split(), strict=True))
    [row] = rows(tmp_path, "a.conll", content, events)
    assert [notice.message for notice in events.of(Notice) if "scheme" in notice.message] == [
        f"the tags are of the scheme {scheme} and become spans of characters"
    ]
    assert not [notice for notice in events.of(Notice) if "tag-order" in notice.message]
    assert row.fields["spans"][-1] == [28, 34, "place"]


def test_hub_features_name_the_tags(tmp_path: Path) -> None:
    import datasets

    names = ["O", "B-person", "I-person", "B-place"]
    tags = datasets.Sequence(datasets.ClassLabel(names=names))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags})
    values = {"tokens": [TEXT.split()], "ner_tags": [[names.index(tag) for tag in TAGS.split()]]}
    path = tmp_path / "train.parquet"
    datasets.Dataset.from_dict(values, features=features).to_parquet(path)
    recipe = parse({"task": "token-classification", "model": "x", "data": {"train": str(path), "test": 0}})
    prepared = prepare(recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": 0.0})}))
    assert [span.place for span in spans_of(prepared.train[0])] == PLACES


def test_what_a_generating_model_is_asked_and_what_its_answer_means() -> None:
    task = TASKS["token-classification"]
    [row] = tiny.rows_of([{"text": TEXT, "spans": [list(place) for place in PLACES]}])
    question, answer = task.conversation(row, ["person", "place"], None)
    assert TEXT in question["content"] and "person, place" in question["content"]
    assert answer["content"] == "person: Ada Lovelace\nperson: Charles\nplace: London"
    assert [s.place for s in written_spans(answer["content"], TEXT, ["person", "place"])] == PLACES
    assert written_spans("none", TEXT, ["person"]) == []
    assert written_spans("planet: Ada\nperson: Bob\nperson:", TEXT, ["person"]) == []
    twice = written_spans("place: Paris\nplace: Paris\nplace: Paris", "Paris, not Paris", ["place"])
    assert [span.place for span in twice] == [(0, 5, "place"), (11, 16, "place")]
    assert inline(twice) == "Paris (place), Paris (place)" and inline([]) == "(no spans)"


def test_written_spans_with_colons_and_breaks_come_back() -> None:
    text = "at start: 5 pm in  New\n York, New York: now"
    names = ["time", "time:start", "LOC"]
    places = [(3, 14, "time"), (10, 14, "time:start"), (19, 28, "LOC"), (30, 38, "LOC")]
    for spans in ([places[1], *places[2:]], [places[0], *places[2:]]):
        [row] = tiny.rows_of([{"text": text, "spans": [list(place) for place in spans]}])
        answer = TASKS["token-classification"].conversation(row, names, None)[1]["content"]
        assert answer.splitlines()[1:] == ["LOC: New York", "LOC: New York"]
        found = written_spans(answer, text, names)
        assert [span.place for span in found] == spans
        assert [span.text for span in found] == [text[start:end] for start, end, _ in spans]
    assert [s.place for s in written_spans("TIME:Start : 5  pm", text, names)] == [places[1]]
    # the longest label whose words are there
    assert [s.place for s in written_spans("time:start: 5 pm", text, ["time"])] == [places[0]]
    assert [s.place for s in written_spans("a:b:c", "b:c", ["a", "a:b"])] == [(2, 3, "a:b")]
    assert [s.place for s in written_spans("a:b:c", "b:c", ["a", "b"])] == [(0, 3, "a")]
    assert [s.place for s in written_spans("a:b:c:d", "b:c:d", ["a", "a:x"])] == [(0, 5, "a")]
    assert [s.place for s in written_spans("a:b: c", "b: C, b: c", ["a", "a:b"])] == [(9, 10, "a:b")]
