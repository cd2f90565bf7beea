"""A step's gradient as the mean of parts: which completions decide the counts of which.

If counts depended on the samples that enter the gradient, it would be biased. Three honest ways:

``pilot``
    Fresh completions are thrown away once they have decided the counts.
``cross_fit``
    Each half of the pilots decides the counts of a part that the other half enters. The gradient is the
    mean of the two parts, and nothing is thrown away. Baselines are over both halves. The completions of
    a part are independent of the half that decided its counts, so that half acts on its baselines as if
    the groups were larger.
``online``
    Completions of earlier steps decide the counts (``history``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dibs.allocation.posterior import expected_tokens
from dibs.allocation.problem import AllocationProblem, Bounds, Penalty, Tokens, pose
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.config import Config
from dibs.types import Allocation, Group, Prompt, PromptStats, Rollout

_Sliceable = TypeVar("_Sliceable", tuple[Rollout, ...], np.ndarray)


@dataclass(frozen=True)
class GradientPart:
    """A part of a step's gradient, which is the mean of its parts.

    ``stats`` decide the part's counts. ``reused``: completions that enter it and were drawn before, a
    group a prompt. The counts must not depend on them, so ``stats`` come from others.
    ``baseline_only``: completions that enter its baselines only, a group a prompt. ``shares``: what the
    weights of each prompt's completions add up to, [m]; None: 1/m each.
    """

    stats: PromptStats
    reused: Sequence[Group]
    baseline_only: Sequence[Group]
    shares: np.ndarray | None = None

    @property
    def reused_counts(self) -> np.ndarray:
        """How many completions of each prompt are reused, int64 [m]."""
        return np.array([len(group.rollouts) for group in self.reused], dtype=np.int64)


@dataclass(frozen=True)
class StepEstimate:
    """What is known of the prompts of a step, or of a pool that they are drawn from.

    ``stats``: all of it. ``parts``: those of the step's gradient. ``rows``: which row of the statistics
    each prompt has, int64 [N]; None: prompts have a row each, in order.
    """

    stats: PromptStats
    parts: Sequence[GradientPart]
    rows: np.ndarray | None = None

    def mean(self, values: np.ndarray) -> float:
        """Mean over prompts of values that the rows have."""
        return float((values if self.rows is None else values[self.rows]).mean())


def undivided(stats: PromptStats, prompts: Sequence[Prompt]) -> StepEstimate:
    """Statistics that decide all counts, from completions that do not enter the gradient."""
    nothing = [Group(prompt, ()) for prompt in prompts]
    return StepEstimate(stats, [GradientPart(stats, nothing, nothing)])


def pooled(stats: PromptStats, rows: np.ndarray) -> StepEstimate:
    """Statistics that decide all counts of a pool, whose prompts share rows of them."""
    return StepEstimate(stats, [GradientPart(stats, (), ())], rows)


def cross_fit(groups: Sequence[Group], grad_norms: Sequence[np.ndarray]) -> StepEstimate:
    """Two parts from pilot groups: one half of a group decides counts, and the other half enters.

    Args:
        groups: pilot rollouts of each prompt, at least two each.
        grad_norms: as for :func:`pilot_statistics`.
    """
    cuts = [len(group.rollouts) // 2 for group in groups]

    def halves(values: Sequence[_Sliceable]) -> tuple[list[_Sliceable], list[_Sliceable]]:
        pairs = [(v[:cut], v[cut:]) for v, cut in zip(values, cuts, strict=True)]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    first, second = (
        [Group(g.prompt, own) for g, own in zip(groups, half, strict=True)]
        for half in halves([group.rollouts for group in groups])
    )
    norms = halves(grad_norms)
    return StepEstimate(
        pilot_statistics(groups, grad_norms),
        [
            GradientPart(pilot_statistics(first, norms[0]), reused=second, baseline_only=first),
            GradientPart(pilot_statistics(second, norms[1]), reused=first, baseline_only=second),
        ],
    )


def allocation_problems(
    estimate: StepEstimate, config: Config, reading: np.ndarray | None = None
) -> list[AllocationProblem]:
    """The allocation problem of every part: an equal share of the step's budget and bounds.

    Reused completions count as spent, so their number is the least that a prompt can have, and so is the
    order of the target in a fixed batch. A budget of tokens is raised to what the lower bounds cost.

    Args:
        reading: with a budget of tokens over a pool, what reading a prompt of each row of the statistics
            costs, in tokens, [k]; None: nothing.
    """
    options, target, parts = config.allocate, Target.of(config.algorithm), estimate.parts
    fixed = config.fixed_batch
    if config.chooses and not any(part.reused for part in parts):
        target = target.of_groups(config.group)

    def share(total: int, index: int) -> int:
        return total // len(parts) + (index < total % len(parts))

    least = target.least_count if fixed else 0
    lower = [
        np.maximum(max(share(options.lower, i), least), part.reused_counts)
        if len(part.reused)
        else np.full(len(part.stats), max(share(options.lower, i), least))
        for i, part in enumerate(parts)
    ]
    upper = [None if options.upper is None else share(options.upper, i) for i in range(len(parts))]
    return [
        pose(
            part.stats,
            budget,
            target,
            bounds=Bounds(low, high, every_prompt=fixed),
            penalty=Penalty(options.accept_rate_penalty, options.accept_rate_power),
        )
        for part, budget, low, high in zip(
            parts, _budgets(estimate, config, lower, upper, reading), lower, upper, strict=True
        )
    ]


def _budgets(
    estimate: StepEstimate,
    config: Config,
    lower: Sequence[np.ndarray],
    upper: Sequence[int | None],
    reading: np.ndarray | None,
) -> Sequence[float | Tokens]:
    """The budget of every part, in the unit of the step's."""
    parts, fixed = estimate.parts, config.fixed_batch
    if config.budget is not None:
        return (
            _divided(config.budget, lower, upper)
            if fixed
            else [config.budget // len(parts)] * len(parts)
        )
    longest, m = config.sampling.max_completion_length, config.train.prompts_per_step
    costs = [expected_tokens(part.stats, otherwise=longest) for part in parts]
    # One completion of every prompt of a batch; of a pool, of as many prompts of mean length.
    once = [float(cost.sum() if fixed else m * estimate.mean(cost)) for cost in costs]
    totals = [config.step_budget(each) / len(parts) for each in once]
    if reading is not None:
        # Every prompt that is drawn is read once for each of its groups.
        costs = [cost + reading / config.group for cost in costs]
        if config.allocate.budget is None:
            totals = [total + m * estimate.mean(reading) / len(parts) for total in totals]
    return [
        Tokens(max(total, float(low @ cost)), cost)
        for total, cost, low in zip(totals, costs, lower, strict=True)
    ]


def _divided(budget: int, lower: Sequence[np.ndarray], upper: Sequence[int | None]) -> list[float]:
    """A budget of completions in shares as equal as the bounds of each part allow."""
    least = [int(low.sum()) for low in lower]
    most = [
        budget if high is None else high * len(low) for low, high in zip(lower, upper, strict=True)
    ]
    shares: list[int] = []
    for i in range(len(lower)):
        left = budget - sum(shares)
        even = -(-left // (len(lower) - i))
        low = max(least[i], left - sum(most[i + 1 :]))
        high = min(most[i], left - sum(least[i + 1 :]))
        shares.append(min(max(even, low), high))
    return [float(each) for each in shares]


def missing_counts(
    allocations: Sequence[Allocation], parts: Sequence[GradientPart]
) -> list[np.ndarray]:
    """Completions that every part still needs of each prompt, int64 [m] a part."""
    return [
        allocation.counts - part.reused_counts
        for allocation, part in zip(allocations, parts, strict=True)
    ]


def assign_rollouts(
    fresh: Sequence[Group], missing: Sequence[np.ndarray], parts: Sequence[GradientPart]
) -> list[list[Group]]:
    """The groups of every part: its reused completions, and its share of the fresh ones."""
    dealt = []
    start = np.zeros(len(fresh), dtype=np.int64)
    rest = list(fresh)
    for part, counts in zip(parts, missing, strict=True):
        shares = [
            replace(group, rollouts=group.rollouts[first : first + count])
            for group, first, count in zip(rest, start, counts, strict=True)
        ]
        dealt.append([Group.merged(pair) for pair in zip(part.reused, shares, strict=True)])
        start = start + counts
        # Completions without a verdict are counted once.
        rest = [replace(group, unreached=()) for group in rest]
    return dealt
