"""Rows that show only as tokens that nothing can be learned from them: refused with their line, or left out aloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
import tunesmith
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.documents import block_renderer, write_documents
from tunesmith.data.render import Rendered, uncut
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.events import Listener, Notice, nobody
from tunesmith.models.load import load_tokenizer
from tunesmith.tasks import TASKS


def render(row: Row) -> Rendered:
    tokens = row.fields["tokens"]
    if not tokens:
        raise DataError("no token of this example carries loss", fix="give it an answer")
    return Rendered(list(range(min(4, tokens))), [1.0] * min(4, tokens), cut_tokens=max(0, tokens - 4))


def written(lengths: list[int], folder: Path, *, drop: bool, tell: Listener = nobody) -> TokenFile:
    rows = tiny.rows_of([{"tokens": length} for length in lengths])
    dropped_to = folder / "dropped.jsonl" if drop else None
    return write_tokens(rows, uncut(render), folder / "tokens", what="test", dropped_to=dropped_to, on_event=tell)


@pytest.mark.parametrize(("lengths", "what"), [([2, 0], "carries loss"), ([2, 9], "longer than `data.max_length`")])
def test_a_row_is_refused_with_its_line_and_the_ways_out(lengths: list[int], what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=what) as caught:
        written(lengths, tmp_path, drop=False)
    assert caught.value.where == "rows.jsonl:2" and "`data.drop_bad: true`" in str(caught.value.fix)


def test_rows_are_left_out_aloud_and_kept_in_a_file(tmp_path: Path) -> None:
    events = tiny.Events()
    data = written([2, 0, 3, 9], tmp_path, drop=True, tell=events)
    assert data.lengths.tolist() == [2, 3] and [str(origin) for origin in data.origins] == [
        "rows.jsonl:1",
        "rows.jsonl:3",
    ]
    lines = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in lines] == [("rows.jsonl", 2), ("rows.jsonl", 4)]
    assert lines[1]["reasons"] == ["longer than `data.max_length` (or than the model takes); tokens too many: 5"]
    assert json.loads(lines[1]["row"]) == {"tokens": 9}
    [notice] = events.of(Notice)
    assert notice.level == "warning" and "2 of 4 rows are left out" in notice.message and notice.where == "rows.jsonl:2"
    assert str(tmp_path / "dropped.jsonl") in notice.message
    written([2], tmp_path, drop=True)
    assert not (tmp_path / "dropped.jsonl").exists(), "that of an earlier rendering does not stay"


def test_that_no_row_is_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="carries loss") as caught:
        written([0, 0], tmp_path, drop=True)
    assert caught.value.where == "rows.jsonl:1"


def test_a_document_without_tokens_is_no_silent_loss(tiny_bert: Path, tmp_path: Path) -> None:
    rows = tiny.rows_of(
        [{"text": "a good film"}, {"text": "\u0001"}]
    )  # a control character, which BERT's tokenizer drops
    tokenizer, task = load_tokenizer(tiny_bert), TASKS["language-modeling"]
    blocks = block_renderer(tokenizer, task, masked=True, max_length=16)
    with pytest.raises(DataError, match="leaves nothing of this text") as caught:
        write_documents(rows, blocks, tmp_path / "a")
    assert caught.value.where == "rows.jsonl:2"
    assert len(write_documents(rows, blocks, tmp_path / "b", dropped_to=tmp_path / "dropped.jsonl")) == 1


def tuned(model: Path, folder: Path, bad: dict[str, Any], **data: Any) -> tunesmith.Run:
    return tunesmith.tune(
        [*tiny.question_rows(60), bad],
        task="text-generation",
        model=str(model),
        method="full",
        run_dir=folder,
        on_event=nobody,
        precision="fp32",
        data={"max_length": 64, "validation": 0.0, "test": 0.0, **data},
        training={"max_steps": 2, "batch_size": 8, "compile": "off"},
        evaluate={"baselines": []},
    )


HOPELESS = {"prompt": "what is the capital of france " * 40, "completion": "paris"}
TOO_LONG = {"prompt": "what is the capital of france", "completion": "paris " * 100}


@pytest.mark.parametrize(("bad", "data"), [(HOPELESS, {}), (TOO_LONG, {"truncate": False})])
def test_a_run_goes_on_without_such_rows(
    bad: dict[str, Any], data: dict[str, Any], tiny_decoder: Path, tmp_path: Path
) -> None:
    """A run does not render while it checks: only when the rows become tokens does it show."""
    with pytest.raises(DataError) as caught:
        tuned(tiny_decoder, tmp_path / "stops", bad, **data)
    assert str(caught.value.where).endswith("rows.jsonl:61") and "drop_bad" in str(caught.value.fix)
    run = tuned(tiny_decoder, tmp_path / "goes-on", bad, drop_bad=True, **data)
    [line] = (run.path / "stages" / "1-tune" / "dropped-train.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["line"] == 61 and run.status == "finished"


def test_groups_are_made_of_the_rows_that_are_left(tiny_encoder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"the film was {'good' if n % 2 else 'bad'} {n}", "label": "ab"[n % 2]} for n in range(20)]
    run = tunesmith.tune(
        [*rows, {"text": "the film was good " * 50, "label": "a"}],
        task="text-classification",
        model=str(tiny_encoder),
        method="few-shot",
        run_dir=tmp_path / "run",
        on_event=nobody,
        precision="fp32",
        data={"max_length": 32, "validation": 0.0, "test": 0.0, "truncate": False, "drop_bad": True},
        training={"max_steps": 2, "batch_size": 2, "compile": "off"},
        evaluate={"baselines": []},
    )
    [dropped] = run.path.glob("stages/*/dropped-train.jsonl")
    assert json.loads(dropped.read_text(encoding="utf-8"))["line"] == 21
