"""Compare the runs of the demo, as rows for JSON and as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

TRAINING, TOTAL = "equal training rollouts", "equal total rollouts"


def comparison_rows(
    runs: Mapping[str, Path], accountings: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return a row for each arm of each accounting: ``arm``, ``accounting`` and the arm's summary.

    Args:
        runs: arm name to run folder.
        accountings: name of an accounting to the arms it compares.

    Raises ValueError if the arms of an accounting differ in optimizer updates, or in the rollouts that
    the accounting is named after.
    """
    rows = [
        {"arm": arm, "accounting": accounting, **read_summary(runs[arm])}
        for accounting, arms in accountings.items()
        for arm in arms
    ]
    for accounting in accountings:
        compared = [row for row in rows if row["accounting"] == accounting]
        _require_equal(accounting, compared, [row["optimizer_updates"] for row in compared])
        pilots_aside = accounting == TRAINING
        _require_equal(
            accounting,
            compared,
            [row["rollouts"] - pilots_aside * row["pilot_rollouts"] for row in compared],
        )
    return rows


def comparison_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Make a table for each accounting, narrow enough for a terminal of 80 columns."""
    tables = []
    for accounting in dict.fromkeys(row["accounting"] for row in rows):
        table = Table(
            title=accounting.capitalize(),
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
        )
        table.add_column("arm", no_wrap=True)
        for title in ("updates", "rollouts", "pilots", "tokens", "s", "before", "after", "95%"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in rows:
            if row["accounting"] == accounting:
                table.add_row(
                    row["arm"],
                    f"{row['optimizer_updates']:,}",
                    f"{row['rollouts']:,}",
                    f"{row['pilot_rollouts']:,}",
                    f"{row['completion_tokens']:,}",
                    f"{row['wall_seconds']:.0f}",
                    f"{row['accuracy_before']:.3f}",
                    f"{row['accuracy_after']:.3f}",
                    f"{row['accuracy_after_low']:.3f}-{row['accuracy_after_high']:.3f}",
                )
        tables.append(table)
    return tables


def differences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each accounting: which of its two arms is ahead, and by how much.

    The 95% interval is that of Newcombe (1998, method 10), from the intervals of the two arms.
    """
    sentences = []
    for accounting in dict.fromkeys(row["accounting"] for row in rows):
        ahead, behind = sorted(
            (row for row in rows if row["accounting"] == accounting),
            key=lambda row: -row["accuracy_after"],
        )
        gap = ahead["accuracy_after"] - behind["accuracy_after"]
        low = gap - math.hypot(_margin(ahead, "low"), _margin(behind, "high"))
        high = gap + math.hypot(_margin(ahead, "high"), _margin(behind, "low"))
        verdict = "" if low > 0 else ", not distinguishable"
        sentences.append(
            f"{accounting}: {ahead['arm']} ends ahead of {behind['arm']} by {gap:.3f} "
            f"(95% interval {low:.3f} to {high:.3f}{verdict})"
        )
    return sentences


def _margin(row: Mapping[str, Any], side: str) -> float:
    return abs(float(row[f"accuracy_after_{side}"]) - float(row["accuracy_after"]))


def read_summary(run: Path) -> dict[str, Any]:
    """Read a run's summary.json."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary


def _require_equal(accounting: str, rows: Sequence[Mapping[str, Any]], values: list[int]) -> None:
    if len(set(values)) > 1:
        arms = ", ".join(f"{row['arm']} {value}" for row, value in zip(rows, values, strict=True))
        raise ValueError(f"{accounting}: the arms are not equal: {arms}")
