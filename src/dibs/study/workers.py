"""A pool of processes that end cleanly after Ctrl-C, and when their parent dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.synchronize import Event
from types import FrameType
from typing import TypeVar

from dibs.child_processes import Spawn
from dibs.types import InputError

Job = TypeVar("Job")
_busy = threading.Event()


@contextmanager
def workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Start a pool of processes.

    Ctrl-C does not reach the processes. Instead, jobs in progress get one SIGTERM and may finish what
    they must save, and jobs that have not begun are dropped.

    Raises InputError if a process died.
    """
    context = Spawn()
    stop = context.Event()
    pool = ProcessPoolExecutor(number, context, initializer=_begin, initargs=(stop,))
    try:
        yield pool
    except KeyboardInterrupt:
        stop.set()
        raise
    except BrokenProcessPool:
        raise InputError(
            "a process of a run died, perhaps for lack of memory; run the same command again to go on, "
            "with --compare.jobs 1 if memory is short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def results(
    pool: ProcessPoolExecutor, do: Callable[[Job], str | None], jobs: Sequence[Job]
) -> Iterator[tuple[Job, str | None]]:
    """Yield the jobs as they finish, each with what ``do`` returned: why it failed, or None."""
    waiting: dict[Future[str | None], Job] = {pool.submit(_guarded, do, job): job for job in jobs}
    for future in as_completed(waiting):
        yield waiting[future], future.result()


def _guarded(do: Callable[[Job], str | None], job: Job) -> str | None:
    """Do a job in a process of the pool. An error becomes one line, so that other jobs go on."""
    _busy.set()
    try:
        return do(job)
    except InputError as error:
        return str(error)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    finally:
        _busy.clear()


def _begin(stop: Event) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch(stop: Event) -> None:
    """Wait for a request to stop or the parent's death, then stop the job and this process."""
    parent = parent_process()
    while not stop.wait(0.5) and (parent is None or parent.is_alive()):
        pass
    if _busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
    while parent is None or parent.is_alive() or _busy.is_set():
        time.sleep(0.5)
    os._exit(1)
