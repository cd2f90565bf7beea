"""Arms of a task compared with a uniform one, by the rollouts that each needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dibs.allocation.intervals import Interval
from dibs.report.arm_names import distinct, shared_parts, trained_keys
from dibs.report.arms import Arm
from dibs.report.costs import Evaluations, compare_evaluations, evaluations_of, verdicts
from dibs.report.panels import has_score
from dibs.runs.read import Run

_TASK = ("policy.model", "policy.warm_start", "data", "verify")
"""Sections and keys that arms share if they learn the same from the same."""


@dataclass(frozen=True)
class Standing:
    """An arm beside the reference arm of its task.

    ``fewer``: the reference's rollouts over the arm's, until the scores that both reached; None for the
    reference. ``verdict``: faster, slower or no difference shown, corrected for the arms of the task;
    None for the reference, and where there is no interval.
    """

    arm: Arm
    reference: Arm
    fewer: Interval | None
    verdict: str | None

    @property
    def value(self) -> float | None:
        """How many times fewer rollouts the arm needs; None if that is unknown."""
        return None if self.fewer is None else self.fewer.value


@dataclass(frozen=True)
class Task:
    """Arms that learn the same task, compared by a score, which is a key of metrics.jsonl."""

    standings: Sequence[Standing]
    score: str

    @property
    def corrected_for(self) -> int:
        """Comparisons that the verdicts are corrected for."""
        return sum(each.verdict is not None for each in self.standings)

    @property
    def arms(self) -> Sequence[Arm]:
        """The arms, in order."""
        return [each.arm for each in self.standings]

    @property
    def name(self) -> str:
        """What the names of its arms begin with; the name of its only arm; or else its prompts."""
        shared = shared_parts([arm.name for arm in self.arms])
        return ", ".join(shared) or str(self.arms[0].runs[0].setting("data.train"))

    @property
    def equal_updates(self) -> bool:
        """Whether its arms are configured to make equally many optimizer updates."""
        keys = ("update.updates_per_step", "train.steps")
        return distinct([[arm.runs[0].setting(key) for key in keys] for arm in self.arms]) == 1

    def short(self, arm: Arm) -> str:
        """The name of an arm among those of its task."""
        shared = shared_parts([each.name for each in self.arms])
        return ", ".join(arm.name[len(shared) :]) or arm.label


def tasks_of(arms: Sequence[Arm]) -> list[Task]:
    """Group arms by what they learn, and compare those of each task with a uniform one.

    Verdicts are corrected for the comparisons of a task. They are those of ``dibs compare`` where its
    study has one algorithm a task and the same reference.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(_task_key(arm), []).append(arm)
    compared = [_compared(group) for group in groups.values()]
    flat = [row for rows, _ in compared for row in rows]
    numbers = [number for number, (rows, _) in enumerate(compared) for _ in rows]
    values = [None if fewer is None else fewer.value for _, _, fewer, _ in flat]
    judged = verdicts(numbers, [p_value for *_, p_value in flat], values)
    standings = iter(
        Standing(arm, reference, fewer, verdict)
        for (arm, reference, fewer, _), verdict in zip(flat, judged, strict=True)
    )
    return [Task([next(standings) for _ in rows], score) for rows, score in compared]


def _compared(
    arms: Sequence[Arm],
) -> tuple[list[tuple[Arm, Arm, Interval | None, float | None]], str]:
    """Return a row for each arm, and the score that decides.

    A row holds the arm, its reference, how many times fewer rollouts it needs, and the p-value.
    """
    reference = _reference(arms)
    fits = all(_objective(arm) == "log_likelihood" for arm in arms)
    score = "log_accept_rate" if fits and has_score(arms, "log_accept_rate") else "accuracy"
    rows = [
        (arm, reference, *((None, None) if arm is reference else _fewer(reference, arm, score)))
        for arm in arms
    ]
    return rows, score


def _fewer(reference: Arm, arm: Arm, score: str) -> tuple[Interval, float | None]:
    """Return how many times fewer rollouts an arm needs, and the p-value, by the seeds of both."""
    theirs, ours = (
        {str(run.setting("seed")): run for run in each.runs} for each in (reference, arm)
    )
    both = [(theirs[seed], ours[seed]) for seed in theirs if seed in ours]
    pairs = [
        (_evaluations(one, score), _evaluations(other, score))
        for one, other in both or zip(reference.runs, arm.runs)  # noqa: B905
    ]
    if not all(_share_steps([pair[side] for pair in pairs]) for side in (0, 1)):
        return Interval(None, None, None), None
    (found,) = compare_evaluations([one for one, _ in pairs], [other for _, other in pairs])
    return found.speed_up["rollouts"], found.p_value


def _evaluations(run: Run, score: str) -> Evaluations:
    thrown_away = run.setting("estimate.mode") == "pilot"
    return evaluations_of(run.metrics, (score,), pilots_thrown_away=thrown_away)


def _share_steps(runs: Sequence[Evaluations]) -> bool:
    return len(set.intersection(*(set(run.steps.tolist()) for run in runs))) > 1


def _reference(arms: Sequence[Arm]) -> Arm:
    """Return the arm that others are compared with.

    It is one of fixed batches and uniform counts: that named uniform, or else that with the most
    completions of a prompt, as people run it. Where there is none, it is the first.
    """
    plain = [arm for arm in arms if _is_uniform(arm.runs[0])]
    named = [arm for arm in plain if arm.name[-1] == "uniform"]
    return max(named or plain or arms[:1], key=_completions)


def _is_uniform(run: Run) -> bool:
    decided = ("select.pool", "allocate.rounds", "allocate.keep")
    uniform = run.setting("allocate.allocator") == "uniform"
    return uniform and all(run.setting(key) is None for key in decided)


def _completions(arm: Arm) -> float:
    given = arm.runs[0].setting("allocate.num_generations")
    return given if isinstance(given, int | float) else 0


def _objective(arm: Arm) -> object:
    return arm.runs[0].setting("algorithm.objective")


def _task_key(arm: Arm) -> str:
    shared = {
        key: value
        for key, value in trained_keys(arm.runs[0].config).items()
        if any(key == each or key.startswith(f"{each}.") for each in _TASK)
    }
    return json.dumps(shared, sort_keys=True, default=str)
