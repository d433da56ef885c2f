"""Progress for people: the events of a run as bars and lines on stderr, or in a notebook's cell.

A terminal and a notebook with ipywidgets get live bars; anything else (a log file, a pipe) gets plain lines, at most
one every ten seconds for each bar.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunesmith import events, words
from tunesmith.events import Event, Listener

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

PLAIN_SECONDS = 10.0
SPEED_WINDOW = 20  # steps over which the speed is averaged: long enough to even out length buckets


@contextmanager
def shown(console: Console | None = None, *, verdict: bool = True) -> Iterator[Listener]:
    """Show a run while it goes.

    Use it as ``with shown() as on_event: pipeline.run(recipe, on_event=on_event)``.

    Args:
        console: Where to draw; default: stderr, or the cell of a notebook.
        verdict: Whether the verdict at the end is shown here too.
    """
    from rich.console import Console

    if console is None:
        console = Console(stderr=True, highlight=False)
        if not console.is_terminal and not console.is_jupyter:
            console = Console(stderr=True, highlight=False, width=240)
    live = console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
    board = Bars(console) if live else Lines(console)
    lines = Talk(console, verdict=verdict)

    def listen(event: Event) -> None:
        lines(event)
        board(event)

    try:
        yield listen
    finally:
        board.close()


class Talk:
    """Prints what is said once: phases, notices, validations, results."""

    def __init__(self, console: Console, *, verdict: bool) -> None:
        self.console = console
        self.verdict = verdict

    def __call__(self, event: Event) -> None:
        """Print the event, if it is one of those."""
        match event:
            case events.RunStarted():
                verb = "resumed" if event.resumed else "started"
                self._say(f"Run {event.run} {verb}: {event.task}, {event.model}, method {event.method}", "bold")
            case events.Phase():
                self._say(f"{event.step}: {event.message}")
            case events.Notice():
                self._notice(event)
            case events.StageStarted():
                share = event.trainable_parameters / max(event.total_parameters, 1)
                self._say(
                    f"stage {event.stage}: steps {event.first_step} to {event.steps}, "
                    f"{event.trainable_parameters:,} of {event.total_parameters:,} parameters train ({share:.1%})"
                )
            case events.Validated():
                best = "  (best so far)" if event.best else ""
                self._say(f"  step {event.step}: validation {_numbers(event.metrics)}{best}")
            case events.StageFinished():
                self._say(
                    f"stage {event.stage}: {event.step} steps in {words.duration(event.seconds)} ({event.reason}); "
                    f"best step {event.best_step}; {event.tokens_per_second:,.0f} tokens/s; "
                    f"peak memory {words.size(event.peak_memory_bytes)}"
                )
            case events.Evaluated():
                shown_metrics = ", ".join(
                    f"{name} {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for name, m in event.metrics.items()
                )
                self._say(f"  {event.system}: {shown_metrics}  ({words.duration(event.seconds)})")
            case events.RunFinished() if self.verdict:
                self._say(event.verdict, "bold")
            case _:
                pass

    def _notice(self, event: events.Notice) -> None:
        place = f"{event.where}: " if event.where else ""
        mend = f"\n    how to mend it: {event.fix}" if event.fix else ""
        style = "yellow" if event.level == "warning" else "dim"
        self._say(f"  {event.level}: {place}{event.message}{mend}", style)

    def _say(self, text: str, style: str = "") -> None:
        from rich.control import strip_control_codes
        from rich.text import Text

        self.console.print(Text(strip_control_codes(text).replace("\x1b", ""), style=style), soft_wrap=True)


class Speed:
    """Real tokens a second over the last steps."""

    def __init__(self) -> None:
        self.recent: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW)

    def after(self, step: events.Step) -> float:
        """The speed, this step included."""
        self.recent.append((step.tokens, step.seconds))
        return sum(tokens for tokens, _ in self.recent) / max(sum(seconds for _, seconds in self.recent), 1e-9)

    def seconds_left(self, step: events.Step) -> float:
        """Time until the last step, at the pace of the last ones."""
        pace = sum(seconds for _, seconds in self.recent) / max(len(self.recent), 1)
        return pace * (step.steps - step.step)


class Bars:
    """Live bars: one for the stage in training, one for each other thing under way."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self.tasks: dict[str, TaskID] = {}
        self.speed = Speed()

    def __call__(self, event: Event) -> None:
        """Move the bars."""
        match event:
            case events.StageStarted():
                self.speed = Speed()
                self._move(event.stage, event.first_step, event.steps, "")
            case events.Step():
                self._move(event.stage, event.step, event.steps, _step_text(event, self.speed.after(event)))
            case events.Progress():
                self._move(event.what, event.done, event.total, event.unit)
            case events.StageFinished():
                self._drop(event.stage)
            case events.RunFinished() | events.RunFailed():
                self.close()
            case _:
                pass

    def close(self) -> None:
        """Take all bars away."""
        self.progress.stop()
        for name in list(self.tasks):
            self._drop(name)

    def _move(self, name: str, done: int, total: int | None, info: str) -> None:
        if not self.tasks:
            self.progress.start()
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, completed=done, info=info)
        self.progress.update(self.tasks[name], completed=done, total=total, info=info)
        if total is not None and done >= total:
            self._drop(name)

    def _drop(self, name: str) -> None:
        if (task := self.tasks.pop(name, None)) is not None:
            self.progress.remove_task(task)
        if not self.tasks:
            self.progress.stop()


class Lines:
    """The same as lines of text, for a log: the last state of each bar, at most one line in ten seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.last: dict[str, float] = {}
        self.speed = Speed()

    def __call__(self, event: Event) -> None:
        """Print a line if the last one is old enough, or if this is the end."""
        match event:
            case events.StageStarted():
                self.speed = Speed()
                self.last[event.stage] = self.clock()
            case events.Step():
                text = _step_text(event, self.speed.after(event))
                left = words.duration(self.speed.seconds_left(event))
                self._tell(
                    event.stage, f"step {event.step}/{event.steps}  {text}  {left} left", event.step >= event.steps
                )
            case events.Progress():
                of = f"/{event.total}" if event.total is not None else ""
                self._tell(event.what, f"{event.what} {event.done}{of} {event.unit}", False)
            case _:
                pass

    def close(self) -> None:
        """Nothing is open."""

    def _tell(self, name: str, text: str, last: bool) -> None:
        now = self.clock()
        if last or now - self.last.setdefault(name, now) >= PLAIN_SECONDS:
            self.last[name] = now
            self.console.print(f"  {text}", markup=False, soft_wrap=True)
            sys.stderr.flush()


def _step_text(step: events.Step, speed: float) -> str:
    if not step.memory_bytes:  # at a provider, which tells nothing but the loss
        return f"loss {step.loss:.4f}"
    return f"loss {step.loss:.4f}  {speed:,.0f} tokens/s  {words.size(step.memory_bytes)}"


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
