"""The run directory: files whole or absent, logs that survive a kill, and what their last word says."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from tunesmith import disk, runs
from tunesmith.cli import main
from tunesmith.data.dropped import DroppedRows
from tunesmith.data.rows import Origin
from tunesmith.errors import NotFoundError, ResourceError, UsageError
from tunesmith.events import MeasuredAgain, Notice, Phase, Progress, RunFailed, RunFinished, RunStarted, Step
from tunesmith.recipe import Recipe
from tunesmith.runs import EventLog, Run, StoredAnswer, read_events

STARTED = RunStarted(run="r", task="chat", model="m", method="peft")
FINISHED = RunFinished(verdict="it paid off", seconds=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipe = Recipe(task="text-classification", model="m")
    disk.write_text(tmp_path / "run" / "recipe.yaml", recipe.to_yaml())
    return tmp_path / "run"


def step(number: int) -> Step:
    return Step(
        stage="tune", step=number, steps=9, epoch=0.1, loss=1.0, learning_rate=1e-3, grad_norm=1.0, tokens=10,
        examples=2, seconds=0.1, memory_bytes=1,
    )  # fmt: skip


def test_events_come_back_and_progress_is_not_kept(folder: Path) -> None:
    log = EventLog(folder)
    for event in (STARTED, Progress(what="rendering", done=1, total=2), step(1), FINISHED):
        log(event)
    assert [event["type"] for event in read_events(folder)] == ["run_started", "step", "run_finished"]
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("cut", [b'{"time": 1.0, "type": "st', '{"type": "notice", "message": "é'.encode()[:-1]])
def test_a_line_cut_by_a_kill_costs_that_line_only(cut: bytes, folder: Path) -> None:
    """Also when the cut goes through a character; and what a resume writes next is not glued to it."""
    EventLog(folder)(STARTED)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(cut)
    assert [event["type"] for event in read_events(folder)] == ["run_started"]
    again = EventLog(folder)
    again(STARTED)
    again(FINISHED)
    assert [event["type"] for event in read_events(folder)] == ["run_started", "run_started", "run_finished"]


def test_a_line_that_a_full_disk_cut_is_not_glued_to_the_next(folder: Path) -> None:
    log = EventLog(folder)
    log(STARTED)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "no')
    log(FINISHED)
    assert [event["type"] for event in read_events(folder)] == ["run_started", "run_finished"]


def test_a_whole_log_is_only_appended_to(folder: Path) -> None:
    EventLog(folder)(STARTED)
    before = (folder / "events.jsonl").read_bytes()
    EventLog(folder)(FINISHED)
    after = (folder / "events.jsonl").read_bytes()
    assert after.startswith(before) and b"\n\n" not in after


def test_the_status_is_the_last_word(folder: Path) -> None:
    run, log = Run(folder), EventLog(folder)
    assert run.status == "stopped"
    error: dict[str, str | None] = {"code": "data", "what": "bad", "where": None, "fix": None}
    for event, status in (
        (STARTED, "stopped"),
        (RunFailed(error=error), "failed"),
        (STARTED, "stopped"),
        (RunFailed(error=error, interrupted=True), "interrupted"),
        (STARTED, "stopped"),
        (step(1), "stopped"),
        (FINISHED, "finished"),
        (Phase(step="evaluate", message="measured again, on other rows"), "finished"),
    ):
        log(event)
        assert run.status == status


def test_a_run_is_started_while_a_process_holds_its_lock(folder: Path) -> None:
    """And stopped as soon as that is gone, however it went."""
    EventLog(folder)(STARTED)
    with filelock.FileLock(folder / runs.LOCK):
        assert Run(folder).status == "started"
        with pytest.raises(UsageError, match=r"not finished \(started\)") as caught:
            Run(folder).summary()
        assert caught.value.fix == "wait for the process that works on it"
    assert Run(folder).status == "stopped"
    with pytest.raises(UsageError, match=r"not finished \(stopped\)") as caught:
        Run(folder).summary()
    assert caught.value.fix == f"tunesmith resume {folder}"


def test_two_who_look_at_a_time_do_not_take_each_other_for_a_process_at_work(folder: Path) -> None:
    EventLog(folder)(STARTED)
    look = filelock.FileLock(folder / runs.LOCK, thread_local=False)
    look.acquire()
    over = threading.Timer(0.05, look.release)
    over.start()
    assert Run(folder).status == "stopped"
    over.join()


def test_where_the_lock_cannot_be_tried_the_status_is_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an archive that cannot be written to: nobody is told to wait for ever."""

    def refuse(lock: filelock.FileLock, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    EventLog(folder)(STARTED)
    (folder / runs.LOCK).touch()
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(UsageError, match=r"not finished \(unknown\)") as caught:
        Run(folder).summary()
    assert caught.value.fix == (
        f"wait for the process that works on it or, if none is running, tunesmith resume {folder}"
    )


@pytest.mark.parametrize("words", [10, 5_000])
def test_the_status_is_read_from_the_end(words: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last line was cut, or is longer than what is read at once."""
    log = EventLog(folder)
    for event in (STARTED, *map(step, range(1000)), FINISHED, Notice(level="info", message="word " * words)):
        log(event)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "noti')
    read: list[str] = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda line: (read.append(line), real(line))[1])
    assert Run(folder).status == "finished" and len(read) == 3


def test_a_run_took_what_all_its_processes_took(folder: Path) -> None:
    """One that was killed counts until its last event, one at work until now; what comes after the end does not."""
    log = EventLog(folder)
    assert runs.worked_seconds(folder, until=99.0) == 0.0
    for event in (replace(STARTED, time=10.0), replace(step(1), time=14.0), replace(STARTED, time=100.0)):
        log(event)
    assert (runs.worked_seconds(folder), runs.worked_seconds(folder, until=107.0)) == (4.0, 11.0)
    for event in (replace(FINISHED, time=105.0), replace(step(2), time=900.0)):
        log(event)
    assert runs.worked_seconds(folder) == runs.worked_seconds(folder, until=999.0) == 9.0


def test_what_measures_a_killed_run_again_is_not_the_process_that_was_killed(folder: Path) -> None:
    """Nor does it change the status."""
    log = EventLog(folder)
    again = (
        replace(MeasuredAgain(), time=900.0),
        Phase(step="evaluate", message="the tuned model", time=901.0),
    )
    for event in (replace(STARTED, time=10.0), replace(step(1), time=14.0), *again):
        log(event)
    assert runs.worked_seconds(folder) == runs.worked_seconds(folder, until=999.0) == 4.0
    assert Run(folder).status == "stopped"


def test_an_unfinished_run_says_how_to_finish_it(folder: Path) -> None:
    assert Run(folder).metrics == {} and Run(folder).verdict == ""
    with pytest.raises(UsageError, match="not finished") as caught:
        Run(folder).summary()
    assert caught.value.fix == f"tunesmith resume {folder}"
    with pytest.raises(UsageError, match="no predictions"):
        runs.read_answers(Run(folder))
    with pytest.raises(NotFoundError, match="no tuned model"):
        Run(folder).predict(["text"])


@pytest.mark.parametrize(
    ("code", "fix", "advice"),
    [
        ("data", "say which: data.columns.label=COLUMN", "say which: data.columns.label=COLUMN; then `tunesmith tune`"),
        ("recipe", None, "mend the recipe or the data; then `tunesmith tune` again"),
        ("not-found", "run `hf auth login`", "run `hf auth login`; then tunesmith resume "),
        ("resource", "free some space, then `tunesmith resume RUN`", "free some space, then `tunesmith resume RUN`"),
        ("crash", None, "tunesmith resume "),
    ],
)
def test_a_failed_run_says_why_and_is_resumed_where_that_helps(
    code: str, fix: str | None, advice: str, folder: Path
) -> None:
    log = EventLog(folder)
    error: dict[str, str | None] = {"code": code, "what": "no column for `label`", "where": "a.csv:1", "fix": fix}
    for event in (STARTED, RunFailed(error=error)):
        log(event)
    run = Run(folder)
    assert run.failure == error
    with pytest.raises(UsageError, match=r"the run failed: a\.csv:1: no column for `label`") as caught:
        run.summary()
    assert caught.value.fix is not None and caught.value.fix.startswith(advice)
    assert ("resume" in caught.value.fix) == (code not in ("data", "recipe"))
    (folder / "stages" / "1-tune" / "checkpoints" / "step-120").mkdir(parents=True)
    assert run.how_to_finish().endswith((f"tunesmith resume {folder}", "`tunesmith resume RUN`")), "it has learned"
    log(STARTED)
    assert run.failure is None, "it was begun again"
    log(RunFailed(error=error, interrupted=True))
    assert run.failure is None


def test_the_list_of_runs_says_why_one_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error: dict[str, str | None] = {"code": "data", "what": "no column for `label`", "where": "a.csv:1", "fix": None}
    EventLog(folder)(RunFailed(error=error))
    assert main.run(["runs", "list", "--root", str(folder.parent), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["status"], row["problem"]) == ("failed", "a.csv:1: no column for `label`")
    assert main.run(["runs", "--root", str(folder.parent)]) == 0
    assert "a.csv:1: no column for `label`" in capsys.readouterr().out


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "summary.json"
    disk.write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left") as caught:
        disk.write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n' and caught.value.fix
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]
    path = tmp_path / "deep" / "summary.json" / "below-a-file.json"
    with pytest.raises(UsageError, match=r"cannot write below-a-file"):
        disk.write_json(path, {})


def test_an_interrupted_write_leaves_nothing_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        disk.write_text(tmp_path / "report.html", "half")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no such", "theirs.txt"), ConnectionError("lost")])
def test_what_the_parts_raise_is_no_error_of_the_file(error: OSError, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises(type(error)) as caught:
        disk.write_parts(tmp_path / "rows.jsonl", parts())
    assert caught.value is error and list(tmp_path.iterdir()) == []


def test_a_log_on_a_full_disk_is_our_error(folder: Path) -> None:
    log = EventLog(folder)
    (folder / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="cannot write to the log: No space left"):
        log(Notice(level="info", message="x"))


def test_a_path_that_cannot_be_written_is_no_full_disk(folder: Path) -> None:
    (folder / "summary.json").mkdir()
    with pytest.raises(UsageError, match=r"cannot write summary\.json") as caught:
        disk.write_json(folder / "summary.json", {})
    assert "permissions" in str(caught.value.fix)


def test_runs_are_found_by_name_and_listed_newest_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = (folder / "recipe.yaml").read_text()
    for age, name in ((300, "old"), (100, "new")):
        disk.write_text(Path("runs") / name / "recipe.yaml", recipe)
        stamp = os.stat(folder).st_mtime - age
        os.utime(Path("runs") / name, (stamp, stamp))
    assert [run.id for run in runs.list_runs()] == ["new", "old"]
    assert runs.open_run("old").path == Path("runs/old") and runs.open_run(folder).id == "run"
    with pytest.raises(NotFoundError):
        runs.open_run("absent")
    runs.remove(runs.open_run("old"))
    assert [run.id for run in runs.list_runs()] == ["new"]
    assert runs.list_runs(tmp_path / "nowhere") == []


def test_new_folders_never_collide() -> None:
    recipe = Recipe(task="chat", model="m", method="peft")
    names = {runs.new_run_folder(recipe).name for _ in range(20)}
    assert len(names) > 15 and all("chat-peft" in name for name in names)


def test_answers_come_back_as_they_were(folder: Path) -> None:
    text = "zwei\nZeilen\u2028und \x85 \x0c mehr"
    stored = [StoredAnswer("k", "a.jsonl:3", text, "gut", "schlecht", [0.25, 0.75], None, None)]
    runs.write_answers(folder, stored)
    assert runs.read_answers(Run(folder)) == stored


def test_the_column_that_was_trained_on_goes_before_one_of_the_fields_name(folder: Path) -> None:
    columns = [{"fields": {"text": {"column": "body", "how": "given"}, "label": {"column": "label", "how": "exact"}}}]
    disk.write_json(folder / "data.json", {"columns": columns})
    given = [{"body": "b", "text": "title"}, {"text": "title", "body": "b"}, {"text": "t"}, "plain", {"label": "x"}]
    assert Run(folder).under_field_names(given) == [
        *({"text": "b"}, {"text": "b"}),
        *({"text": "t"}, "plain", {"label": "x"}),
    ]


def test_the_recipe_is_read_back(folder: Path) -> None:
    assert Run(folder).recipe == Recipe(task="text-classification", model="m")


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (flushed.append(os.readlink(f"/proc/self/fd/{number}")), real(number))
    )

    def write(staging: Path) -> None:
        (staging / "deep").mkdir(parents=True)
        (staging / "deep" / "weights").write_text("w", encoding="utf-8")

    disk.write_folder(tmp_path / "model", write)
    names = [name.rsplit("/", 1)[-1] for name in flushed]
    assert names[:2] == ["deep", "weights"] and names[2].startswith(".model-") and flushed[3] == str(tmp_path)
    assert (tmp_path / "model" / "deep" / "weights").read_text(encoding="utf-8") == "w"


def test_rows_left_out_are_written_where_there_is_no_folder_yet(tmp_path: Path) -> None:
    dropped = DroppedRows(tmp_path / "evaluations" / "dropped.jsonl")
    dropped.add(Origin("a.jsonl", 3), ["empty-field: text is empty"], "{}")
    dropped.finish()
    assert [row["line"] for row in disk.read_log(tmp_path / "evaluations" / "dropped.jsonl")] == [3]
