"""What users get wrong about parameters and few examples, on the command line: errors say what, where and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import labelled_rows, write_jsonl
from tunesmith import runs
from tunesmith.cli import main


def tune(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path, data: Path, *more: str) -> dict[str, Any]:
    """The error that `tunesmith tune` ends with."""
    capsys.readouterr()
    task = () if "--task" in more else ("--task", "text-classification")
    flags = [*task, "--model", str(model), "--train", str(data), "--run-dir", str(tmp_path / "run")]
    assert main.run(["tune", *flags, *more, "--json"]) not in (0, 1)
    error: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
    assert error["what"] and error["where"] and error["fix"], error
    return error


def test_a_rank_of_zero(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled_rows(20))
    error = tune(
        tmp_path, capsys, tiny_encoder, data, "--method", "peft", "--parameters", "lora", "--set", "parameters.rank=0"
    )
    assert "rank" in error["where"] and "greater than or equal to 1" in error["what"] + error["fix"]


def test_a_target_that_does_not_exist(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled_rows(40))
    chosen = ["--method", "peft", "--parameters", "lora", "--set", "parameters.targets=[q_proj]"]
    error = tune(tmp_path, capsys, tiny_encoder, data, *chosen)
    assert error["where"] == "parameters.targets" and "q_proj" in error["what"]
    assert "query" in error["fix"] and "all-linear" in error["fix"], "what there is"


def test_more_shots_than_examples(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled_rows(20))
    error = tune(tmp_path, capsys, tiny_encoder, data, "--method", "few-shot", "--set", "data.shots=50")
    assert error["where"] == "data.shots" and "shots:" in error["fix"]


def test_one_class_only(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "label": "positive"} for row in labelled_rows(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    error = tune(tmp_path, capsys, tiny_encoder, data, "--method", "features")
    assert "class" in error["what"] and "rows.jsonl" in error["where"]


def test_a_class_absent_from_the_test_set(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, and what is measured is measured: an absent class has no score that could enter the mean."""
    data = write_jsonl(tmp_path / "rows.jsonl", labelled_rows(40))
    test = write_jsonl(
        tmp_path / "test.jsonl", [row for row in labelled_rows(20, seed=9) if row["label"] == "positive"]
    )
    flags = ["--task", "text-classification", "--model", str(tiny_encoder), "--method", "features"]
    flags += ["--train", str(data), "--test", str(test), "--run-dir", str(tmp_path / "run")]
    assert main.run(["tune", *flags, "--set", "evaluate.baselines=[majority]"]) == 0
    said = capsys.readouterr()
    assert "'negative'" in said.out + said.err and "classes without a row in the test data" in said.out + said.err
    run = runs.open_run(tmp_path / "run")
    assert 0.0 <= run.metrics["macro_f1"].value <= 1.0
    assert (tmp_path / "run" / "report.html").is_file()


def test_corrupt_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, colour in (("dark", 10), ("light", 240)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((32, 32, 3), colour + number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{number}.png")
    broken = tmp_path / "pictures" / "dark" / "broken.png"
    broken.write_bytes((tmp_path / "pictures" / "dark" / "0.png").read_bytes()[:40])
    flags = ("--task", "image-classification", "--method", "transfer")
    error = tune(tmp_path, capsys, Path("owner/no-model"), tmp_path / "pictures", *flags)
    assert str(broken) in json.dumps(error) and "drop_bad" in json.dumps(error)


def test_a_cache_from_other_data(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen layers' states that belong to other rows are found out, made again, and said."""
    said = []
    for number, seed in enumerate((0, 0, 5)):
        data = write_jsonl(tmp_path / f"rows-{seed}.jsonl", labelled_rows(40, seed=seed))
        flags = ["--task", "text-classification", "--model", str(tiny_encoder), "--method", "transfer"]
        flags += ["--train", str(data), "--run-dir", str(tmp_path / f"run-{number}")]
        flags += ["--set", f"training.cache_folder={tmp_path / 'kept'}", "--set", "training.cache=on"]
        capsys.readouterr()
        assert main.run(["tune", *flags, "--set", "evaluate.baselines=[]"]) == 0
        printed = capsys.readouterr()
        said.append("made again" in printed.out + printed.err)
    assert said == [False, False, True]
