"""Held-out scores of runs and arms against what training cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dibs.allocation.intervals import over_seeds
from dibs.report.arms import Arm
from dibs.runs.read import Record, Run, finite_number

_NOT_TRAINING = ("evaluate_seconds", "measure_seconds")

_RANGES = {"log_accept_rate": (-np.inf, 0.0)}
"""Values that a score can have; others are shares."""

Axis = Callable[[Sequence[Record]], np.ndarray]


@dataclass(frozen=True)
class Curve:
    """A score with its 95% interval against a cost.

    All arrays are float64 [points], a point for each evaluation; NaN where a number is unknown.
    ``x``: the cost until then. ``mean``: the score, of one run or over seeds.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _column(key: str) -> Axis:
    return lambda lines: np.array([finite_number(line, key) for line in lines])


def training_seconds(lines: Sequence[Record]) -> np.ndarray:
    """Sum up the seconds of training, without evaluation and the variance meter; float64 [lines].

    Args:
        lines: of metrics.jsonl, from the first one on. A line without seconds counts as 0.
    """
    taken = [
        np.nan_to_num(
            finite_number(line, "step_seconds")
            - sum(np.nan_to_num(finite_number(line, k)) for k in _NOT_TRAINING)
        )
        for line in lines
    ]
    return np.cumsum(taken)


AXES: Mapping[str, Axis] = {
    "steps": _column("step"),
    "rollouts": _column("rollouts"),
    "tokens": _column("completion_tokens"),
    "seconds": training_seconds,
}
"""Costs of training by name: each computes the total after every line of metrics.jsonl."""


def run_curve(run: Run, axis: str, score: str = "accuracy") -> Curve:
    """Return a run's score at its evaluations, with the interval over prompts if that is known.

    Args:
        axis: a key of :data:`AXES`.
        score: a key of metrics.jsonl.
    """
    lines = evaluated(run.metrics, score)
    points = totals_at(run.metrics, AXES[axis], [line["step"] for line in lines])
    mean, low, high = (
        np.array([finite_number(line, key) for line in lines])
        for key in (score, f"{score}_low", f"{score}_high")
    )
    return Curve(points, mean, low, high)


def arm_curve(arm: Arm, axis: str, score: str = "accuracy") -> Curve:
    """Return an arm's score at the evaluations that all of its seeds have reached.

    Of several seeds, score and cost are means over the seeds, and the interval is Student's t, cut to
    the values that the score can have. Of one seed, the curve is that of the run.
    """
    if len(arm.runs) == 1:
        return run_curve(arm.runs[0], axis, score)
    each = [
        {line["step"]: finite_number(line, score) for line in evaluated(run.metrics, score)}
        for run in arm.runs
    ]
    shared = sorted(set.intersection(*(set(values) for values in each)))
    points = np.array([totals_at(run.metrics, AXES[axis], shared) for run in arm.runs]).mean(axis=0)
    mean, low, high = over_seeds(np.array([[values[step] for step in shared] for values in each]))
    return Curve(points, mean, *np.clip((low, high), *_RANGES.get(score, (0.0, 1.0))))


def costs_at(arm: Arm, step: int) -> dict[str, float]:
    """Return what an arm had spent after a step: means over seeds, by cost.

    The costs are those of :data:`AXES`, optimizer updates and pilot rollouts.
    """
    totals = {**AXES, **{name: _column(name) for name in ("optimizer_updates", "pilot_rollouts")}}
    return {
        name: float(np.mean([totals_at(run.metrics, total, [step])[0] for run in arm.runs]))
        for name, total in totals.items()
    }


def evaluated(lines: Sequence[Record], *scores: str) -> list[Record]:
    """Return the lines of metrics.jsonl that have all of some scores.

    An evaluation in which no completion got a verdict has none.
    """
    return [line for line in lines if not any(np.isnan(finite_number(line, key)) for key in scores)]


def totals_at(lines: Sequence[Record], total: Axis, steps: Sequence[int]) -> np.ndarray:
    """Return a run's total after each of some steps. A missing line has the total of the one before."""
    known = np.array([line["step"] for line in lines])
    places = np.searchsorted(known, steps, side="right") - 1
    return np.where(places < 0, np.nan, total(lines)[np.maximum(places, 0)])
