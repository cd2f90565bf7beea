"""Judge a file of completions, as ``dibs verify`` does."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dibs.config import VerifyConfig
from dibs.data.containers import json_rows
from dibs.files import whole_file
from dibs.rollouts.verify.verifiers import build_verifier
from dibs.types import InputError, Verdict

STATUSES = ("accepted", "rejected", "no_answer", "timeout", "error")


def verify_file(
    path: Path,
    config: VerifyConfig,
    out: Path | None,
    console: Console,
    explain: Callable[[str, Verdict], None] | None = None,
) -> dict[str, Any]:
    """Judge every row, and return the number of items, of each status, and the seconds taken.

    ``explain`` is called with each row's gold answer and verdict, in order.

    ``out``: file for the verdicts, one JSON object a line; it is written whole or not at all. Raises
    InputError, with the row, for a bad one.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    items = list(_items(path))
    if not items:
        raise InputError(f"{path} holds no completions; give one JSON object a line")
    verifier = build_verifier(config, str(path))
    counts: Counter[str] = Counter()
    started = time.perf_counter()
    bar = Progress(
        TextColumn("verifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    try:
        with _finished_or_nothing(out) as lines, bar:
            for verdict in bar.track(verifier.verdicts(items), total=len(items)):
                if explain is not None:
                    explain(items[counts.total()][0], verdict)
                counts[verdict.status] += 1
                if lines is not None:
                    reward = None if math.isnan(verdict.reward) else verdict.reward
                    row = {"reward": reward, "status": verdict.status, "reason": verdict.reason}
                    lines.write(json.dumps(row) + "\n")
    finally:
        verifier.close()
    others = {status: count for status, count in counts.items() if status not in STATUSES}
    return {
        "items": len(items),
        **{status: counts[status] for status in STATUSES},
        **others,
        "seconds": time.perf_counter() - started,
    }


def _items(path: Path) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(json_rows(path), start=1):
        for key in ("completion", "answer"):
            if key not in row:
                raise InputError(f"{path}, row {number}: no {key}; it has {', '.join(row)}")
            if not isinstance(row[key], str):
                raise InputError(f"{path}, row {number}: {key} holds {row[key]!r:.40}, not text")
        if not row["answer"].strip():
            raise InputError(f"{path}, row {number}: the answer is empty")
        yield str(row["answer"]), row["completion"]


@contextmanager
def _finished_or_nothing(path: Path | None) -> Iterator[IO[str] | None]:
    """A file that gets the name ``path`` once it is whole; None where ``path`` is None."""
    if path is None:
        yield None
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():  # a device or a pipe is not replaced
        with path.open("w", encoding="utf-8") as lines:
            yield lines
        return
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: no permission in {path.parent}, or no such folder")
    with whole_file(path) as lines:
        yield lines
