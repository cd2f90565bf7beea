"""Run folders as they are found: finished, unfinished, damaged, or no runs at all.

Nothing is trusted: a folder may be written to at this moment, cut off, or filled by something else.
What can be read is read, and notes say what is wrong with the rest.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from dibs.config.secrets import without_secrets
from dibs.files import parsed_record
from dibs.runs.safe_text import as_json_types
from dibs.types import InputError, printable

_FAULTS_NAMED = 3
_LAST_STEP = 10**9
"""Of a run that anyone makes; a line beyond it is damaged."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder holds. ``metrics`` has at least one line, in the order of the steps.

    ``summary`` is None for an unfinished run. ``state``: finished, unfinished or damaged, with
    ``notes`` that say why. ``config`` is empty where it cannot be read, and shows no
    secrets, which config.yaml may hold where another version or program wrote it.
    """

    path: Path
    config: Mapping[str, Any]
    metrics: Sequence[Record]
    allocations: Sequence[Record]
    samples: Sequence[Record]
    sessions: Sequence[Record]
    summary: Mapping[str, Any] | None
    state: str
    notes: Sequence[str]

    def setting(self, dotted: str) -> Any:
        """A value of the configuration; None where it has none."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def frame(self) -> Any:
        """``metrics`` as a pandas DataFrame, one row a step; lists and mappings stay in their cells.

        Raises InputError where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise InputError(
                "Run.frame needs pandas; pip install pandas, or use .metrics"
            ) from None
        return pd.DataFrame(list(self.metrics))


@dataclass(frozen=True)
class NoRun:
    """A folder that there is nothing to report of, and why.

    ``state``: broken, unfinished (a run that has no step yet) or left out (on purpose).
    """

    path: Path
    reason: str
    state: str = "broken"


def read_run(path: Path) -> Run | NoRun:
    """What a run folder holds, or why it holds nothing; never raises for its contents."""
    try:
        return _read_run(path)
    except OSError as error:
        return NoRun(path, f"cannot be read: {error.strerror}")


def _read_run(path: Path) -> Run | NoRun:
    if not path.is_dir():
        return NoRun(path, "is a file; give a run folder" if path.exists() else "does not exist")
    notes: list[str] = []
    if not (path / "metrics.jsonl").is_file():
        return NoRun(path, "holds no run: metrics.jsonl is missing")
    metrics = _rising(_records(path / "metrics.jsonl", _is_step, notes))
    if not metrics:
        if notes:
            return NoRun(path, "; ".join(notes))
        return NoRun(path, "has no step yet: metrics.jsonl is empty", "unfinished")
    config = _object(path / "config.yaml", lambda text: as_json_types(yaml.safe_load(text)), notes)
    if not config:
        notes.append("config.yaml is missing or empty" if config is not None else "")
    allocations = _rising(_records(path / "allocations.jsonl", _is_allocation, notes))
    samples = _records(path / "samples.jsonl", _is_sample, notes)
    sessions = _records(path / "sessions.jsonl", _is_session, notes)
    summary = None
    if (path / "summary.json").is_file():
        summary = _object(path / "summary.json", json.loads, notes)
    last, steps = metrics[-1]["step"], (summary or {}).get("steps")
    if summary and isinstance(steps, int) and last < steps:
        notes.append(f"metrics.jsonl ends at step {last} of {steps}")
    notes = [note for note in notes if note]
    state = "damaged" if notes else "finished"
    if summary is None:
        state = "damaged" if notes else "unfinished"
        notes.insert(0, _progress(path, config or {}, last))
    shown = without_secrets(config or {})
    return Run(path, shown, metrics, allocations, samples, sessions, summary, state, notes)


def finite_number(record: Mapping[str, Any], key: str) -> float:
    """A number of a record; NaN where there is none."""
    value = record.get(key)
    return float(value) if _is_number(value) else math.nan


def _progress(path: Path, config: Mapping[str, Any], last: int) -> str:
    train = config.get("train")
    steps = train.get("steps") if isinstance(train, Mapping) else None
    written = time.gmtime((path / "metrics.jsonl").stat().st_mtime)
    of = f" of {steps}" if isinstance(steps, int) else ""
    return f"at step {last}{of}, last written {time.strftime('%Y-%m-%d %H:%M:%S', written)} UTC"


def _object(path: Path, parse: Callable[[str], Any], notes: list[str]) -> Mapping[str, Any] | None:
    """A file's keys and values; empty if it is missing, None if it is damaged, which is noted."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        notes.append(f"{path.name} is damaged: {_one_line(error)}")
        return None
    if isinstance(found, dict):
        return found
    notes.append(f"{path.name} is damaged: it holds no keys and values")
    return None


def _records(path: Path, fits: Callable[[Record], bool], notes: list[str]) -> list[Record]:
    """The records of a JSON Lines file that fit.

    A last line without an end that cannot be read is passed over: it is being written.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    lines = content.split(b"\n")
    records, bad = [], []
    for i, line in enumerate(lines, 1):
        record = parsed_record(line)
        if record is not None and fits(record):
            records.append(record)
        elif line.strip() and i < len(lines):
            bad.append(i)
    if bad:
        named = ", ".join(map(str, bad[:_FAULTS_NAMED])) + (" ..." if bad[_FAULTS_NAMED:] else "")
        plural = "s" if bad[1:] else ""
        notes.append(f"{path.name}: {len(bad)} damaged line{plural} left out ({named})")
    return records


def _rising(records: Sequence[Record]) -> list[Record]:
    """One record a step: a step that was done again counts as it was done last."""
    latest = {record["step"]: record for record in records}
    return [latest[step] for step in sorted(latest)]


def _is_step(record: Record) -> bool:
    step = record.get("step")
    return isinstance(step, int) and _is_number(step) and 0 <= step <= _LAST_STEP


def _is_allocation(record: Record) -> bool:
    columns = [record.get(key) for key in ("accept_rate", "count", "accepted")]
    columns += [record["judged"]] if "judged" in record else []  # runs of before have none
    return (
        _is_step(record)
        and all(isinstance(column, list) for column in columns)
        and len({len(column) for column in columns if column is not None}) == 1
        and all(_is_number(value) for value in _values(columns))
    )


def _values(columns: Sequence[Any]) -> Iterator[Any]:
    rates, *whole = columns
    yield from (value for value in rates if value is not None)
    for column in whole:
        yield from column


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_sample(record: Record) -> bool:
    texts = all(isinstance(record.get(key), str) for key in ("prompt", "completion"))
    return texts and not any(isinstance(value, list | dict) for value in record.values())


def _is_session(record: Record) -> bool:
    try:
        as_json_types(record)
    except ValueError:
        return False
    return True


def _one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return printable(" ".join(str(reason).split())[:200])
