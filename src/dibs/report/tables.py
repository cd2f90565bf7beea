"""The numbers of every arm and the state of every run: the same rows for the page and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dibs.report.arms import Arm
from dibs.report.curves import arm_curve, costs_at
from dibs.report.spending import PARTS, total_spending
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
    """Settings, seeds, and what the arm had spent and reached at its last evaluation; means over seeds.

    ``accuracy_low`` and ``accuracy_high``: over held-out prompts for one seed, over seeds for several.
    Numbers that are not known are None. ``spent``: rollouts by what they were spent on, of all steps.
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
        "optimizer_updates": _known(costs["optimizer_updates"]),
        "rollouts": _known(costs["rollouts"]),
        "pilot_rollouts": _known(costs["pilot_rollouts"]),
        "completion_tokens": _known(costs["tokens"]),
        "training_seconds": _known(costs["seconds"]),
        "accuracy_before": _known(curve.mean[0]) if reached else None,
        "accuracy": _known(curve.mean[-1]) if reached else None,
        "accuracy_low": _known(curve.low[-1]) if reached else None,
        "accuracy_high": _known(curve.high[-1]) if reached else None,
        "spent": {name: _known(value) for name, value in zip(PARTS, parts, strict=True)},
        "learned_rollouts": _known(learned),
    }


def run_rows(arms: Sequence[Arm], others: Sequence[NoRun]) -> list[dict[str, Any]]:
    """Every folder that was given: its state, what is wrong with it, and the arm it is part of."""
    rows = [
        {
            "path": str(run.path),
            "state": run.state,
            "arm": arm.label,
            "seed": run.setting("seed"),
            "step": run.metrics[-1]["step"],
            "wall_seconds": _known(finite_number(run.summary or {}, "wall_seconds")),
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
    """Every process that worked on a run: when and where it started, and its versions."""
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


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
