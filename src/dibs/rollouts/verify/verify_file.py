"""Judge a file of completions, as ``dibs verify`` does."""

from __future__ import annotations

import inspect
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dibs.config import VerifyConfig
from dibs.data.containers import json_rows, with_numbers
from dibs.data.gold_answers import GoldAnswer
from dibs.files import whole_file
from dibs.plugins import import_function
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
    items = list(_items(path, _own_functions(config)))
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


def _own_functions(config: VerifyConfig) -> list[Callable[..., Any]]:
    """The user's functions among the verifiers."""
    own = [name for name in config.verifiers if ":" in name]
    return [import_function(name, "verify.verifier") for name in own]


def _wanted(functions: Sequence[Callable[..., Any]], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that functions have parameters for, beside answer and completion."""
    wanted: set[str] = set()
    for function in functions:
        try:
            others = list(inspect.signature(function).parameters.values())[2:]
        except ValueError:  # of a function in C
            continue
        if any(each.kind is each.VAR_KEYWORD for each in others):
            wanted |= set(row) - {"answer", "completion"}
        wanted |= {each.name for each in others} & set(row)
    return {name: with_numbers(row[name]) for name in row if name in wanted}


def _items(path: Path, functions: Sequence[Callable[..., Any]] = ()) -> Iterator[tuple[str, str]]:
    """The gold answer, with its accepted forms and columns, and the completion of every row."""
    for number, row in enumerate(json_rows(path), start=1):
        for key in ("completion", "answer"):
            if key not in row:
                raise InputError(f"{path}, row {number}: no {key}; it has {', '.join(row)}")
        texts = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        for key, text in (("completion", row["completion"]), *(("answer", each) for each in texts)):
            if not isinstance(text, str):
                raise InputError(f"{path}, row {number}: {key} holds {text!r:.40}, not text")
        forms = tuple(text for text in texts if text.strip())
        if not forms:
            raise InputError(f"{path}, row {number}: the answer is empty")
        yield GoldAnswer(" | ".join(forms), forms, _wanted(functions, row)), row["completion"]


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
