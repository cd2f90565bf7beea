"""Learning curves, what they cost to reach a target, and speed-ups with intervals. numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dibs.report.arms import AXES
from dibs.variance import Interval
from dibs.whole_files import read_lines

COSTS = ("rollouts", "tokens", "seconds", "steps", "training_rollouts")
"""What a run spends. The full accounting counts rollouts, tokens and seconds of pilots too; that of
arXiv 2505.02391 counts steps, or training rollouts without pilots."""
RESAMPLES = 2000
MOST_UNDEFINED = 0.05
"""Share of resamples without a speed-up beyond which no interval is given."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, float64 [e] each, step 0 first.

    ``costs``: what was spent until then, by name; seconds without evaluation and measurement.
    ``value``: what the run is judged by on held-out prompts. ``totals``: of the summary. ``gains``: of
    variance, wherever training measured them; NaN where a prompt was left out.
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


def read_curve(run: Path, value: str, *, pilots_thrown_away: bool) -> Curve:
    """The curve of a finished run.

    Args:
        value: key of metrics.jsonl.
        pilots_thrown_away: as in mode ``pilot``; those of ``cross_fit`` are trained on.
    """
    lines = read_lines(run / "metrics.jsonl")
    marked = [i for i, line in enumerate(lines) if line.get("accuracy") is not None]

    def series(key: str) -> np.ndarray:
        return np.array([lines[i][key] for i in marked], dtype=np.float64)

    costs = {name: axis(lines)[marked] for name, axis in AXES.items()}
    costs["training_rollouts"] = costs["rollouts"] - pilots_thrown_away * series("pilot_rollouts")
    gains = [line["measured_gain"] for line in lines if "measured_gain" in line]
    return Curve(
        costs=costs,
        value=series(value),
        accuracy=series("accuracy"),
        pass_at_k=series("pass_at_k"),
        totals=json.loads((run / "summary.json").read_text(encoding="utf-8")),
        gains=np.array(gains, dtype=np.float64),
    )


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


@dataclass(frozen=True)
class Comparison:
    """Costs until the target, and what the reference's are over the arm's; by cost.

    ``target``: the reference's final value. A cost is None where the target is never reached.
    """

    target: float
    to_target: Mapping[str, float | None]
    speed_up: Mapping[str, Interval]


def compare_curves(reference: Sequence[Curve], arm: Sequence[Curve]) -> Comparison:
    """How much less an arm spends than the reference until it reaches the reference's final value.

    Curves are averaged over seeds first; the speed-up is the reference's cost at its own final value
    (the first time its curve gets there) over the arm's. Intervals are 95% percentiles over resampled
    seeds, the same for both arms. An arm that does not get there has no speed-up, and a resample in
    which it does not counts as 0. Where the reference begins at its final value, or the arm does, there
    is nothing to measure; no interval is given where more than MOST_UNDEFINED of the resamples are like
    that, or for a single seed.

    Args:
        reference, arm: of the same seeds in the same order, at least one.
    """
    target, to_target, found = _once(reference, arm, None)
    draws = np.random.default_rng(0).multinomial(
        len(arm), np.full(len(arm), 1 / len(arm)), size=RESAMPLES
    )
    drawn = [_once(reference, arm, weights.astype(np.float64))[2] for weights in draws]
    speed_up = {}
    for name in COSTS:
        values = np.array([each[name] for each in drawn])
        known = values[~np.isnan(values)]
        low = high = None
        if len(arm) > 1 and len(known) >= (1 - MOST_UNDEFINED) * RESAMPLES:
            low, high = map(float, np.quantile(known, (0.025, 0.975), method="nearest"))
        value = found[name] if found[name] > 0 else None
        speed_up[name] = Interval(value, low, high)
    return Comparison(target, to_target, speed_up)


def _once(
    reference: Sequence[Curve], arm: Sequence[Curve], weights: np.ndarray | None
) -> tuple[float, dict[str, float | None], dict[str, float]]:
    """Target, costs of the arm, and speed-ups: 0 where it does not get there, NaN if undefined."""
    ours, theirs = mean_curve(arm, weights), mean_curve(reference, weights)
    target = float(theirs.value[-1])
    costs: dict[str, float | None] = {}
    ratios: dict[str, float] = {}
    for name in COSTS:
        price = crossing(theirs.costs[name], theirs.value, target)
        own = costs[name] = crossing(ours.costs[name], ours.value, target)
        if not price or own == 0:
            ratios[name] = np.nan
        else:
            ratios[name] = 0.0 if own is None else price / own
    return target, costs, ratios
