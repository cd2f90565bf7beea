"""Learning curves, what they cost to reach a target, and speed-ups with intervals. numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dibs.allocation.intervals import Interval
from dibs.files import read_lines
from dibs.report.curves import AXES

COSTS = ("rollouts", "tokens", "seconds", "steps", "training_rollouts")
"""What a run spends. The full accounting counts rollouts, tokens and seconds of pilots too; that of
arXiv 2505.02391 counts steps, or training rollouts without pilots."""
SCORES = ("value", "accuracy", "pass_at_k")
"""What a target may be in."""
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


@dataclass(frozen=True)
class Target:
    """A score to reach: a fixed ``level``, or a share of the reference's way to its final one.

    A final score on a plateau is reached, or not, by chance; nine tenths of the way are not.
    """

    score: str = "value"
    share: float = 1.0
    level: float | None = None

    def of(self, reference: np.ndarray) -> np.ndarray:
        """The score that is meant, for mean curves of the reference [D, e]: float64 [D]."""
        first, last = reference[:, 0], reference[:, -1]
        if self.level is not None:
            return np.full(len(reference), self.level)
        reached: np.ndarray = last if self.share == 1 else first + self.share * (last - first)
        return reached


FINAL = Target()
"""The reference's final value."""


@dataclass(frozen=True)
class Mean:
    """Mean curves of several seeds, for D weightings of the seeds; [D, e] each."""

    costs: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]

    def costs_until(self, score: str, target: np.ndarray) -> dict[str, np.ndarray]:
        """Cost until a score is first reached, between evaluations in proportion; [D], NaN: never.

        Args:
            target: [D].
        """
        place = _first_at(self.scores[score], target)
        return {name: _at(cost, place) for name, cost in self.costs.items()}


def mean_curve(curves: Sequence[Curve], weights: np.ndarray | None = None) -> Mean:
    """Means over seeds, which are evaluated at the same steps.

    Args:
        weights: how often each counts, [D, k]; default: each once.
    """
    weights = np.ones((1, len(curves))) if weights is None else weights

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        means: np.ndarray = weights @ np.stack(values) / weights.sum(1, keepdims=True)
        return means

    return Mean(
        {name: mean([c.costs[name] for c in curves]) for name in COSTS},
        {name: mean([getattr(c, name) for c in curves]) for name in SCORES},
    )


def _first_at(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Where rows of values [D, e] first reach their targets [D], in evaluations; NaN: never."""
    reached = values >= target[:, None]
    i = reached.argmax(1)
    rows = np.arange(len(values))
    before, after = values[rows, np.maximum(i - 1, 0)], values[rows, i]
    share = np.divide(target - before, after - before, out=np.ones(len(i)), where=i > 0)
    return np.where(reached.any(1), np.where(i > 0, i - 1 + share, 0.0), np.nan)


def _at(costs: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Costs [D, e] at places between evaluations [D]; NaN stays."""
    known = np.nan_to_num(place)
    i = known.astype(int)
    rows = np.arange(len(costs))
    below, above = costs[rows, i], costs[rows, np.minimum(i + 1, costs.shape[1] - 1)]
    between: np.ndarray = below + (known - i) * (above - below)
    return np.where(np.isnan(place), np.nan, between)


@dataclass(frozen=True)
class Comparison:
    """Costs until the target, and what the reference's are over the arm's; by cost.

    ``target``: the score that was to be reached. A cost is None where it never is.
    """

    target: float
    to_target: Mapping[str, float | None]
    speed_up: Mapping[str, Interval]


def compare_curves(
    reference: Sequence[Curve], arm: Sequence[Curve], targets: Sequence[Target] = (FINAL,)
) -> list[Comparison]:
    """How much less an arm spends than the reference until it reaches each target.

    Curves are averaged over seeds first; the speed-up is the reference's cost until its curve first gets
    there over the arm's. Intervals are 95% percentiles over resampled seeds, the same for both arms;
    targets are those of the resample. An arm that does not get there has no speed-up, and a resample in
    which it does not counts as 0. Where the reference or the arm begins at the target, or the reference
    never reaches it, there is nothing to measure; no interval is given where more than MOST_UNDEFINED of
    the resamples are like that, or for a single seed.

    Args:
        reference, arm: of the same seeds in the same order, at least one.
    """
    k = len(arm)
    draws = np.random.default_rng(0).multinomial(k, np.full(k, 1 / k), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, k)), draws])
    theirs, ours = mean_curve(reference, weights), mean_curve(arm, weights)
    return [_compared(theirs, ours, target, k) for target in targets]


def _compared(theirs: Mean, ours: Mean, target: Target, seeds: int) -> Comparison:
    """Row 0 of the means is that of all seeds, the others are resamples."""
    aim = target.of(theirs.scores[target.score])
    prices, own = (each.costs_until(target.score, aim) for each in (theirs, ours))
    to_target: dict[str, float | None] = {}
    speed_up = {}
    for name in COSTS:
        ratios = _ratios(prices[name], own[name])
        known = ratios[1:][~np.isnan(ratios[1:])]
        low = high = None
        if seeds > 1 and len(known) >= (1 - MOST_UNDEFINED) * RESAMPLES:
            low, high = map(float, np.quantile(known, (0.025, 0.975), method="nearest"))
        speed_up[name] = Interval(float(ratios[0]) if ratios[0] > 0 else None, low, high)
        to_target[name] = None if np.isnan(own[name][0]) else float(own[name][0])
    return Comparison(float(aim[0]), to_target, speed_up)


def _ratios(price: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The reference's cost over the arm's, [D]: 0 where the arm does not get there, NaN if undefined."""
    defined = (price > 0) & (own != 0)
    ratios = np.divide(price, own, out=np.zeros(len(own)), where=defined & ~np.isnan(own))
    return np.where(defined, ratios, np.nan)
