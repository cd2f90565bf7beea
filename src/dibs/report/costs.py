"""What runs cost until they reach a goal, and how much less than the reference."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import stdtr

from dibs.allocation.intervals import Interval, jackknife_error, on_log_scale
from dibs.files import read_lines
from dibs.report.curves import AXES, evaluated, totals_at
from dibs.report.measured_gain import measured_steps
from dibs.runs.read import Record, finite_number

COSTS = ("rollouts", "tokens", "seconds", "steps", "training_rollouts")
"""What a run spends. Rollouts, tokens and seconds include those of pilots. Steps and training rollouts
do not; arXiv 2505.02391 counts those."""
SCORES = ("value", "accuracy", "pass_at_k")
"""Scores that a goal can be in."""
NO_DIFFERENCE = "no difference shown"
LEVELS = 16
"""Scores, evenly spaced, whose costs a comparison averages over."""
LOWEST, HIGHEST = 0.25, 0.9
"""The levels are between these shares of the way that both arms went.

Below, an arm has hardly begun. Above, on a plateau, noise decides when a score is reached.
"""


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run.

    ``steps``: after which the run was evaluated, int64 [e]. ``costs``: what was spent until each
    evaluation, by the names of :data:`COSTS`; seconds leave out evaluation and measurement. ``value``:
    the held-out score that the run is judged by. It and the other scores are float64 [e], step 0 first.
    ``totals``: the run's summary. ``variances``: of the steps that training measured, under uniform and
    under their own counts, [steps, 2]; NaN where the counts left a prompt out.
    """

    steps: np.ndarray
    costs: Mapping[str, np.ndarray]
    value: np.ndarray
    accuracy: np.ndarray
    pass_at_k: np.ndarray
    totals: Mapping[str, float]
    variances: np.ndarray

    def at(self, steps: np.ndarray) -> Evaluations:
        """The evaluations after some steps."""
        kept = np.isin(self.steps, steps)
        return replace(
            self,
            steps=self.steps[kept],
            costs={name: values[kept] for name, values in self.costs.items()},
            value=self.value[kept],
            accuracy=self.accuracy[kept],
            pass_at_k=self.pass_at_k[kept],
        )

    @property
    def is_curve(self) -> bool:
        """Whether there are two evaluations or more with a score."""
        return len(self.value) > 1

    @property
    def mean_value(self) -> float:
        """Mean over the evaluations after step 0. It is high for a run that learns early and well."""
        return float(self.value[self.steps > 0].mean())


def read_evaluations(run: Path, value: str, *, pilots_thrown_away: bool) -> Evaluations:
    """Read the evaluations of a finished run. Those in which no completion got a verdict are left out.

    Args:
        run: its folder.
        value, pilots_thrown_away: as for :func:`evaluations_of`.
    """
    found = evaluations_of(
        read_lines(run / "metrics.jsonl"),
        (value, "accuracy", "pass_at_k"),
        pilots_thrown_away=pilots_thrown_away,
    )
    totals = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return replace(found, totals=totals)


def evaluations_of(
    lines: Sequence[Record], scores: Sequence[str], *, pilots_thrown_away: bool
) -> Evaluations:
    """Return the evaluations that have all of some scores, from the lines of metrics.jsonl.

    Args:
        lines: from the first one on.
        scores: keys of the lines; the run is judged by the first.
        pilots_thrown_away: whether pilots are not trained on. They are not in mode ``pilot``; in mode
            ``cross_fit`` they are.
    """
    marked = evaluated(lines, *scores)
    steps = [line["step"] for line in marked]

    def series(key: str) -> np.ndarray:
        return np.array([finite_number(line, key) for line in marked])

    costs = {name: totals_at(lines, axis, steps) for name, axis in AXES.items()}
    costs["training_rollouts"] = costs["rollouts"] - pilots_thrown_away * series("pilot_rollouts")
    return Evaluations(
        steps=np.array(steps, dtype=np.int64),
        costs=costs,
        value=series(scores[0]),
        accuracy=series("accuracy"),
        pass_at_k=series("pass_at_k"),
        totals={},
        variances=measured_steps(lines)[:, 1:],
    )


@dataclass(frozen=True)
class Goal:
    """What is reached: a ``share`` of the way that both arms went, a fixed ``level``, or the way itself.

    The way goes from the arms' mean score before training to the lower of their smoothed final scores.
    So it is the same whichever of the arms is the reference, and both went it. Without a share and a
    level a goal stands for ``LEVELS`` scores along the way.
    """

    score: str = "value"
    share: float | None = None
    level: float | None = None

    def levels(self, reference: np.ndarray, arm: np.ndarray) -> np.ndarray:
        """Return the scores to reach, [D, L], for smoothed mean scores of both arms, [D, e] each."""
        if self.level is not None:
            return np.full((len(reference), 1), self.level)
        start = (reference[:, 0] + arm[:, 0]) / 2
        end = np.minimum(reference[:, -1], arm[:, -1])
        shares = np.linspace(LOWEST, HIGHEST, LEVELS) if self.share is None else [self.share]
        along: np.ndarray = start[:, None] + (end - start)[:, None] * np.asarray(shares)
        # An arm that ends where both began went no way.
        return np.where((end > start)[:, None], along, np.nan)


WAY = Goal()
"""The way that both arms went, by which arms are judged."""


@dataclass(frozen=True)
class MeanEvaluations:
    """Means over seeds of their evaluations, for D weightings of the seeds; float64 [D, e] each."""

    costs: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]

    def smoothed(self, score: str) -> np.ndarray:
        """Return the nearest rising curve of a score (isotonic regression), [D, e]."""
        return np.array([isotonic_regression(row).x for row in self.scores[score]])

    def costs_until(self, scores: np.ndarray, levels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the costs until scores first reach their levels; float64 [D, L], NaN if they never do.

        Between two evaluations, costs are interpolated linearly.

        Args:
            scores: [D, e], for example smoothed ones.
            levels: [D, L].
        """
        places = np.stack([_first_at(scores, level) for level in levels.T], axis=1)
        return {
            name: np.stack([_at(cost, place) for place in places.T], axis=1)
            for name, cost in self.costs.items()
        }


def shared_steps(runs: Sequence[Evaluations]) -> np.ndarray:
    """Return the steps after which all of some runs have a score, int64, in order."""
    return reduce(np.intersect1d, [run.steps for run in runs])


def mean_evaluations(
    runs: Sequence[Evaluations], weights: np.ndarray | None = None
) -> MeanEvaluations:
    """Average runs at the steps after which all of them have a score.

    An evaluation has none where no completion got a verdict.

    Args:
        runs: k runs, one for each seed.
        weights: how often each run counts, [D, k]. None counts each once, [1, k].
    """
    weights = np.ones((1, len(runs))) if weights is None else weights
    shared = shared_steps(runs)
    runs = [run.at(shared) for run in runs]

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
    """An arm compared with its reference for one goal.

    ``target``: the highest score to reach; None if there is none. ``to_target``: the arm's cost until
    then, None if it never gets there. ``speed_up``: the reference's cost over the arm's. Both are by the
    names of :data:`COSTS`. ``p_value``: of the speed-up in rollouts, under no difference; None where it
    has no interval.
    """

    target: float | None
    to_target: Mapping[str, float | None]
    speed_up: Mapping[str, Interval]
    p_value: float | None


def compare_evaluations(
    reference: Sequence[Evaluations],
    arm: Sequence[Evaluations],
    goals: Sequence[Goal] = (WAY,),
) -> list[Comparison]:
    """Compute how much less an arm spends than the reference until it reaches each goal.

    Evaluations are averaged over seeds, and scores are smoothed by isotonic regression. The speed-up is
    the reference's cost over the arm's, each the mean of the costs until the levels of a goal. It is
    symmetric: with the arms exchanged it is the inverse.

    Intervals are Student's t about the logarithm, with the jackknife's standard error: each value leaves
    out one seed of both arms. docs/comparing.md has their coverage for arms that do not differ.

    An arm that never reaches a level has no speed-up, and neither has one that begins above all.
    There is no interval if that holds without some seed, or for a single seed.

    Args:
        reference, arm: runs of the same seeds in the same order, at least one. Those of each arm share
            at least two evaluated steps.
    """
    k = len(arm)
    weights = np.concatenate([np.ones((1, k)), 1 - np.eye(k)] if k > 1 else [np.ones((1, k))])
    theirs, ours = mean_evaluations(reference, weights), mean_evaluations(arm, weights)
    return [_compared(theirs, ours, goal) for goal in goals]


def _compared(theirs: MeanEvaluations, ours: MeanEvaluations, goal: Goal) -> Comparison:
    """Compare two means: row 0 is that of all seeds, and each other row leaves one out."""
    scores = [each.smoothed(goal.score) for each in (theirs, ours)]
    levels = goal.levels(*scores)
    prices, own = (
        each.costs_until(score, levels) for each, score in zip((theirs, ours), scores, strict=True)
    )
    to_target: dict[str, float | None] = {}
    speed_up, p_values = {}, {}
    for name in COSTS:
        price, spent = prices[name].mean(1), own[name].mean(1)
        known = (price > 0) & (spent > 0)
        ratios = np.divide(price, spent, out=np.full(len(price), np.nan), where=known)
        speed_up[name], p_values[name] = _jackknife(np.log(ratios))
        last = float(own[name][0, -1])
        to_target[name] = None if np.isnan(last) else last
    aim = float(levels[0, -1])
    return Comparison(None if np.isnan(aim) else aim, to_target, speed_up, p_values["rollouts"])


def _jackknife(logs: np.ndarray) -> tuple[Interval, float | None]:
    """Return exp of logs[0] with Student's t interval, and the p-value of a logarithm of 0.

    Args:
        logs: of all seeds, and with each of the k seeds left out, [k + 1]; [1] for a single seed.
    """
    value = float(np.exp(logs[0])) if np.isfinite(logs[0]) else None
    k = len(logs) - 1
    if k < 2 or not np.isfinite(logs).all():
        return Interval(value, None, None), None
    error = jackknife_error(logs[1:])
    p_value = 2 * float(stdtr(k - 1, -abs(logs[0]) / error)) if error > 0 else float(logs[0] == 0)
    return on_log_scale(float(np.exp(logs[0])), error, k - 1), p_value


def verdicts(
    tasks: Sequence[Hashable],
    p_values: Sequence[float | None],
    speed_ups: Sequence[float | None],
) -> list[str | None]:
    """Judge arms: ``faster``, ``slower`` or ``no difference shown``; None where there is no p-value.

    Holm's correction among the arms of a task: the probability of one false verdict or more there is at
    most 5%. Other tasks do not count, so what is said of a task is the same wherever it is said.

    Args:
        tasks: what each arm learns.
        p_values, speed_ups: of each arm; None where it was not compared.
    """
    found: list[str | None] = [None if p is None else NO_DIFFERENCE for p in p_values]
    for task in dict.fromkeys(tasks):
        own = zip(tasks, p_values, range(len(p_values)), strict=True)
        known = sorted((p, i) for each, p, i in own if each == task and p is not None)
        for tried, (p, i) in enumerate(known):
            if p > 0.05 / (len(known) - tried):
                break
            found[i] = "faster" if (speed_ups[i] or 0.0) > 1 else "slower"
    return found
