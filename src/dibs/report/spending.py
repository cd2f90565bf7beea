"""What a run spent its rollouts on: pilots, and groups by whether completions were accepted."""

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
"""What a rollout was spent on. If a baseline is subtracted, a group that is all accepted or all rejected
has no gradient. Without a baseline, every accepted completion has one."""


@dataclass(frozen=True)
class Spending:
    """Rollouts of each step.

    ``steps``: int64 [steps]. ``parts``: rollouts by :data:`PARTS`, float64 [4, steps]. ``learned``:
    rollouts with an advantage other than 0, float64 [steps].
    """

    steps: np.ndarray
    parts: np.ndarray
    learned: np.ndarray


def spending(run: Run) -> Spending:
    """Compute what the rollouts of every step of allocations.jsonl were spent on.

    The judged completions of a group decide its part, and the group's whole count goes there. A line
    without ``judged`` counts all completions as judged. A group without a judged completion counts as
    all rejected. Pilots count at the step that drew them, even if they decide the counts of several.
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
    """Return rollouts by :data:`PARTS` and those learned from: sums over steps, means over runs."""
    found = [spending(run) for run in runs]
    parts = np.mean([each.parts.sum(axis=1) for each in found], axis=0)
    return parts, float(np.mean([each.learned.sum() for each in found]))


def mean_spending(runs: Sequence[Run]) -> Spending:
    """Return the spending of an arm: at each step, the mean over the runs that have reached it."""
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
    """Return by how much each step raised a total; unknown totals count as 0."""
    totals = np.nan_to_num([finite_number(line, key) for line in lines])
    return [
        (line["step"], float(more))
        for line, more in zip(lines, np.diff(totals, prepend=0.0), strict=True)
    ]
