"""The verifier of questions from an environment of verifiers: its rubric, a real reward.

Rubrics are coroutines, which may wait for the network. They run in one thread beside this one, many at a
time. A reward function that computes for long without waiting cannot be stopped.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from dibs.data.environments import EnvironmentAnswer, environment, rows
from dibs.rollouts.verify.judges import scored, unreached
from dibs.types import Verdict

_IN_FLIGHT = 64
"""Completions that are judged at once."""
_faults: ContextVar[list[str] | None] = ContextVar("faults", default=None)


class _Faults(logging.Handler):
    """Keeps what reward functions raise: a rubric only logs it, and takes 0 for their reward."""

    def emit(self, record: logging.LogRecord) -> None:
        faults = _faults.get()
        if faults is not None:
            faults.append(record.getMessage())


class EnvironmentVerifier:
    """Judges completions by the rubric of their environment.

    Args:
        accept_threshold: least reward of an accepted completion.
        seconds: how long a rubric may take.
    """

    def __init__(self, accept_threshold: float, seconds: float) -> None:
        self.accept_threshold = accept_threshold
        self.seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler = _Faults(logging.ERROR)

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """Yield a verdict for each (gold answer, completion text), in order."""
        pending: deque[Future[Verdict]] = deque()
        try:
            for answer, text in items:
                judged = self._judged(answer, text)
                pending.append(asyncio.run_coroutine_threadsafe(judged, self._started()))
                if len(pending) >= _IN_FLIGHT:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Stop the thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
            logging.getLogger("verifiers").removeHandler(self._handler)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            logging.getLogger("verifiers").addHandler(self._handler)
            threading.Thread(target=self._loop.run_forever, name="rubrics", daemon=True).start()
        return self._loop

    async def _judged(self, answer: str, text: str) -> Verdict:
        if not isinstance(answer, EnvironmentAnswer):
            return unreached("error", "verifier environment judges questions of environments only")
        faults: list[str] = []
        _faults.set(faults)
        try:
            reward = await asyncio.wait_for(reward_of(answer, text), self.seconds)
        except TimeoutError:
            return unreached("timeout", f"no verdict within {self.seconds:g} s")
        except Exception as error:
            return unreached("error", f"{type(error).__name__}: {error}")
        if faults:
            return unreached("error", faults[0])
        return scored(reward, self.accept_threshold)


async def reward_of(answer: EnvironmentAnswer, text: str) -> float:
    """The weighted sum of the rubric's rewards for a completion."""
    from verifiers.types import State

    row: dict[str, Any] = copy.deepcopy(dict(rows(answer.environment, answer.held_out)[answer.row]))
    if isinstance(row.get("info"), str):
        row["info"] = json.loads(row["info"])
    state = State(input=row)
    chat = not isinstance(row["prompt"], str)
    state["prompt"] = row["prompt"]
    state["completion"] = [{"role": "assistant", "content": text}] if chat else text
    state["task"] = row
    state["trajectory"] = []
    await environment(answer.environment).rubric.score_rollout(state)
    return float(state["reward"])
