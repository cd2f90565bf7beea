"""What runs cost until they reach a target, and how much less than the reference. numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dibs.allocation.intervals import Interval, percentile_ends, resampled_weights
from dibs.files import read_lines
from dibs.report.curves import AXES

COSTS = ("rollouts", "tokens", "seconds", "steps", "training_rollouts")
"""What a run spends. Rollouts, tokens and seconds include those of pilots. Steps and training rollouts
do not; arXiv 2505.02391 counts those."""
SCORES = ("value", "accuracy", "pass_at_k")
"""Scores that a target can be in."""
RESAMPLES = 2000
"""Resamples of a bootstrap over seeds."""
MOST_UNDEFINED = 0.05
"""Largest share of resamples with an undefined speed-up for which an interval is reported."""


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run.

    ``costs``: what was spent until each evaluation, by the names of :data:`COSTS`; seconds leave out
    evaluation and measurement. ``value``: the held-out score that the run is judged by. It and the
    other scores are float64 [e], step 0 first. ``totals``: the run's summary. ``gains``: the gains in
    variance that training measured, [steps measured]; NaN where the counts left a prompt out.
    """

    costs: Mapping[str, np.ndarray]
    value: np.ndarray
    accuracy: np.ndarray
    pass_at_k: np.ndarray
    totals: Mapping[str, float]
    gains: np.ndarray

    @property
    def mean_value(self) -> float:
        """Mean over the evaluations after step 0. It is high for a run that learns early and well."""
        return float(self.value[1:].mean())


def read_evaluations(run: Path, value: str, *, pilots_thrown_away: bool) -> Evaluations:
    """Read the evaluations of a finished run.

    Args:
        run: its folder.
        value: key of metrics.jsonl that the run is judged by.
        pilots_thrown_away: whether pilots are not trained on. They are not in mode ``pilot``; in mode
            ``cross_fit`` they are.
    """
    lines = read_lines(run / "metrics.jsonl")
    marked = [i for i, line in enumerate(lines) if line.get("accuracy") is not None]

    def series(key: str) -> np.ndarray:
        return np.array([lines[i][key] for i in marked], dtype=np.float64)

    costs = {name: axis(lines)[marked] for name, axis in AXES.items()}
    costs["training_rollouts"] = costs["rollouts"] - pilots_thrown_away * series("pilot_rollouts")
    gains = [line["measured_gain"] for line in lines if "measured_gain" in line]
    return Evaluations(
        costs=costs,
        value=series(value),
        accuracy=series("accuracy"),
        pass_at_k=series("pass_at_k"),
        totals=json.loads((run / "summary.json").read_text(encoding="utf-8")),
        gains=np.array(gains, dtype=np.float64),
    )


@dataclass(frozen=True)
class Target:
    """A score to reach: a fixed ``level``, or a ``share`` of the reference's way to its final score.

    If the reference's scores end on a plateau, it is chance whether and when an arm reaches the final
    score. A share such as 0.9 lies below the plateau.
    """

    score: str = "value"
    share: float = 1.0
    level: float | None = None

    def of(self, reference: np.ndarray) -> np.ndarray:
        """Return the score to reach for mean scores of the reference [D, e]; float64 [D]."""
        first, last = reference[:, 0], reference[:, -1]
        if self.level is not None:
            return np.full(len(reference), self.level)
        reached: np.ndarray = last if self.share == 1 else first + self.share * (last - first)
        return reached


FINAL = Target()
"""The reference's final value, by which arms are judged."""


@dataclass(frozen=True)
class MeanEvaluations:
    """Means over seeds of their evaluations, for D weightings of the seeds; float64 [D, e] each."""

    costs: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]

    def costs_until(self, score: str, target: np.ndarray) -> dict[str, np.ndarray]:
        """Return the costs until a score first reaches its target; float64 [D], NaN if it never does.

        Between two evaluations, costs are interpolated linearly.

        Args:
            score: one of :data:`SCORES`.
            target: [D].
        """
        place = _first_at(self.scores[score], target)
        return {name: _at(cost, place) for name, cost in self.costs.items()}


def mean_evaluations(
    runs: Sequence[Evaluations], weights: np.ndarray | None = None
) -> MeanEvaluations:
    """Average runs that are evaluated at the same steps.

    Args:
        runs: k runs, one for each seed.
        weights: how often each run counts, [D, k]. None counts each once, [1, k].
    """
    weights = np.ones((1, len(runs))) if weights is None else weights

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        means: np.ndarray = weights @ np.stack(values) / weights.sum(1, keepdims=True)
        return means

    return MeanEvaluations(
        {name: mean([run.costs[name] for run in runs]) for name in COSTS},
        {name: mean([getattr(run, name) for run in runs]) for name in SCORES},
    )


def _first_at(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return where rows of values [D, e] first reach their targets [D], as an index; NaN if never."""
    reached = values >= target[:, None]
    i = reached.argmax(1)
    rows = np.arange(len(values))
    before, after = values[rows, np.maximum(i - 1, 0)], values[rows, i]
    share = np.divide(target - before, after - before, out=np.ones(len(i)), where=i > 0)
    return np.where(reached.any(1), np.where(i > 0, i - 1 + share, 0.0), np.nan)


def _at(costs: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Interpolate costs [D, e] at fractional indices [D]; NaN stays NaN."""
    known = np.nan_to_num(place)
    i = known.astype(int)
    rows = np.arange(len(costs))
    below, above = costs[rows, i], costs[rows, np.minimum(i + 1, costs.shape[1] - 1)]
    between: np.ndarray = below + (known - i) * (above - below)
    return np.where(np.isnan(place), np.nan, between)


@dataclass(frozen=True)
class Comparison:
    """An arm compared with its reference for one target.

    ``target``: the score to reach. ``to_target``: the arm's cost until then, None if it never gets
    there. ``speed_up``: the reference's cost over the arm's. Both are by the names of :data:`COSTS`.
    """

    target: float
    to_target: Mapping[str, float | None]
    speed_up: Mapping[str, Interval]


def compare_evaluations(
    reference: Sequence[Evaluations],
    arm: Sequence[Evaluations],
    targets: Sequence[Target] = (FINAL,),
) -> list[Comparison]:
    """Compute how much less an arm spends than the reference until it reaches each target.

    Evaluations are averaged over seeds first. The speed-up is the reference's cost until its mean score
    first reaches the target, over the arm's. Intervals are 95% percentiles over resampled seeds. Both
    arms have the same resamples, and each resample has its own target.

    An arm that never reaches the target has no speed-up; a resample in which it does not counts as 0.
    The speed-up is undefined if the reference or the arm begins at the target, or if the reference never
    reaches it. There is no interval if more than MOST_UNDEFINED of the resamples are undefined, or for a
    single seed.

    Args:
        reference, arm: runs of the same seeds in the same order, at least one.
    """
    k = len(arm)
    weights = np.concatenate([np.ones((1, k)), resampled_weights(k, RESAMPLES)])
    theirs, ours = mean_evaluations(reference, weights), mean_evaluations(arm, weights)
    return [_compared(theirs, ours, target, k) for target in targets]


def _compared(
    theirs: MeanEvaluations, ours: MeanEvaluations, target: Target, seeds: int
) -> Comparison:
    """Compare two means, whose row 0 is that of all seeds and whose other rows are resamples."""
    aim = target.of(theirs.scores[target.score])
    prices, own = (each.costs_until(target.score, aim) for each in (theirs, ours))
    to_target: dict[str, float | None] = {}
    speed_up = {}
    for name in COSTS:
        ratios = _ratios(prices[name], own[name])
        known = ratios[1:][~np.isnan(ratios[1:])]
        low: float | None = None
        high: float | None = None
        if seeds > 1 and len(known) >= (1 - MOST_UNDEFINED) * RESAMPLES:
            low, high = percentile_ends(known)
        speed_up[name] = Interval(float(ratios[0]) if ratios[0] > 0 else None, low, high)
        to_target[name] = None if np.isnan(own[name][0]) else float(own[name][0])
    return Comparison(float(aim[0]), to_target, speed_up)


def _ratios(price: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Divide costs [D]: 0 where the arm never reaches the target, NaN where the ratio is undefined."""
    defined = (price > 0) & (own != 0)
    ratios = np.divide(price, own, out=np.zeros(len(own)), where=defined & ~np.isnan(own))
    return np.where(defined, ratios, np.nan)
