"""Progress: what people see while a run goes on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tunesmith import events
from tunesmith.progress import Bars, Lines, Speed, shown


def step(number: int, **changes: Any) -> events.Step:
    values: dict[str, Any] = {
        "stage": "tune", "step": number, "steps": 100, "epoch": 0.1, "loss": 0.5, "learning_rate": 1e-4,
        "grad_norm": 1.0, "tokens": 1000, "examples": 8, "seconds": 0.5, "memory_bytes": 2_000_000_000,
    }  # fmt: skip
    return events.Step(**(values | changes))


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=200, highlight=False, color_system=None), stream


def test_a_log_gets_plain_lines_and_the_end() -> None:
    screen, text = console()
    with shown(screen) as on_event:
        on_event(events.RunStarted(run="r1", task="chat", model="m", method="peft"))
        on_event(
            events.StageStarted(stage="tune", steps=100, first_step=0, trainable_parameters=25, total_parameters=1000)
        )
        for number in range(1, 101):
            on_event(step(number))
        on_event(events.Validated(stage="tune", step=100, metrics={"accuracy": 0.875}, best=True))
        on_event(
            events.Evaluated(
                system="tuned", metrics={"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}, seconds=61.0
            )
        )
        on_event(events.RunFinished(verdict="Tuning paid off.", seconds=1))
    lines = text.getvalue().splitlines()
    assert lines[0] == "Run r1 started: chat, m, method peft"
    assert "25 of 1,000 parameters train (2.5%)" in lines[1]
    steps = [line for line in lines if "step 100/100" in line]
    assert len(steps) == 1 and "loss 0.5000  2,000 tokens/s  2 GB" in steps[0]
    assert "validation accuracy 0.8750  (best so far)" in text.getvalue()
    assert "tuned: accuracy 0.800 [0.700, 0.900]  (1 min 01 s)" in text.getvalue()
    assert lines[-1] == "Tuning paid off."
    assert len(lines) < 10, "hundred quick steps are not hundred lines"


def test_the_verdict_can_be_left_to_the_caller() -> None:
    screen, text = console()
    with shown(screen, verdict=False) as on_event:
        on_event(events.RunFinished(verdict="Tuning paid off.", seconds=1))
    assert text.getvalue() == ""


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    screen, text = console()
    now = [0.0]
    lines = Lines(screen, clock=lambda: now[0])
    for number in range(1, 61):
        now[0] += 1.0
        lines(events.Progress(what="predicting", done=number, total=None))
    assert text.getvalue().splitlines() == [f"  predicting {n} rows" for n in (11, 21, 31, 41, 51)]


def test_texts_of_data_are_neither_markup_nor_escape_sequences() -> None:
    screen, text = console()
    with shown(screen) as on_event:
        on_event(
            events.Notice(level="warning", message="label [bold]x[/bold] \x1b[2J\x07", where="a.csv:3", fix="mend")
        )
    assert "warning: a.csv:3: label [bold]x[/bold] " in text.getvalue()
    assert "\x1b" not in text.getvalue() and "\x07" not in text.getvalue()
    assert "how to mend it: mend" in text.getvalue()


def test_bars_open_move_and_go() -> None:
    screen, text = console(terminal=True)
    bars = Bars(screen)
    bars(events.StageStarted(stage="tune", steps=100, first_step=40, trainable_parameters=1, total_parameters=1))
    bars(step(41))
    bars(events.Progress(what="downloading", done=1, total=None, unit="MB"))
    assert set(bars.tasks) == {"tune", "downloading"}
    [task] = [task for task in bars.progress.tasks if task.description == "tune"]
    assert (task.completed, task.total) == (41, 100)
    bars(events.Progress(what="downloading", done=5, total=5, unit="MB"))
    bars(step(100))
    assert bars.tasks == {} and not bars.progress.live.is_started
    assert "41/100" in text.getvalue()


def test_bars_are_closed_when_the_run_fails() -> None:
    screen, text = console(terminal=True)
    with pytest.raises(RuntimeError, match="stop"), shown(screen) as on_event:
        on_event(step(1))
        raise RuntimeError("stop")
    hidden, shown_again = "\x1b[?25l", "\x1b[?25h"  # the cursor, while bars are drawn
    assert text.getvalue().rfind(shown_again) > text.getvalue().rfind(hidden) >= 0


def test_speed_and_time_left_follow_the_last_steps() -> None:
    speed = Speed()
    speed.after(step(1, tokens=10, seconds=100.0))
    for number in range(2, 22):
        found = speed.after(step(number, tokens=1000, seconds=0.5))
    assert found == 2000.0
    assert speed.seconds_left(step(90)) == 5.0
