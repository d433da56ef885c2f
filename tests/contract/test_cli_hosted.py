"""The commands of `tunesmith hosted`: what they print, their JSON, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hosted_fake
from conftest import labelled_rows, write_jsonl
from hosted_fake import KEY
from tunesmith.cli.main import run
from tunesmith.hosted import openai_api


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[hosted_fake.Provider, str]]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai_api, "RETRIES", 0)
    with hosted_fake.provider() as (state, address):
        yield state, address


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run(["hosted", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"question {n} of many"}, {"role": "assistant", "content": f"a {n}"}]}
        for n in range(30)
    ]
    return write_jsonl(tmp_path / "chats.jsonl", rows)


def test_estimate_has_the_promised_fields(capsys: pytest.CaptureFixture[str], chats: Path) -> None:
    found = said(capsys, "estimate", str(chats), "--model", "gpt-4.1-mini")
    promised = {"rows", "tokens", "epochs", "billed_tokens", "training_cost_usd", "price_date", "warnings"}
    assert promised <= set(found)
    assert found["rows"] == 30 and found["epochs"] == 3 and found["billed_tokens"] == 3 * found["tokens"]
    assert run(["hosted", "estimate", str(chats), "--model", "gpt-4.1-mini"]) == 0
    assert "billed tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "what", "fix"),
    [
        (["--model", "gpt-4.1-mimi"], 4, "no model 'gpt-4.1-mimi'", "gpt-4.1-mini"),
        (["--model", "gpt-4.1-mini", "--provider", "opnai"], 4, "no provider 'opnai'", "openai"),
        ([], 2, "no model was named", "hosted models"),
        (["--model", "gpt-4.1-mini", "--task", "language-modeling"], 2, "no task for that", "task: chat"),
    ],
)
def test_a_wrong_word_is_told_with_the_right_one(
    capsys: pytest.CaptureFixture[str], chats: Path, arguments: list[str], code: int, what: str, fix: str
) -> None:
    error = said(capsys, "estimate", str(chats), *arguments, code=code)["error"]
    assert what in error["what"] and fix in error["fix"]


@pytest.mark.parametrize("command", ["check", "estimate"])
def test_a_model_that_is_shut_down_is_an_error_with_an_alternative(
    capsys: pytest.CaptureFixture[str], chats: Path, command: str
) -> None:
    error = said(capsys, command, str(chats), "--model", "gpt-4.1-nano", code=2)["error"]
    assert error["what"] == "gpt-4.1-nano was shut down on 2026-10-23"
    assert "gpt-4.1-mini" in error["fix"] and "hosted import" in error["fix"]


def test_a_job_of_reinforcement_is_estimated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"question {n} of many"}], "wanted": "x"} for n in range(12)]
    data, grader = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "grader.json"
    made = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "reference": "{{item.wanted}}"}
    grader.write_text(json.dumps(made | {"operation": "eq"}))
    named = ("estimate", str(data), "--model", "gpt-4.1-mini")
    found = said(capsys, *named, "--grader", str(grader))
    assert found["rows"] == 12 and found["tokens"] > 0 and any("by the hour" in text for text in found["warnings"])
    for text, what in (
        (json.dumps(made | {"type": "string_chek"}), "string_chek"),
        ("{", "no JSON"),
        (None, "No such"),
    ):
        grader.unlink() if text is None else grader.write_text(text)
        for command in ("estimate", "check", "tune"):
            error = said(capsys, command, *named[1:], "--grader", str(grader), code=2)["error"]
            assert error["where"] == str(grader) and what in error["what"] and error["fix"]
    error = said(capsys, *named, "--task", "prompts", code=2)["error"]
    assert error["where"] == "--grader" and "--grader FILE" in error["fix"]


def test_old_prices_and_old_providers_come_with_a_warning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = said(capsys, "models")
    assert any("gpt-4.1-mini" in text and "2025-12-31" in text for text in found["openai"]["warnings"])
    assert found["tunesmith"]["warnings"] == []
    own = tmp_path / "own.yaml"
    own.write_text("providers: {nebius: {seen: 2026-01-01}}\n")
    assert run(["hosted", "models", "--provider", "nebius", "--prices", str(own)]) == 0
    assert "limits and dates of Nebius Token Factory were last seen on 2026-01-01" in capsys.readouterr().out


def test_a_negative_price_is_told_with_its_line(
    capsys: pytest.CaptureFixture[str], chats: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("providers:\n  openai:\n    models:\n      gpt-4.1-mini: {training: -5}\n")
    arguments = ("estimate", str(chats), "--model", "gpt-4.1-mini", "--prices", str(own))
    error = said(capsys, *arguments, code=2)["error"]
    assert error["where"] == f"{own}:4" and "-5" in error["what"]


def test_check_fails_with_three_and_writes_what_is_good(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"messages": [{"role": "user", "content": "no answer"}]}] * 12)
    found = said(capsys, "check", str(bad), "--model", "gpt-4.1-mini", code=3)
    assert {"last-role", "too-few-rows"} <= {problem["code"] for problem in found["problems"]} and not found["ok"]
    reviews, out = write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(40)), tmp_path / "out.jsonl"
    arguments = ("--task", "text-classification", "--model", "gpt-4.1-mini", "--out", str(out))
    found = said(capsys, "check", str(reviews), *arguments)
    told = next(problem for problem in found["problems"] if problem["code"] == "other-shape")
    assert told["severity"] == "warning" and told["count"] == 40 and "--out FILE" in told["fix"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert found["ok"] and found["rows"] == len(lines) == 40
    assert said(capsys, "check", str(out), "--model", "gpt-4.1-mini")["tokens"] == found["tokens"]


def test_jobs_are_looked_at_and_stopped(
    capsys: pytest.CaptureFixture[str], there: tuple[hosted_fake.Provider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, address = there
    asked = {"model": "gpt-4.1-mini", "training_file": "file-0", "method": {"type": "supervised"}}
    hosted_fake._create(state, asked)
    at = ("--base-url", address)
    assert [job["id"] for job in said(capsys, "list", *at)] == ["ftjob-0"]
    assert said(capsys, "status", "ftjob-0", *at)["status"] == "queued"
    assert said(capsys, "events", "ftjob-0", *at)[0]["message"] == "Created fine-tuning job: ftjob-0"
    assert said(capsys, "models", "--live", *at)[0]["shutdown_date"] == "2027-01-14"
    assert said(capsys, "cancel", "ftjob-0", *at)["status"] == "cancelled"
    error = said(capsys, "status", "ftjob-9", *at, code=4)["error"]
    assert "no such thing (404)" in error["what"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key-5a7e")
    error = said(capsys, "list", *at, code=4)["error"]
    assert "the key was refused" in error["what"] and "sk-wrong-key-5a7e" not in json.dumps(error)


def test_models_show_prices_dates_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "models")
    line = found["openai"]["models"]["gpt-4.1-mini"]
    assert line["training"] == 5 and line["shutdown"] == "2027-01-14" and line["seen"] and line["source"]
    assert run(["hosted", "models", "--provider", "openai"]) == 0
    assert "no new jobs from 2027-01-06 on" in capsys.readouterr().out
