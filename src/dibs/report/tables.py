"""Numbers of every arm and states of every run, as rows for the page and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dibs.report.arms import Arm
from dibs.report.curves import arm_curve, costs_at
from dibs.report.spending import PARTS, total_spending
from dibs.report.standings import Standing
from dibs.runs.read import NoRun, Run, finite_number

_SETTINGS = {
    "algorithm": "algorithm.name",
    "objective": "algorithm.objective",
    "baseline": "algorithm.baseline",
    "allocator": "allocate.allocator",
    "mode": "estimate.mode",
    "learning_rate": "update.learning_rate",
}


def arm_row(arm: Arm) -> dict[str, Any]:
    """Return settings, seeds, costs and scores of an arm at its last evaluation; means over seeds.

    ``accuracy_low`` and ``accuracy_high`` are the ends of an interval over held-out prompts for one
    seed, and over seeds for several. ``spent`` counts the rollouts of all steps by :data:`PARTS`.
    Unknown numbers are None.
    """
    curve = arm_curve(arm, "steps")
    reached = bool(len(curve.x))
    step = int(curve.x[-1]) if reached else min(run.metrics[-1]["step"] for run in arm.runs)
    costs = costs_at(arm, step)
    parts, learned = total_spending(arm.runs)
    first = arm.runs[0]
    return {
        "arm": arm.label,
        **{name: first.setting(key) for name, key in _SETTINGS.items()},
        "seeds": [run.setting("seed") for run in arm.runs],
        "step": step,
        "optimizer_updates": _json_number(costs["optimizer_updates"]),
        "rollouts": _json_number(costs["rollouts"]),
        "pilot_rollouts": _json_number(costs["pilot_rollouts"]),
        "completion_tokens": _json_number(costs["tokens"]),
        "training_seconds": _json_number(costs["seconds"]),
        "accuracy_before": _json_number(curve.mean[0]) if reached else None,
        "accuracy": _json_number(curve.mean[-1]) if reached else None,
        "accuracy_low": _json_number(curve.low[-1]) if reached else None,
        "accuracy_high": _json_number(curve.high[-1]) if reached else None,
        "spent": {name: _json_number(value) for name, value in zip(PARTS, parts, strict=True)},
        "learned_rollouts": _json_number(learned),
    }


def standing_row(standing: Standing) -> dict[str, Any]:
    """Return an arm's task, its reference arm there, and how many times fewer rollouts it needs.

    ``times_fewer_rollouts`` and the ends of its interval are None for the reference and where unknown.
    """
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {
        "reference": standing.reference.label,
        **{
            f"times_fewer_rollouts{end}": getattr(standing.fewer, name, None)
            for end, name in ends.items()
        },
        "verdict": standing.verdict,
    }


def run_rows(arms: Sequence[Arm], others: Sequence[NoRun]) -> list[dict[str, Any]]:
    """Return a row for every folder: its state, remarks on what is wrong with it, and its arm."""
    rows = [
        {
            "path": str(run.path),
            "state": run.state,
            "arm": arm.label,
            "seed": run.setting("seed"),
            "step": run.metrics[-1]["step"],
            "wall_seconds": _json_number(finite_number(run.summary or {}, "wall_seconds")),
            "notes": list(run.notes),
        }
        for arm in arms
        for run in arm.runs
    ]
    return rows + [_row_without(other) for other in others]


def _row_without(other: NoRun) -> dict[str, Any]:
    return {
        "path": str(other.path),
        "state": other.state,
        "arm": None,
        "seed": None,
        "step": None,
        "wall_seconds": None,
        "notes": [other.reason],
    }


def session_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for every start of a run: when, on which device, and with which versions."""
    rows = []
    for run in runs:
        for found in run.sessions:
            versions = found.get("versions")
            rows.append(
                {
                    "path": str(run.path),
                    **{key: found.get(key) for key in ("step", "started", "device", "processes")},
                    "versions": versions if isinstance(versions, dict) else {},
                }
            )
    return rows


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
