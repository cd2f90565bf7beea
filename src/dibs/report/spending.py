"""Where the budget of a run went: pilots, groups that were all alike, groups with both outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dibs.runs.read import Record, Run, finite_number

PARTS = (
    "groups with both outcomes",
    "groups all accepted",
    "groups all rejected",
    "pilots, thrown away",
)
"""What a rollout was spent on. Groups that are all alike teach nothing where a baseline is subtracted;
without one, accepted completions teach whatever their group is."""


@dataclass(frozen=True)
class Spending:
    """Of the steps [steps]: rollouts by :data:`PARTS`, [4, steps], and rollouts learned from, [steps].

    Learned from: with an advantage other than 0.
    """

    steps: np.ndarray
    parts: np.ndarray
    learned: np.ndarray


def spending(run: Run) -> Spending:
    """Where the rollouts of every step went, as far as allocations.jsonl tells.

    A group is what its judged completions are; those that were asked of it and are not among them are
    counted with it. Of lines without ``judged``, which dibs did not always write, all count as judged.
    A group of which nothing was judged stands with those all rejected. Pilots that decided the counts
    of several steps stand at the step they were drawn in.
    """
    thrown = run.setting("estimate.mode") in (None, "pilot")
    pilots = dict(_increments(run.metrics, "pilot_rollouts")) if thrown else {}
    learned = {line["step"]: np.nan_to_num(finite_number(line, "learned")) for line in run.metrics}
    steps, columns = [], []
    for line in run.allocations:
        count, accepted = np.array(line["count"]), np.array(line["accepted"])
        judged = np.array(line.get("judged", line["count"]))
        step = line["step"]
        none, all_ = accepted == 0, (accepted >= judged) & (accepted > 0)
        groups = [count[~none & ~all_].sum(), count[all_].sum(), count[none].sum()]
        steps.append(step)
        columns.append([*groups, pilots.get(step, 0.0)])
    parts = np.array(columns, dtype=np.float64).reshape(-1, len(PARTS)).T
    return Spending(np.array(steps), parts, np.array([learned.get(s, 0.0) for s in steps]))


def total_spending(runs: Sequence[Run]) -> tuple[np.ndarray, float]:
    """Rollouts by :data:`PARTS`, and rollouts learned from: sums over the steps, means over the runs."""
    found = [spending(run) for run in runs]
    parts = np.mean([each.parts.sum(axis=1) for each in found], axis=0)
    return parts, float(np.mean([each.learned.sum() for each in found]))


def mean_spending(runs: Sequence[Run]) -> Spending:
    """The spending of runs of one arm: means over those that have reached each step."""
    found = [spending(run) for run in runs]
    steps = np.unique(np.concatenate([each.steps for each in found])).astype(np.int64)
    parts, learned = [], []
    for step in steps:
        here = [(each, np.flatnonzero(each.steps == step)) for each in found]
        parts.append(np.mean([e.parts[:, at[0]] for e, at in here if len(at)], axis=0))
        learned.append(np.mean([e.learned[at[0]] for e, at in here if len(at)]))
    stacked = np.array(parts).reshape(-1, len(PARTS)).T
    return Spending(steps, stacked, np.array(learned))


def _increments(lines: Sequence[Record], key: str) -> list[tuple[int, float]]:
    totals = np.nan_to_num([finite_number(line, key) for line in lines])
    return [
        (line["step"], float(more))
        for line, more in zip(lines, np.diff(totals, prepend=0.0), strict=True)
    ]
