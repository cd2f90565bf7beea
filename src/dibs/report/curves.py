"""Curves of runs and of arms: a score against what was spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from dibs.report.arms import Arm
from dibs.runs.read import Record, Run, finite_number

_NOT_TRAINING = ("evaluate_seconds", "measure_seconds")

Axis = Callable[[Sequence[Record]], np.ndarray]


@dataclass(frozen=True)
class Curve:
    """A mean and its 95% interval at the points ``x``; all [points], NaN where there is none."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _column(key: str) -> Axis:
    return lambda lines: np.array([finite_number(line, key) for line in lines])


def training_seconds(lines: Sequence[Record]) -> np.ndarray:
    """Seconds since the start, without evaluation and the variance meter; float64 [lines].

    ``lines``: those of metrics.jsonl from its first on. A line that does not tell counts as 0.
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
"""What training costs, by the name of the cost: its total after each line of metrics.jsonl."""


def run_curve(run: Run, axis: str, score: str = "accuracy") -> Curve:
    """A run's held-out score at its evaluations, with the interval over prompts if that is known.

    ``axis``: a key of :data:`AXES`; ``score``: a key of metrics.jsonl.
    """
    lines = _evaluated(run, score)
    points = _at(run, AXES[axis], [line["step"] for line in lines])
    mean, low, high = (
        np.array([finite_number(line, key) for line in lines])
        for key in (score, f"{score}_low", f"{score}_high")
    )
    return Curve(points, mean, low, high)


def arm_curve(arm: Arm, axis: str, score: str = "accuracy") -> Curve:
    """A held-out score of an arm at the evaluations that all of its seeds have reached.

    Over seeds: the mean and Student's t interval; costs are means as well. Of a single run: its own.
    """
    if len(arm.runs) == 1:
        return run_curve(arm.runs[0], axis, score)
    each = [
        {line["step"]: finite_number(line, score) for line in _evaluated(r, score)}
        for r in arm.runs
    ]
    shared = sorted(set.intersection(*(set(values) for values in each)))
    points = np.array([_at(run, AXES[axis], shared) for run in arm.runs]).mean(axis=0)
    mean, low, high = over_seeds(np.array([[values[step] for step in shared] for values in each]))
    return Curve(points, mean, low, high)


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds and its 95% interval (Student's t) of values [seeds, points]; NaN if one seed."""
    seeds = len(values)
    mean = values.mean(axis=0)
    if seeds == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    margin = stdtrit(seeds - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return mean, mean - margin, mean + margin


def costs_at(arm: Arm, step: int) -> dict[str, float]:
    """What an arm had spent after a step, by axis, and its pilots: means over seeds."""
    totals = {**AXES, **{name: _column(name) for name in ("optimizer_updates", "pilot_rollouts")}}
    return {
        name: float(np.mean([_at(run, total, [step])[0] for run in arm.runs]))
        for name, total in totals.items()
    }


def _evaluated(run: Run, score: str) -> list[Record]:
    return [line for line in run.metrics if not np.isnan(finite_number(line, score))]


def _at(run: Run, total: Axis, steps: Sequence[int]) -> np.ndarray:
    """A run's total after each of some steps; where a line is missing, that of the line before."""
    known = np.array([line["step"] for line in run.metrics])
    places = np.searchsorted(known, steps, side="right") - 1
    return np.where(places < 0, np.nan, total(run.metrics)[np.maximum(places, 0)])
