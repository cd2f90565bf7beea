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
    ``baseline_only``: completions that enter its baselines only, a group a prompt.
    """

    stats: PromptStats
    reused: Sequence[Group]
    baseline_only: Sequence[Group]

    @property
    def reused_counts(self) -> np.ndarray:
        """How many completions of each prompt are reused, int64 [m]."""
        return np.array([len(group.rollouts) for group in self.reused], dtype=np.int64)


@dataclass(frozen=True)
class StepEstimate:
    """``stats``: all that is known of a step's prompts; ``parts``: those of its gradient."""

    stats: PromptStats
    parts: Sequence[GradientPart]


def undivided(stats: PromptStats, prompts: Sequence[Prompt]) -> StepEstimate:
    """Statistics that decide all counts, from completions that do not enter the gradient."""
    nothing = [Group(prompt, ()) for prompt in prompts]
    return StepEstimate(stats, [GradientPart(stats, nothing, nothing)])


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


def allocation_problems(parts: Sequence[GradientPart], config: Config) -> list[AllocationProblem]:
    """The allocation problem of every part: an equal share of the step's budget and bounds.

    Reused completions count as spent, so their number is the least that a prompt can have, and so is the
    target's order. A budget of tokens is raised to what the lower bounds cost.
    """
    options, target = config.allocate, Target.of(config.algorithm)

    def share(total: int, index: int) -> int:
        return total // len(parts) + (index < total % len(parts))

    lower = [
        np.maximum(max(share(options.lower, i), target.least_count), part.reused_counts)
        for i, part in enumerate(parts)
    ]
    upper = [None if options.upper is None else share(options.upper, i) for i in range(len(parts))]
    return [
        pose(
            part.stats,
            budget,
            target,
            bounds=Bounds(low, high),
            penalty=Penalty(options.accept_rate_penalty, options.accept_rate_power),
        )
        for part, budget, low, high in zip(
            parts, _budgets(parts, config, lower, upper), lower, upper, strict=True
        )
    ]


def _budgets(
    parts: Sequence[GradientPart],
    config: Config,
    lower: Sequence[np.ndarray],
    upper: Sequence[int | None],
) -> Sequence[float | Tokens]:
    """The budget of every part, in the unit of the step's."""
    if config.budget is not None:
        return _divided(config.budget, lower, upper)
    longest = config.sampling.max_completion_length
    costs = [expected_tokens(part.stats, otherwise=longest) for part in parts]
    return [
        Tokens(max(config.step_budget(float(cost.sum())) / len(parts), float(low @ cost)), cost)
        for cost, low in zip(costs, lower, strict=True)
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
