"""Child processes that do not run the user's script again.

A process that multiprocessing starts by ``spawn`` or ``forkserver`` imports the file that was run, so
that functions defined there can be found. A script without ``if __name__ == "__main__"`` would then do
all its work again in every child. Nothing that DIBS runs in children lives in that file, so these
contexts leave it out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, spawn
from typing import Any

_MAIN = ("init_main_from_path", "init_main_from_name")


class _ThisThread(threading.local):
    leaves_out_main = False


_this_thread = _ThisThread()
_with_main = spawn.get_preparation_data


def _preparation_data(name: str) -> dict[str, Any]:
    """What a child learns of its parent; without the parent's script where this thread says so."""
    facts: dict[str, Any] = _with_main(name)
    if _this_thread.leaves_out_main:
        facts = {key: value for key, value in facts.items() if key not in _MAIN}
    return facts


# multiprocessing has no option for this. Processes that others start are prepared as ever.
spawn.get_preparation_data = _preparation_data


@contextmanager
def _main_left_out() -> Iterator[None]:
    _this_thread.leaves_out_main = True
    try:
        yield
    finally:
        _this_thread.leaves_out_main = False


class _ForkServerProcess(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        with _main_left_out():
            return context.ForkServerProcess._Popen(process_obj)


class _SpawnProcess(context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        with _main_left_out():
            return context.SpawnProcess._Popen(process_obj)


class ForkServer(context.ForkServerContext):
    """The context ``forkserver``, whose processes do not import the script that was run."""

    Process = _ForkServerProcess


class Spawn(context.SpawnContext):
    """The context ``spawn``, whose processes do not import the script that was run."""

    Process = _SpawnProcess
