"""What a person sees while a run goes on: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

_COLUMNS = {
    "step": ("step", "{:d}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "reward": ("reward", "{:.3f}"),
    "accept_rate": ("accept", "{:.3f}"),
    "count_max": ("most", "{:d}"),
    "starved_prompts": ("left out", "{:d}"),
    "expected_gain": ("gain", "{:.2f}"),
    "rollouts": ("rollouts", "{:,d}"),
    "update_grad_norm": ("grad", "{:.3g}"),
    "tokens_per_second": ("tok/s", "{:,.0f}"),
    "step_seconds": ("s/step", "{:.2f}"),
}
_ROWS_SHOWN = 12
_NARROW = 90
"""Characters that a line of all columns needs."""
_WIDE_ONLY = ("reward", "expected_gain", "update_grad_norm", "tokens_per_second")
"""Columns that a narrower terminal does without."""
_LEGEND = (
    "accept: share of completions that were accepted; most: the most completions of a prompt; left out: "
    "prompts that got none; gain: expected variance of uniform counts over that of these, 0 where a "
    "prompt that has a gradient was left out; grad: norm of the gradient"
)


class View(Protocol):
    """Hears what happens in a run."""

    def message(self, text: str) -> None:
        """A line worth keeping on the screen."""

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """Progress of something that precedes training; ``note``: how it stands."""

    def phase(self, name: str) -> None:
        """A phase of the current step begins."""

    def step(self, metrics: Mapping[str, Any], steps: int) -> None:
        """A step has ended."""

    def samples(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A few completions of the last step."""

    def close(self) -> None:
        """The run is over, well or not."""


class NoView:
    """Shows nothing: for processes that leave the terminal to another."""

    def message(self, text: str) -> None:
        """Nothing."""

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """Nothing."""

    def phase(self, name: str) -> None:
        """Nothing."""

    def step(self, metrics: Mapping[str, Any], steps: int) -> None:
        """Nothing."""

    def samples(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def view_for(console: Console) -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class _Clock:
    """Time left, from the pace so far."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def left(self, done: int, total: int) -> str:
        now = time.monotonic()
        if self.first is None or done <= self.first[0]:
            self.first = self.first or (done, now)
            return "?"
        pace = (now - self.first[1]) / (done - self.first[0])
        return _duration(pace * (total - done))


class PlainView:
    """One line an event."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.clock = _Clock()
        self.prepared = ""
        self.printed = -math.inf
        self.explained = False

    def message(self, text: str) -> None:
        self._print(text)

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        if what != self.prepared:
            self.prepared, self.clock = what, _Clock()
            self.printed = -math.inf  # what begins is said at once
        left = self.clock.left(done, total)
        if done == total or time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            self._print(
                ", ".join([f"{what}: {done}/{total}", *filter(None, [note]), f"{left} left"])
            )
            if done == total:
                self.clock, self.prepared = _Clock(), ""

    def phase(self, name: str) -> None:
        pass

    def step(self, metrics: Mapping[str, Any], steps: int) -> None:
        left = self.clock.left(metrics["step"], steps)
        if metrics["step"] > 0 and not self.explained:
            self.explained = True
            self._print(_LEGEND)
        cells = [
            f"{title} {_format(metrics[key], form)}"
            for key, (title, form) in _COLUMNS.items()
            if key != "step" and metrics.get(key) is not None and not _says_nothing(metrics, key)
        ]
        self._print(f"step {metrics['step']}/{steps}: {', '.join(cells)}, {left} left")

    def samples(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            self._print(f"  {_sample_line(record)}")

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A progress bar, the last steps as a table and the last completions, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.clock = _Clock()
        self.prepared = ""
        self.rows: list[Mapping[str, Any]] = []
        self.last_samples: Sequence[Mapping[str, Any]] = ()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.task = self.progress.add_task("starting", total=None, note="")
        self.live = Live(self._render(), console=console, refresh_per_second=4)
        self.live.start()

    def message(self, text: str) -> None:
        self.live.console.print(escape(text), highlight=False)

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        if what != self.prepared:
            self.prepared, self.clock = what, _Clock()
        left = f"{self.clock.left(done, total)} left"
        self._advance(what, done, total, ", ".join(filter(None, [note, left])))
        if done == total:
            self.clock, self.prepared = _Clock(), ""

    def phase(self, name: str) -> None:
        self.progress.update(self.task, description=f"training ({name})")

    def step(self, metrics: Mapping[str, Any], steps: int) -> None:
        self.rows = [*self.rows, metrics][-_ROWS_SHOWN:]
        left = self.clock.left(metrics["step"], steps)
        self._advance("training", metrics["step"], steps, f"{left} left")

    def samples(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.last_samples = records
        self.live.update(self._render())

    def close(self) -> None:
        self.live.update(self._render(), refresh=True)
        self.live.stop()

    def _advance(self, description: str, done: int, total: int, note: str) -> None:
        self.progress.update(
            self.task, description=description, completed=done, total=total, note=note
        )
        self.live.update(self._render())

    def _render(self) -> Group:
        parts: list[Any] = []
        if self.rows:
            table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
            columns = {
                key: column
                for key, column in _COLUMNS.items()
                if (key not in _WIDE_ONLY or self.console.width >= _NARROW)
                and not all(_says_nothing(row, key) for row in self.rows)
            }
            for title, _ in columns.values():
                table.add_column(title, justify="right", no_wrap=True)
            for row in self.rows:
                table.add_row(*(_format(row.get(key), form) for key, (_, form) in columns.items()))
            parts += [table, Text(_LEGEND, style="dim")]
        parts += [
            Text(_sample_line(record), style="dim", no_wrap=True, overflow="ellipsis")
            for record in self.last_samples
        ]
        return Group(*parts, self.progress)


def _says_nothing(metrics: Mapping[str, Any], key: str) -> bool:
    """Whether a number repeats another: the mean of rewards of 0 and 1 is the accept rate."""
    return key == "reward" and metrics.get("reward") == metrics.get("accept_rate")


def _sample_line(record: Mapping[str, Any]) -> str:
    prompt, completion = (_shorten(record[key]) for key in ("prompt", "completion"))
    rate = record["accept_rate"]
    return f"p_i {rate:.2f}, n_i {record['count']}, {record['status']}: {prompt} -> {completion}"


def _shorten(text: str, limit: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _format(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
