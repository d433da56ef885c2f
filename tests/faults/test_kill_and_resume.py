"""Real processes, really killed: what is resumed ends with the same bytes as what was never stopped.

The child is the pipeline as the command line runs it, on a tiny model with dropout on, several epochs, and a
checkpoint every few updates. Evaluation is cut short: it is not what is tested here.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from conftest import labelled_rows, make_encoder, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "training.epochs=6", "training.batch_size=8", "training.checkpoint_steps=4", "training.dropout=0.2",
    "training.learning_rate=1e-3", "precision=fp32", "evaluate.baselines=[majority]", "evaluate.resamples=100",
    "training.compile=off",
)  # fmt: skip
FORK_SERVER = """
import os, sys
sys.path.insert(0, {source!r})
import torch, transformers.models.bert.modeling_bert  # noqa: what every child needs, imported once
import tunesmith.cli.tuning, tunesmith.pipeline, tunesmith.models.build, tunesmith.evaluation.evaluate
from tunesmith.cli.main import run
torch.set_num_threads(1)
for line in sys.stdin:
    arguments = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        log = os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1); os.dup2(log, 2)
        code = run(arguments[1:])
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Starts a fresh process for each command by forking after the imports: 0.1 s instead of 5, and as killable."""


class Commands:
    """Runs commands of Tunesmith one after the other, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.txt"
        self._server = subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER.format(source=str(ROOT / "src"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, *arguments: str) -> int:
        """Start a command; gives its process id."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write("\t".join([str(self.log), *arguments]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Exit code of the command that was started; negative: the signal that killed it."""
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    def run(self, *arguments: str) -> int:
        self.start(*arguments)
        return self.wait()

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=240)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = Commands(tmp_path_factory.mktemp("commands"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The command line of a run into a folder."""
    folder = tmp_path_factory.mktemp("inputs")
    data = write_jsonl(folder / "reviews.jsonl", labelled_rows(150))
    (folder / "model").mkdir()
    model = make_encoder(folder / "model", pooling="mean")

    def make(run_dir: Path, *more: str) -> list[str]:
        flags = ["tune", "--task", "text-classification", "--model", str(model), "--method", "full"]
        flags += ["--train", str(data), "--run-dir", str(run_dir)]
        for setting in (*SETTINGS, *more):
            flags += ["--set", setting]
        return flags

    return make


@pytest.fixture(scope="module")
def unbroken(commands: Commands, arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert commands.run(*arguments(folder)) == 0, commands.output()
    return folder


def bytes_of(run: Path) -> dict[str, Any]:
    """Hashes of everything that training left: the model, and the last checkpoint with its optimizer and generators."""
    last = max((run / "stages" / "1-tune" / "checkpoints").glob("step-*"))
    trainer = json.loads((last / "trainer.json").read_text())
    for name in ("seconds", "peak_memory_bytes"):  # measurements, not results
        trainer["position"].pop(name)
    model = {path.name: tiny.sha256s(path.parent)[path.name] for path in sorted((run / "model").rglob("*.safetensors"))}
    return {"step": last.name, "checkpoint": tiny.sha256s(last), "model": model, "trainer": trainer}


def losses(run: Path) -> dict[int, float]:
    """Loss of each update by its number; of one that was done twice, the last."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return {line["step"]: line["loss"] for line in lines if line["type"] == "step"}


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.001)


def at_a_step(run: Path, step: int) -> Callable[[], bool]:
    """Whether the log has reached an update."""
    return lambda: (
        (run / "metrics.jsonl").is_file()
        and f'"step": {step}, "steps"' in (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    )


def while_saving(run: Path, count: int) -> Callable[[], bool]:
    """Whether a checkpoint is being written, when some are written already."""
    folder = run / "stages" / "1-tune" / "checkpoints"

    def staged() -> bool:
        return len(list(folder.glob("step-*"))) >= count and any(folder.glob(".staging-*/*.safetensors"))

    return staged


def test_two_runs_are_the_same_bytes(
    commands: Commands, arguments: Callable[..., list[str]], unbroken: Path, tmp_path: Path
) -> None:
    """Without this, equality after a kill would prove nothing; another seed must differ."""
    assert commands.run(*arguments(tmp_path / "again")) == 0
    assert bytes_of(tmp_path / "again")["model"] == bytes_of(unbroken)["model"]
    assert commands.run(*arguments(tmp_path / "other", "training.seed=1")) == 0
    assert bytes_of(tmp_path / "other")["model"] != bytes_of(unbroken)["model"]


def test_killed_at_ten_random_moments(
    commands: Commands, arguments: Callable[..., list[str]], unbroken: Path, tmp_path: Path
) -> None:
    """SIGKILL ten times over, between updates, in the middle of them and while saving; the bytes are the same."""
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    steps = max(losses(unbroken))
    run = tmp_path / "run"
    moments = sorted(chance.sample(range(1, steps - 1), 10))
    kills, saving = 0, 0
    command = arguments(run)
    for number, moment in enumerate(moments):
        process = commands.start(*command)
        if number % 3 == 2:
            wait_for(while_saving(run, 1))
        else:
            wait_for(at_a_step(run, moment))
            time.sleep(chance.random() * 0.02)
        os.kill(process, signal.SIGKILL)
        assert commands.wait() == -signal.SIGKILL, commands.output()
        kills += 1
        saving += any((run / "stages" / "1-tune" / "checkpoints").glob(".staging-*"))
        command = ["resume", str(run)]
    assert commands.run(*command) == 0, commands.output()
    assert kills == 10 and saving >= 1, f"seed {seed}"
    assert bytes_of(run) == bytes_of(unbroken), f"seed {seed}"
    assert losses(run) == losses(unbroken), f"seed {seed}"
    assert not list((run / "stages" / "1-tune" / "checkpoints").glob(".staging-*"))


def test_resuming_in_a_later_epoch_keeps_the_order(
    commands: Commands, arguments: Callable[..., list[str]], unbroken: Path, tmp_path: Path
) -> None:
    """transformers#40691: the order of the first epoch came again. Here every later loss is the same number."""
    run = tmp_path / "run"
    steps = max(losses(unbroken))
    process = commands.start(*arguments(run))
    wait_for(at_a_step(run, steps // 2 + 1))
    os.kill(process, signal.SIGKILL)
    commands.wait()
    assert commands.run("resume", str(run)) == 0
    resumed = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    first = [event["first_step"] for event in resumed if event["type"] == "stage_started"][1]
    epoch = next(event["epoch"] for event in resumed if event["type"] == "step" and event["step"] == first)
    assert first > 0 and epoch > 1
    assert losses(run) == losses(unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, commands: Commands, arguments: Callable[..., list[str]], unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = commands.start(*arguments(run))
    wait_for(at_a_step(run, 11))
    os.kill(process, number)
    assert commands.wait() == 130, commands.output()
    said = re.search(r"tunesmith resume (\S+)", commands.output())
    assert said is not None and said.group(1) == str(run)
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert last["type"] == "run_failed" and last["interrupted"]
    reached = max(losses(run))
    assert (run / "stages" / "1-tune" / "checkpoints" / f"step-{reached:08d}" / "MANIFEST.json").is_file()
    assert commands.run("resume", said.group(1)) == 0
    assert bytes_of(run) == bytes_of(unbroken) and losses(run) == losses(unbroken)


def test_stopped_in_the_evaluation(
    commands: Commands, arguments: Callable[..., list[str]], unbroken: Path, tmp_path: Path
) -> None:
    """Nothing is trained again, and what was not saved yet is made; SIGTERM is told from a crash there too."""
    run = tmp_path / "run"
    process = commands.start(*arguments(run, "evaluate.resamples=200000"))
    wait_for(lambda: (run / "events.jsonl").is_file() and '"stage_finished"' in (run / "events.jsonl").read_text())
    time.sleep(0.2)
    os.kill(process, signal.SIGTERM)
    assert commands.wait() == 130, commands.output()
    assert f"tunesmith resume {run}" in commands.output()
    shutil.rmtree(run / "model", ignore_errors=True)
    recipe = (run / "recipe.yaml").read_text().replace("resamples: 200000", "resamples: 100")
    (run / "recipe.yaml").write_text(recipe)  # how a run is evaluated may change
    before = (run / "metrics.jsonl").read_text()
    assert commands.run("resume", str(run)) == 0, commands.output()
    assert (run / "metrics.jsonl").read_text() == before
    assert bytes_of(run)["model"] == bytes_of(unbroken)["model"]
    assert (run / "report.html").is_file()


def test_killed_between_an_early_stop_and_the_report(
    commands: Commands, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The early stop stands: a resume does not train on."""
    run = tmp_path / "run"
    settings = ("training.patience=1", "training.learning_rate=1e-9", "training.epochs=20")
    assert commands.run(*arguments(run, *settings)) == 0, commands.output()
    stopped = json.loads((run / "summary.json").read_text())
    expected, steps = bytes_of(run), max(losses(run))
    for name in ("summary.json", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "model")
    events = [line for line in (run / "events.jsonl").read_text().splitlines() if '"run_finished"' not in line]
    (run / "events.jsonl").write_text("\n".join(events) + "\n")
    assert commands.run("resume", str(run)) == 0, commands.output()
    assert max(losses(run)) == steps and bytes_of(run) == expected
    assert json.loads((run / "summary.json").read_text())["metrics"] == stopped["metrics"]


def test_a_second_process_is_refused(commands: Commands, arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    import filelock

    run = tmp_path / "run"
    process = commands.start(*arguments(run))
    wait_for(at_a_step(run, 5))
    os.kill(process, signal.SIGKILL)
    commands.wait()
    with filelock.FileLock(run / ".lock"):
        assert commands.run("resume", str(run)) == 2
    assert "another process is working on this run" in commands.output()
