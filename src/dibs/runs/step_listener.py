"""A view that also hands the metrics of every step to a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dibs.runs.console import View


class StepListener:
    """Shows all that ``shown`` shows, and calls ``on_step`` with a copy of each step's metrics."""

    def __init__(self, shown: View, on_step: Callable[[Mapping[str, Any]], None]) -> None:
        self.shown = shown
        self.on_step = on_step

    def message(self, text: str) -> None:
        """See :class:`.View`."""
        self.shown.message(text)

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """See :class:`.View`."""
        self.shown.preparing(what, done, total, note)

    def phase(self, name: str) -> None:
        """See :class:`.View`."""
        self.shown.phase(name)

    def step(self, metrics: Mapping[str, Any], steps: int) -> None:
        """A step has ended, and its line is written."""
        self.shown.step(metrics, steps)
        self.on_step(dict(metrics))

    def samples(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`.View`."""
        self.shown.samples(records)

    def close(self) -> None:
        """See :class:`.View`."""
        self.shown.close()
