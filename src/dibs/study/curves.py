"""Learning curves, what they cost to reach a target, and speed-ups with intervals. numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dibs.variance import Interval
from dibs.whole_files import read_lines

COSTS = ("rollouts", "tokens", "seconds", "steps", "training_rollouts")
"""What a run spends. The full accounting counts rollouts, tokens and seconds of pilots too; that of
arXiv 2505.02391 counts steps, or training rollouts without pilots."""
RESAMPLES = 2000
VALUES = {"log_likelihood": "log_accept_rate"}
"""Held-out value of an objective in metrics.jsonl; of the others it is ``accuracy``."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, float64 [e] each, step 0 first.

    ``costs``: what was spent until then, by name; seconds without evaluation and measurement.
    ``value``: of the run's objective on held-out prompts. ``totals``: of the summary.
    """

    costs: Mapping[str, np.ndarray]
    value: np.ndarray
    accuracy: np.ndarray
    pass_at_k: np.ndarray
    totals: Mapping[str, float]
    gains: np.ndarray

    @property
    def mean_value(self) -> float:
        """Mean over the evaluations after step 0: high for a run that learns soon and well."""
        return float(self.value[1:].mean())


def read_curve(run: Path, objective: str) -> Curve:
    """The curve of a finished run."""
    lines = read_lines(run / "metrics.jsonl")
    spent = np.cumsum([_seconds(line) for line in lines])
    marked = [i for i, line in enumerate(lines) if line.get("accuracy") is not None]

    def series(key: str) -> np.ndarray:
        return np.array([lines[i][key] for i in marked], dtype=np.float64)

    rollouts = series("rollouts")
    return Curve(
        costs={
            "rollouts": rollouts,
            "tokens": series("completion_tokens"),
            "seconds": spent[marked],
            "steps": series("step"),
            "training_rollouts": rollouts - series("pilot_rollouts"),
        },
        value=series(VALUES.get(objective, "accuracy")),
        accuracy=series("accuracy"),
        pass_at_k=series("pass_at_k"),
        totals=json.loads((run / "summary.json").read_text(encoding="utf-8")),
        gains=np.array(
            [line["measured_gain"] for line in lines if line.get("measured_gain") is not None]
        ),
    )


def _seconds(line: Mapping[str, float]) -> float:
    """Of a step, without what only watches it."""
    watching = line.get("evaluate_seconds", 0.0) + line.get("measure_seconds", 0.0)
    return line.get("step_seconds", 0.0) - watching


def crossing(cost: np.ndarray, value: np.ndarray, target: float) -> float | None:
    """Cost at which a curve first reaches a target, between evaluations in proportion; None: never.

    Args:
        cost: rising, [e].
        value: [e].
    """
    reached = np.flatnonzero(value >= target)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0:
        return float(cost[0])
    share = (target - value[i - 1]) / (value[i] - value[i - 1])
    return float(cost[i - 1] + share * (cost[i] - cost[i - 1]))


@dataclass(frozen=True)
class Mean:
    """The mean of curves of several seeds, evaluation by evaluation."""

    costs: Mapping[str, np.ndarray]
    value: np.ndarray
    accuracy: np.ndarray


def mean_curve(curves: Sequence[Curve], weights: np.ndarray | None = None) -> Mean:
    """Mean over seeds; ``weights``: how often each counts, [k]. They are evaluated at the same steps."""
    weights = np.ones(len(curves)) if weights is None else weights

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        return weights @ np.stack(values) / weights.sum()

    return Mean(
        {name: mean([c.costs[name] for c in curves]) for name in COSTS},
        mean([c.value for c in curves]),
        mean([c.accuracy for c in curves]),
    )


def speed_ups(reference: Sequence[Curve], arm: Sequence[Curve]) -> dict[str, Interval]:
    """How much less an arm spends than the reference until it reaches the reference's final value.

    Curves are averaged over seeds first; the value is the reference's cost at its own final value (the
    first time its curve gets there) over the arm's. Intervals are 95% percentiles over resampled seeds,
    the same for both arms. An arm that does not get there has no value, and a resample in which it does
    not counts as a speed-up of 0.

    Args:
        reference, arm: of the same seeds in the same order, at least one.

    Returns:
        An interval a cost; all None where the reference itself learns nothing.
    """
    draws = np.random.default_rng(0).multinomial(
        len(arm), np.full(len(arm), 1 / len(arm)), size=RESAMPLES
    )

    def once(weights: np.ndarray | None) -> dict[str, float | None]:
        ours, theirs = mean_curve(arm, weights), mean_curve(reference, weights)
        target = float(theirs.value[-1])
        result: dict[str, float | None] = {}
        for name in COSTS:
            price = crossing(theirs.costs[name], theirs.value, target)
            own = crossing(ours.costs[name], ours.value, target)
            if not price:  # the reference is no better than it began
                result[name] = np.nan
            else:
                result[name] = None if own is None else price / max(own, 1e-12)
        return result

    found = once(None)
    drawn = [once(weights.astype(np.float64)) for weights in draws]
    intervals = {}
    for name in COSTS:
        values = np.array([0.0 if d[name] is None else d[name] for d in drawn], dtype=np.float64)
        known = values[~np.isnan(values)]
        value = found[name]
        if value is not None and np.isnan(value):
            intervals[name] = Interval(None, None, None)
            continue
        low, high = np.quantile(known, (0.025, 0.975), method="nearest")
        intervals[name] = Interval(value, float(low), float(high))
    return intervals
