"""The phases of a step: announced as they begin, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Calls ``on_phase`` with the name of each phase as it begins, and adds up seconds by name."""

    def __init__(self, on_phase: Callable[[str], None] = lambda name: None) -> None:
        self.on_phase = on_phase
        self.seconds: dict[str, float] = {}
        self._name, self._started = "", 0.0

    def restart(self) -> None:
        """Forget the seconds of the step before."""
        self.seconds.clear()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A phase, which ends with the block; see :meth:`turn_to`."""
        self._begin(name)
        yield
        self._end()

    def turn_to(self, name: str) -> None:
        """End the phase that is under way and begin another in the same block."""
        self._end()
        self._begin(name)

    def timings(self, tokens: int) -> dict[str, float]:
        """Seconds of each phase and of the step, and tokens a second of sampling.

        Args:
            tokens: sampled in this step, pilots included; so their seconds are those of the phases
                ``estimate`` and ``sample``.
        """
        sampling = self.seconds.get("estimate", 0.0) + self.seconds["sample"]
        return {
            **{f"{name}_seconds": spent for name, spent in self.seconds.items()},
            "step_seconds": sum(self.seconds.values()),
            "tokens_per_second": tokens / sampling if sampling > 0 else 0.0,
        }

    def _begin(self, name: str) -> None:
        self.on_phase(name)
        self._name, self._started = name, time.perf_counter()

    def _end(self) -> None:
        spent = time.perf_counter() - self._started
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent
