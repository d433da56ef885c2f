"""`tunesmith check`: problems with their lines, in words and in JSON, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.cli import main

GOOD = [
    f"a film about number {n} and its {'joys' if n % 2 else 'pains'},{'pos' if n % 2 else 'neg'}" for n in range(40)
]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["text,label", *GOOD, ",pos"]) + "\n", encoding="utf-8")
    return path


def arguments(path: Path, *more: str) -> list[str]:
    return ["check", "--task", "text-classification", "--model", "owner/name", "--train", str(path), *more]


def test_errors_are_three_and_name_their_line(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments(broken)) == 3
    shown = capsys.readouterr().out
    assert "error empty-field" in shown and f"where: {broken}:42" in shown
    assert "1 kind of error" in shown and "data.drop_bad=true" in shown


def test_no_row_is_to_be_left_out_where_none_is_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"a film about number {n},pos\n" for n in range(40)), encoding="utf-8")
    assert main.run(arguments(path)) == 3
    shown = capsys.readouterr().out
    assert "error too-few-classes" in shown and "drop_bad" not in shown


def test_labels_that_differ_by_a_space_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["text,label", *GOOD, "a film in space,'pos '"]).replace("'", '"') + "\n")
    main.run(arguments(path))
    rows = [line.split("|")[0] for line in capsys.readouterr().out.splitlines()]
    assert any("'pos '" in row for row in rows) and any(row.split()[:1] == ["pos"] for row in rows)


def test_json_holds_the_same(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments(broken, "--json")) == 3
    report = json.loads(capsys.readouterr().out)
    [error] = [problem for problem in report["problems"] if problem["severity"] == "error"]
    assert error["where"] == [f"{broken}:42"] and error["count"] == 1


def test_drop_bad_leaves_the_row_out_and_keeps_it_in_a_file(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = tmp_path / "dropped.jsonl"
    assert main.run(arguments(broken, "--drop-bad", str(dropped), "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows_left_out"] == {"errors": 1}
    [line] = dropped.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["line"] == 42


def test_clean_data_are_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["text,label", *GOOD]) + "\n", encoding="utf-8")
    assert main.run(arguments(path)) == 0
    assert "0 kinds of error" in capsys.readouterr().out


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments(tmp_path / "none.csv", "--json")) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert "none.csv" in f"{error['what']} {error['where']}"


@pytest.mark.parametrize(
    ("model", "what", "fix"),
    [
        ("minilm-l9", "there is no model 'minilm-l9'", "did you mean 'minilm-l6'"),
        ("movie-ratings", "movie-ratings is data, no model", "minilm-l6"),
        ("runs/typo", "there is no run 'runs/typo'", "tunesmith runs list"),
        ("./models/typo", "there is no folder 'models/typo'", "current folder"),
        ("typo.gguf", "there is no file 'typo.gguf'", "current folder"),
    ],
)
def test_a_model_that_no_run_would_find_is_an_error(
    model: str, what: str, fix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `tune` too, before it reads the data and makes a folder."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"t{n}", "label": "ab"[n % 2]}) + "\n" for n in range(60)))
    flags = ["--task", "text-classification", "--model", model, "--train", str(rows), "--json"]
    for command in (["check"], ["plan"], ["tune", "--run-dir", str(tmp_path / "run")]):
        assert main.run([*command, *flags]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert (error["what"], error["where"]) == (what, "model") and fix in error["fix"]
    assert not (tmp_path / "run").exists()


def test_too_few_rows_to_measure_on_stop_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n', encoding="utf-8")
    flags = ["--task", "text-classification", "--model", "owner/none", "--train", str(rows)]
    assert main.run(["check", *flags]) == 3
    assert "no rows to measure on" in capsys.readouterr().out


def test_show_prints_rows_as_the_model_sees_them(
    tmp_path: Path, tiny_decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = [{"from": "human", "value": "the film"}, {"from": "gpt", "value": "good"}]
    lines = [json.dumps({"conversations": [{**turns[0], "value": f"the film {n}"}, turns[1]]}) for n in range(60)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    flags = ["check", "--task", "chat", "--model", str(tiny_decoder), "--train", str(rows), "--show", "2"]
    assert main.run(flags) == 0
    printed = capsys.readouterr()
    assert f"example 1, {rows}:" in printed.out and f"example 2, {rows}:" in printed.out
    assert "<|im_start|>assistant\n[[good<|im_end|>]]" in printed.out  # no colour here, so brackets
    assert "ShareGPT's form" in printed.err
    assert printed.out.count("warning near-duplicate") == 1 and "near-duplicate" not in printed.err
    assert main.run([*flags, "--json"]) == 0
    examples = json.loads(capsys.readouterr().out)["examples"]
    assert [piece["text"] for piece in examples[0]["pieces"] if piece["weight"]] == ["good", "<|im_end|>"]


def test_show_needs_the_model(tmp_path: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments(broken, "--show", "1")) != 0
    assert "its tokens cannot be shown" in capsys.readouterr().err


def test_the_data_of_every_stage_are_checked(
    tmp_path: Path, tiny_decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage of rlhf and of a recipe of one's own: what is wrong, and whose it is."""
    shown, pairs, manual = tmp_path / "shown.jsonl", tmp_path / "pairs.jsonl", tmp_path / "manual.jsonl"
    good = [{"prompt": f"say {n}", "completion": f"number {n}"} for n in range(60)]
    better = [{"prompt": f"tell {n}", "chosen": f"the number {n}", "rejected": f"no {n}"} for n in range(60)]
    same = {"prompt": "say it", "chosen": "twice", "rejected": "twice"}
    shown.write_text("".join(json.dumps(row) + "\n" for row in good), encoding="utf-8")
    pairs.write_text("".join(json.dumps(row) + "\n" for row in [*better, same]), encoding="utf-8")
    manual.write_text("".join(json.dumps({"text": f"page {n} of it"}) + "\n" for n in range(60)) + "{\n", "utf-8")
    base = {"task": "text-generation", "model": str(tiny_decoder)}
    recipe = tmp_path / "recipe.json"

    rlhf = base | {"method": "rlhf", "data": {"train": str(shown), "preferences": str(pairs)}}
    recipe.write_text(json.dumps(rlhf), encoding="utf-8")
    assert main.run(["check", str(recipe), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    [error] = [problem for problem in report["problems"] if problem["severity"] == "error"]
    assert error["stage"] == "reward" and error["where"] == [f"{pairs}:61"]
    assert set(report["stages"]) == {"sft, ppo", "reward"}  # two that learn from the same rows
    assert report["stages"]["sft, ppo"]["ok"] and not report["stages"]["reward"]["ok"] and not report["ok"]
    assert report["stages"]["reward"]["rows_read"]["train"] == 61 and report["rows_read"]["train"] == 60

    stages = [
        {"name": "domain", "objective": "causal-lm", "data": {"train": str(manual)}},
        {"name": "task", "objective": "supervised"},
    ]
    recipe.write_text(json.dumps(base | {"data": {"train": str(shown)}, "stages": stages}), encoding="utf-8")
    assert main.run(["check", str(recipe)]) == 3
    printed = capsys.readouterr().out
    assert "stage domain: " in printed and f"{manual}:61" in printed and "1 kind of error" in printed
    assert "\nstage domain\n" in printed and "\nstage task\n" in printed
    dropped = tmp_path / "dropped.jsonl"
    assert main.run(["check", str(recipe), "--drop-bad", str(dropped)]) == 0
    [line] = (tmp_path / "dropped-domain.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["line"] == 61
    assert not dropped.exists()  # the other stage's rows are good
