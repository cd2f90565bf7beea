"""A judge in worker processes, which are killed at a deadline and replaced.

Comparing answers can hang or use up memory, and Python cannot stop that within a process. So it happens
in worker processes, with a limit on the wall-clock time of each item and on the memory of each worker.

A worker can also be killed from outside, by a system that is short of memory for example. Its item is
then judged once more, so that verdicts do not depend on such a kill. Workers that cannot go on are all
replaced: pebble gives a pool up where an idle worker dies, and a worker may die while it holds a lock.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

from dibs.child_processes import ForkServer
from dibs.rollouts.verify.judges import Judge, judged, unreached
from dibs.types import Verdict

_IN_FLIGHT = 4096
"""Items that wait in the workers' queue before the next one is read."""
_TASKS_A_WORKER = 20_000
_DEATHS = 2
"""Workers that may die with an item; it is not judged again then."""
_LOSSES = 3
"""How often in a row all workers may be lost without any verdict before that costs an item its own."""
_LOOK = 1.0
"""Seconds between two looks at whether the workers are at work."""
_START = 60.0
"""Seconds that workers may take to start."""


class _LostError(Exception):
    """The workers that had an item are gone, or stand still."""


@dataclass
class _Item:
    """What a worker is given, the pool of the worker, the verdict to come, and how many died with it."""

    args: tuple[Any, ...]
    pool: ProcessPool
    future: Any
    deaths: int = 0


class VerifierPool:
    """A verifier whose judge runs in worker processes, which start with the first item.

    Args:
        judge: a function that can be pickled.
        workers: number of processes.
        seconds: wall-clock limit of one item, after which its worker is killed.
        megabytes: limit on a worker's address space.
        longest: characters at the end of a completion that are sent to the judge.
    """

    def __init__(
        self,
        judge: Judge,
        workers: int,
        seconds: float,
        megabytes: int,
        longest: int = sys.maxsize,
    ) -> None:
        self.judge = judge
        self.workers = workers
        self.seconds = seconds
        self.megabytes = megabytes
        self.longest = longest
        self._pool: ProcessPool | None = None
        self._moved = time.monotonic()
        self._losses = 0

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """Yield a verdict for each (gold answer, completion text), in order.

        Items go to the workers as they are read, so that they are judged while a slow source makes
        more. An item that exceeds its time has the status ``timeout``. One that runs out of memory, or
        whose worker dies twice, has the status ``error``. So has the first item that waits where all
        workers are lost three times in a row, and once more for each further loss.
        """
        pending: deque[_Item] = deque()
        try:
            for answer, text in items:
                task = (self.judge, answer, text[-self.longest :], self.seconds)
                pending.append(_Item(task, *self._scheduled(task)))
                if len(pending) > _IN_FLIGHT:
                    yield self._first_outcome(pending)
            while pending:
                yield self._first_outcome(pending)
        finally:
            for item in pending:  # their verdicts are not needed any more
                item.future.cancel()

    def close(self) -> None:
        """Stop the workers; items without a verdict are dropped."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _started(self) -> ProcessPool:
        if self._pool is None:
            # Workers are forked from a small server that has imported the judges. That is fast, and safe
            # beside threads. A process has one server, so every pool must let it import the same
            # modules.
            module = _module_of(self.judge)
            context = get_context("forkserver") if module == "__main__" else ForkServer()
            context.set_forkserver_preload(["dibs.rollouts.verify.maths", module])
            self._pool = ProcessPool(
                max_workers=self.workers,
                max_tasks=_TASKS_A_WORKER,
                initializer=_prepare,
                initargs=(self.megabytes,),
                context=context,
            )
        return self._pool

    def _scheduled(self, task: tuple[Any, ...]) -> tuple[ProcessPool, Any]:
        """The pool that has a task now, and its future."""
        pool = self._started()
        try:
            future = pool.schedule(_bounded, args=task, timeout=self.seconds)
        except RuntimeError:  # given up
            self._replace()
            pool = self._started()
            future = pool.schedule(_bounded, args=task, timeout=self.seconds)
        future.add_done_callback(self._note)
        return pool, future

    def _note(self, future: Any) -> None:
        """Note when the workers were last seen at work; called in a thread of the pool."""
        if future.cancelled() or isinstance(future.exception(), BrokenProcessPool):
            return
        self._moved = time.monotonic()
        if not isinstance(future.exception(), ProcessExpired):
            self._losses = 0

    def _replace(self) -> None:
        """Give up workers that were lost; others start with the next item."""
        self._losses += 1
        self.close()

    def _first_outcome(self, pending: deque[_Item]) -> Verdict:
        """The verdict of the first item, which is taken out."""
        item, verdict = pending[0], None
        while verdict is None:
            try:
                verdict = self._verdict(item)
            except ProcessExpired as error:
                item.deaths += 1
                if item.deaths < _DEATHS:
                    item.pool, item.future = self._scheduled(item.args)
                else:
                    reason = f"the worker died (exit status {error.exitcode})"
                    verdict = unreached("error", reason)
            except (_LostError, BrokenProcessPool) as error:
                if item.pool is self._pool:
                    self._replace()
                if self._losses >= _LOSSES:
                    verdict = unreached("error", f"the workers were lost: {error}")
                # An item that has its verdict is not judged again.
                self._reschedule(islice(pending, int(verdict is not None), None))
        pending.popleft()
        return verdict

    def _reschedule(self, pending: Iterable[_Item]) -> None:
        """Give all items that were lost to the workers of now."""
        for item in pending:
            given_up = item.future.done() and isinstance(item.future.exception(), BrokenProcessPool)
            if item.pool is not self._pool and (given_up or not item.future.done()):
                item.pool, item.future = self._scheduled(item.args)

    def _verdict(self, item: _Item) -> Verdict:
        """Wait for an item, as long as the workers are at work.

        One that is judged once more is behind all others in the workers' queue.
        """
        began = time.monotonic()
        while True:
            try:
                verdict: Verdict = item.future.result(timeout=_LOOK)
                return verdict
            except TimeoutError:
                if item.future.done():  # perhaps only now, with a verdict
                    if not isinstance(item.future.exception(), TimeoutError):
                        continue
                    return unreached("timeout", f"no verdict within {self.seconds:g} s")
                lost = self._pool is None or item.pool is not self._pool
                if lost or not item.pool.active:
                    raise _LostError("their pool was given up") from None
                # A worker ends an item, or is killed, within the item's time.
                seen = max(began, self._moved)
                if time.monotonic() > seen + 2 * self.seconds + _START:
                    raise _LostError("they stand still") from None
            except (ProcessExpired, BrokenProcessPool):
                raise
            except Exception as error:
                return unreached("error", f"{type(error).__name__}: {error}")


def _prepare(megabytes: int) -> None:
    """Set the limits of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    size = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(1)


def _bounded(judge: Judge, answer: str, text: str, seconds: float) -> Verdict:
    """The judge's verdict, in a worker; any exception becomes a verdict of status ``error``.

    The parent kills a worker at its deadline. An alarm kills the worker where the parent has died, even
    while C code runs.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 5)
    try:
        return judged(judge, answer, text)
    except BaseException as error:
        return unreached("error", f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _module_of(judge: Judge) -> str:
    # Partials and judges around others hold the function whose module is wanted.
    function = getattr(judge, "func", getattr(judge, "function", None))
    return str(judge.__module__) if function is None else _module_of(function)
