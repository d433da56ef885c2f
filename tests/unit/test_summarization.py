from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from conftest import sentences, write_jsonl
from tunesmith.checking import check
from tunesmith.cli import main
from tunesmith.data.fitting import fit
from tunesmith.data.prepare import prepare
from tunesmith.data.render import ConversationRenderer, conversation_renderer
from tunesmith.errors import DataError
from tunesmith.evaluation import extractive
from tunesmith.events import Notice
from tunesmith.models.load import load_tokenizer
from tunesmith.prediction import answering
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Data, Generation, Recipe
from tunesmith.tasks import TASKS
from tunesmith.tasks.summarization import Summarization

TASK = Summarization()


def documents(count: int, words: int = 40) -> list[dict[str, Any]]:
    texts = sentences(count * 8)
    return [
        {"document": ". ".join(texts[8 * n : 8 * n + 8])[: words * 6] + f" {n}", "summary": texts[8 * n]}
        for n in range(count)
    ]


def read(path: Path, **data: Any) -> Any:
    tree = {"train": [str(path)], "validation": 0.0, "test": 0.0, **data}
    return prepare(Recipe(task="summarization", model="none", data=Data(**tree)))


def test_columns_are_found_under_their_usual_names(tmp_path: Path) -> None:
    rows = [{"article": f"{text}. And more of it {n}.", "highlights": text} for n, text in enumerate(sentences(30))]
    data = read(write_jsonl(tmp_path / "news.jsonl", rows))
    row = data.train[0]
    assert TASK.input_text(row) == rows[0]["article"] and TASK.reference(row) == (rows[0]["highlights"],)


def test_references_in_lists_and_in_columns_of_different_counts(tmp_path: Path) -> None:
    lists = [
        {"source": ["One is here.", f"Two is {n}."], "target": ["one", "two", "three"][: 1 + n % 3]} for n in range(30)
    ]
    data = read(write_jsonl(tmp_path / "lists.jsonl", lists))
    assert [len(TASK.reference(row)) for row in data.train[:3]] == [1, 2, 3]
    assert TASK.input_text(data.train[1]) == "One is here. Two is 1."
    assert TASK.sentences(data.train[1]) == ["One is here.", "Two is 1."]
    table = tmp_path / "table.csv"
    lines = [f"document {n} is long,first {n},{'' if n % 2 else 'second'}" for n in range(30)]
    table.write_text("document,summary_1,summary_2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    data = read(table)
    assert [TASK.reference(row) for row in data.train[:2]] == [("first 0", "second"), ("first 1",)]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"document": "  ", "summary": "a"}, "empty-field"),
        ({"document": [], "summary": "a"}, "empty-field"),
        ({"document": "a text", "summary": []}, "empty-field"),
        ({"document": "a text", "summary": ["a", 3]}, "wrong-type"),
        ({"document": "a text"}, "missing-field"),
    ],
)
def test_bad_rows_are_named_with_their_line(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*documents(20), row, *documents(3)])
    recipe = Recipe(task="summarization", model="nobody/none", data=Data(train=[str(path)]))
    (problem,) = (p for p in check(recipe).problems if p.severity == "error")
    assert (problem.code, [str(place) for place in problem.where]) == (code, [f"{path}:21"])


def test_a_summary_longer_than_its_document_is_a_warning(tmp_path: Path) -> None:
    row = {"document": "short", "summary": "this is the document, surely"}
    path = write_jsonl(tmp_path / "rows.jsonl", [*documents(20), row])
    report = read(path).report
    (warning,) = (p for p in report.problems if p.code == "long-summary")
    assert warning.severity == "warning" and str(warning.where[0]).endswith(":21")


@pytest.mark.parametrize("space", [" ", "\n"])
def test_sentences(space: str) -> None:
    parts = ["He came.", "She went!", "'Why?'", "Nobody e.g. knew it."]
    (row,) = tiny.rows_of([{"document": space.join(parts), "summary": []}])
    assert TASK.sentences(row) == parts
    (row,) = tiny.rows_of([{"document": "彼は来た。彼女は行った。", "summary": []}])
    assert TASK.sentences(row) == ["彼は来た。", "彼女は行った。"]


def test_a_long_document_is_cut_and_its_summary_is_not(tiny_decoder: Path) -> None:
    tokenizer = load_tokenizer(tiny_decoder)
    (row,) = tiny.rows_of([{"document": " ".join(sentences(60)), "summary": ["the plot was good"]}])
    whole = conversation_renderer(ConversationRenderer(tokenizer, 10_000), TASK, None)(row)
    render = conversation_renderer(ConversationRenderer(tokenizer, 100), TASK, None)
    rendered = render(row)
    assert 90 <= len(rendered.input_ids) <= 100
    assert rendered.cut_tokens == pytest.approx(len(whole.input_ids) - len(rendered.input_ids), abs=3)
    assert sum(rendered.loss_weights or []) == sum(whole.loss_weights or [])  # the summary and its EOS
    assert "the plot was good" in tokenizer.decode(rendered.input_ids)
    (short,) = tiny.rows_of([{"document": "a film", "summary": ["the plot " * 40]}])
    with pytest.raises(DataError):
        conversation_renderer(ConversationRenderer(tokenizer, 12), TASK, None)(short)


def test_fitting_leaves_other_tasks_alone() -> None:
    (row,) = tiny.rows_of([{"prompt": "a " * 50, "completion": "b"}])
    assert fit(TASKS["text-generation"], row, lambda row: 1000, 10) == (row, 0)


def test_prompts_lose_examples_first_and_then_the_documents_end(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate")
    events = tiny.Events()
    setting = Setting(TASK, None, None, Generation(max_new_tokens=32), on_event=events)
    rows = tiny.rows_of([
        {"document": " ".join(sentences(4)), "summary": ["good"]},
        {"document": " ".join(sentences(90)), "summary": ["good"]},
    ])  # fmt: skip
    shown = tiny.rows_of([{"document": " ".join(sentences(9, seed=n)), "summary": ["bad"]} for n in range(4)])
    outputs = answering.answer(model, rows, setting, lambda row: shown, score_references=False)
    assert outputs.prompt_tokens <= 2 * (256 - 32)
    told = {notice.message: notice.where for notice in events.of(Notice)}
    assert told == {
        "2 of 2 prompts had no room for all examples": "rows.jsonl:1, rows.jsonl:2",
        "1 of 2 documents were too long and lost their end": "rows.jsonl:2",
    }


def test_the_first_sentences_and_the_best_extract() -> None:
    parts = ["Cats sleep a lot.", "Dogs run far.", "Birds sing."]
    rows = tiny.rows_of([
        {"document": parts, "summary": ["birds sing and dogs run"]},
        {"document": " ".join(parts), "summary": ["nothing of it", "cats sleep"]},
        {"document": parts, "summary": ["quite other words"]},
    ])  # fmt: skip
    assert extractive.lead(rows, TASK, 1).texts == ["Cats sleep a lot."] * 3
    assert extractive.lead(rows, TASK, 2).texts == ["Cats sleep a lot. Dogs run far."] * 3
    # Row 1: "Birds sing." scores 2 * 2 / 7, with "Dogs run far." it is 2 * 4 / 10, and all three are 2 * 4 / 14.
    assert extractive.oracle(rows, TASK, "rouge1").texts == ["Dogs run far. Birds sing.", "Cats sleep a lot.", ""]


def test_a_run_from_files_to_predictions(
    tiny_decoder: Path, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith import tune

    rows = documents(60)
    for folder in (tiny_decoder, tiny_t5):
        run = tune(
            rows,
            task="summarization",
            model=str(folder),
            method="peft",
            run_dir=tmp_path / folder.name,
            on_event=lambda event: None,
            training={"max_steps": 2},
            evaluate={
                "baselines": ["base", "lead", {"lead": 2}, "oracle"],
                "resamples": 100,
                "generation": {"max_new_tokens": 4},
            },
        )
        report = json.loads((run.path / "report.json").read_text())
        assert report["metric"] == "rouge1"
        assert [system["name"] for system in report["systems"]] == ["tuned", "lead", "lead-2", "oracle", "base"]
        rivals = [found["system"] for found in report["comparisons"]]
        assert sorted(rivals) == ["base", "lead", "lead-2"]  # a ceiling is none
        longer = {"document": "The film.", "summary": "a summary that is longer than what it is of"}  # a warning
        assert len(run.predict([rows[0]["document"], {"document": "The film."}, longer])) == 3
        monkeypatch.setattr(sys, "stdin", io.StringIO("The film is good.\nThe plot is bad.\n"))
        assert main.run(["chat", str(run.path)]) == 0
