"""Whatever goes wrong at a provider or here: one intent makes one job, and the error says what to do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hosted_fake
from hosted_fake import KEY, Fault
from tiny import Events
from tunesmith import recipe_file
from tunesmith.errors import InterruptedRun, ResourceError, TunesmithError, UsageError
from tunesmith.events import Step
from tunesmith.hosted import jobs, openai_api, run, table
from tunesmith.hosted.client import ProviderError, connect
from tunesmith.hosted.settings import Hosted

There = tuple[hosted_fake.Provider, str]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(jobs, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(jobs, "LOOKS", (0.01, 0.05))
    monkeypatch.setattr(openai_api, "RETRIES", 0)
    monkeypatch.setattr(openai_api, "TIMEOUT", 0.5)
    with hosted_fake.provider() as (state, address):
        state.slow_seconds = 0.8
        yield state, address


def tuned(folder: Path, address: str, heard: Events | None = None, **more: Any) -> Any:
    """A job from its file to its end, without the measuring."""
    settings = Hosted(base_url=address, poll_seconds=0.01, **more)
    files = {"training_file": folder / "training_file.jsonl"}
    folder.mkdir(exist_ok=True)
    files["training_file"].write_text('{"messages": []}\n' * 10)
    client, tell = connect(settings, table.load()), Events() if heard is None else heard
    intent = jobs.Intent.begin(folder, client, "gpt-4.1-mini", "supervised", settings, 0, files)
    job = jobs.make(intent, client, settings, 0, files, tell)
    return jobs.follow(client, job, folder, settings, tell)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *(("/files", kind) for kind in (429, 500, "drop", "lost")),
        *(("/fine_tuning/jobs", kind) for kind in (429, 500, "drop", "lost", "slow")),
    ],
)
def test_a_fault_while_sending_or_making_leaves_one_file_and_one_job(
    there: There, tmp_path: Path, kind: int | str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, address = there
    monkeypatch.setattr(openai_api, "UPLOAD_TIMEOUT", 0.5)
    state.faults = [Fault("POST", path, kind)]
    job = tuned(tmp_path, address)
    assert job.status == "succeeded" and job.tuned_model
    assert len(state.jobs) == 1 and len([name for name in state.files if "results" not in name]) == 1
    assert state.faults[0].times == 0  # it did happen
    assert jobs.read_state(tmp_path)["job"] == job.id


def test_a_process_killed_between_making_and_writing_down_finds_its_job(there: There, tmp_path: Path) -> None:
    state, address = there
    script = f"""
import os, signal
from pathlib import Path
from tunesmith.hosted import jobs
kept = jobs.Intent.keep
def keep(self, **changed):
    if changed.get("job"):
        os.kill(os.getpid(), signal.SIGKILL)
    kept(self, **changed)
jobs.Intent.keep = keep
import sys; sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
from test_hosted_faults import tuned
tuned(Path({str(tmp_path)!r}), {address!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(state.jobs) == 1 and jobs.read_state(tmp_path)["job"] is None
    assert tuned(tmp_path, address).id == "ftjob-0"
    assert len(state.jobs) == 1 and len(state.files) == 2  # the file and the results
    assert KEY.encode() not in killed.stdout + killed.stderr


def test_even_a_job_that_failed_at_once_is_found_and_not_made_again(there: There, tmp_path: Path) -> None:
    state, address = there
    state.refuse_data = "Training file has 7 example(s), but must have at least 10 examples"
    state.faults = [Fault("POST", "/fine_tuning/jobs", "lost")]
    for _ in range(2):
        with pytest.raises(jobs.JobFailed, match="at least 10 examples") as caught:
            tuned(tmp_path, address)
        assert "hosted check" in str(caught.value.fix)
    assert len(state.jobs) == 1


def test_the_same_intent_in_another_folder_takes_the_job_that_is_there(there: There, tmp_path: Path) -> None:
    state, address = there
    assert tuned(tmp_path / "a", address).id == tuned(tmp_path / "b", address).id
    assert len(state.jobs) == 1
    assert tuned(tmp_path / "c", address, epochs=5).id == "ftjob-1"  # another intent
    assert tuned(tmp_path / "d", address, again=True).id == "ftjob-2"
    assert tuned(tmp_path / "d", address, again=True).id == "ftjob-2"  # the folder remembers
    state.jobs["ftjob-0"] = state.jobs["ftjob-0"].model_copy(update={"status": "failed"})
    assert tuned(tmp_path / "e", address).id == "ftjob-3"  # what failed may be tried anew


def test_a_provider_out_of_reach_for_a_while_is_waited_for(there: There, tmp_path: Path) -> None:
    state, address = there
    state.faults = [Fault("GET", r"/fine_tuning/jobs/ftjob-0(/events)?", kind, times=2) for kind in ("drop", 500, 429)]
    heard = Events()
    assert tuned(tmp_path, address, heard).status == "succeeded"
    assert [(step.step, step.steps, step.loss) for step in heard.of(Step)] == [(1, 2, 1.0), (2, 2, 0.5)]  # each once


def test_events_are_told_once_across_restarts(there: There, tmp_path: Path) -> None:
    _, address = there
    first, second = Events(), Events()
    tuned(tmp_path, address, first)
    tuned(tmp_path, address, second)
    assert first.of(Step) and not second.of(Step)
    lines = (tmp_path / jobs.EVENTS).read_text().splitlines()
    assert len(lines) == len(set(lines)) == 4


def test_changed_data_are_not_sent_under_an_old_intent(there: There, tmp_path: Path) -> None:
    _, address = there
    settings, known = Hosted(base_url=address), table.load()
    path = tmp_path / "training_file.jsonl"
    for text in ("{}\n", '{"a": 1}\n'):
        path.write_text(text)
        changed = (tmp_path / jobs.STATE).is_file()
        with pytest.raises(UsageError, match="have changed") if changed else contextlib.nullcontext():
            jobs.Intent.begin(
                tmp_path, connect(settings, known), "m", "supervised", settings, 0, {"training_file": path}
            )
    assert changed


def test_patience_ends_and_the_job_goes_on(there: There, tmp_path: Path) -> None:
    state, address = there
    state.faults = [Fault("GET", "/fine_tuning/jobs/ftjob-0", 500, times=10**6)]
    with pytest.raises(InterruptedRun, match="goes on at OpenAI"):
        tuned(tmp_path, address, patience_minutes=0.002)
    state.faults = []
    assert tuned(tmp_path, address).status == "succeeded" and len(state.jobs) == 1


@pytest.mark.parametrize(
    ("status", "code", "wanted", "fix"),
    [
        (401, "invalid_api_key", "the key was refused", "OPENAI_API_KEY"),
        (403, "training_not_available", "no new fine-tuning jobs", "tunesmith serve"),
        (404, "model_not_found", "no such thing", "hosted models"),
        (429, "insufficient_quota", "too many requests", "add credit"),
        (400, "invalid_value", "refused (400): n_epochs is too large", ""),
    ],
)
def test_a_refusal_is_told_once_with_the_next_step(
    there: There, tmp_path: Path, status: int, code: str, wanted: str, fix: str
) -> None:
    state, address = there
    body = {"message": f"n_epochs is too large for {KEY}", "code": code}
    state.faults = [Fault("POST", "/fine_tuning/jobs", status, body=body)]
    with pytest.raises(ProviderError) as caught:
        tuned(tmp_path, address)
    assert wanted in str(caught.value) and fix in str(caught.value.fix or "")
    assert state.seen.count("POST /fine_tuning/jobs") == 1 and not state.jobs
    assert KEY not in str(caught.value)


def test_no_key_no_network_no_encryption(there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, address = there
    known = table.load()
    with pytest.raises(UsageError, match="unencrypted"):
        connect(Hosted(base_url="http://example.org/v1"), known)
    with pytest.raises(ProviderError, match="cannot be reached") as caught:
        connect(Hosted(base_url="http://127.0.0.1:9/v1"), known).jobs(1)
    assert "network" in str(caught.value.fix)
    state.key = "another"
    with pytest.raises(ProviderError, match="the key was refused") as caught:
        connect(Hosted(base_url=address), known).jobs(1)
    assert KEY not in str(caught.value) and "***" in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ResourceError, match="no key for OpenAI") as missing:
        connect(Hosted(), known)
    assert "export OPENAI_API_KEY" in str(missing.value.fix)
    with pytest.raises(UsageError, match="no address of its own"):
        connect(Hosted(provider="azure"), known)


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("models: {gpt-4.1-mini: {shutdown: 2026-01-01}}", "gpt-4.1-mini was shut down on 2026-01-01"),
        ("jobs_until: 2026-01-01", "takes no new fine-tuning jobs since 2026-01-01"),
    ],
)
def test_what_the_calendar_forbids_is_not_begun(there: There, tmp_path: Path, own: str, wanted: str) -> None:
    prices = tmp_path / "own.yaml"
    prices.write_text(f"providers:\n  openai:\n    {own}\n")
    recipe = recipe_file.parse({"task": "chat", "model": "gpt-4.1-mini", "method": "hosted"}).resolved()
    from datetime import date

    with pytest.raises(TunesmithError, match=wanted) as caught:
        run.refuse_closed(recipe, table.load(prices), date(2026, 11, 27))
    assert "hosted import" in str(caught.value.fix)


def test_stopping_to_watch_does_not_stop_the_job(there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, address = there
    monkeypatch.setattr(hosted_fake, "STATES", ("validating_files", "running"))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", interrupt)  # between two looks
    with pytest.raises(InterruptedRun, match="no longer watching: the job ftjob-0 goes on"):
        tuned(tmp_path, address)
    assert state.jobs["ftjob-0"].status == "running"
