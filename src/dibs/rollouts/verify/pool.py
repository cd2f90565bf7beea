"""A judge in worker processes that are killed at a deadline and replaced.

Comparing answers can hang or take all memory, and Python cannot stop that from within; so it happens in
processes of their own, with a wall-clock limit for every item and a memory limit for every worker.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError
from typing import Any

from pebble import ProcessExpired, ProcessPool

from dibs.rollouts.verify.judges import Judge, judged, unreached
from dibs.types import Verdict

_IN_FLIGHT = 4096
"""Items given to the workers ahead of the one whose verdict is due."""
_TASKS_A_WORKER = 20_000


class VerifierPool:
    """Verdicts of a judge from worker processes, which start with the first item.

    Args:
        judge: a function that can be pickled; it runs in the workers.
        workers: processes.
        seconds: wall-clock limit of one item; its worker is killed then.
        megabytes: limit on a worker's address space.
        longest: characters at the end of a completion that the judge looks at; the rest need not travel.
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

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """A verdict for each (gold answer, completion text), in order.

        Items are handed to the workers as they come, so that a slow source is scored meanwhile. One that
        exceeds its time is a ``timeout``; one whose worker dies or runs out of memory an ``error``.
        """
        pending: deque[Any] = deque()
        try:
            for answer, text in items:
                task = (self.judge, answer, text[-self.longest :], self.seconds)
                pending.append(self._started().schedule(_bounded, args=task, timeout=self.seconds))
                if len(pending) > _IN_FLIGHT:
                    yield self._outcome(pending.popleft())
            while pending:
                yield self._outcome(pending.popleft())
        finally:
            for future in pending:  # nobody waits for them any more
                future.cancel()

    def close(self) -> None:
        """Stop the workers; what they still had to do is dropped."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _started(self) -> ProcessPool:
        if self._pool is None:
            # Forked from a small server that has imported the judges: safe beside threads, and quick.
            # There is one server a process, so what it imports must not depend on who comes first.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["dibs.rollouts.verify.maths", _module_of(self.judge)])
            self._pool = ProcessPool(
                max_workers=self.workers,
                max_tasks=_TASKS_A_WORKER,
                initializer=_prepare,
                initargs=(self.megabytes,),
                context=context,
            )
        return self._pool

    def _outcome(self, future: Any) -> Verdict:
        try:
            verdict: Verdict = future.result()
            return verdict
        except TimeoutError:
            return unreached("timeout", f"no verdict within {self.seconds:g} s")
        except ProcessExpired as error:
            return unreached("error", f"the worker died (exit status {error.exitcode})")
        except Exception as error:
            return unreached("error", f"{type(error).__name__}: {error}")


def _prepare(megabytes: int) -> None:
    """Limits of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    size = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(1)


def _bounded(judge: Judge, answer: str, text: str, seconds: float) -> Verdict:
    """In a worker: the judge's verdict, whatever it raises.

    The parent kills a worker at its deadline. Should the parent be gone, an alarm does, also within C.
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
    # Of a partial, or of a user's function.
    function = getattr(judge, "func", getattr(judge, "function", judge))
    return str(function.__module__)
