"""A step's gradient as the mean of streams: which completions decide the counts of which.

If counts depended on the samples that enter the gradient, it would be biased. Three honest ways:

``pilot``
    Fresh completions are thrown away once they have decided the counts.
``cross_fit``
    Each half of them decides the counts of a stream that the other half enters; the gradient is the
    mean of the two streams, and nothing is thrown away. Baselines are over both halves: given those
    that decided a stream's counts, its completions are independent of them, so it is as if its groups
    were larger.
``online``
    Completions of earlier steps decide the counts (``history``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dibs.allocation.posterior import expected_tokens
from dibs.allocation.problem import AllocationProblem, pose
from dibs.allocation.statistics import pilot_statistics
from dibs.config import Config
from dibs.types import Allocation, Group, Prompt, PromptStats, Rollout

_Sliceable = TypeVar("_Sliceable", tuple[Rollout, ...], np.ndarray)


@dataclass(frozen=True)
class GradientPart:
    """A share of a step's gradient: the mean of its streams is the step's.

    ``stats`` decide its counts. ``given``: completions that enter it and were drawn before, a group a
    prompt; the counts must not depend on them, so ``stats`` come from others. ``beside``: completions
    that enter its baselines only.
    """

    stats: PromptStats
    reused: Sequence[Group]
    baseline_only: Sequence[Group]

    @property
    def reused_counts(self) -> np.ndarray:
        """How many completions of each prompt were given, int64 [m]."""
        return np.array([len(group.rollouts) for group in self.reused], dtype=np.int64)


@dataclass(frozen=True)
class StepEstimate:
    """``stats``: all that is known of a step's prompts; ``streams``: what decides which counts."""

    stats: PromptStats
    parts: Sequence[GradientPart]


def undivided(stats: PromptStats, prompts: Sequence[Prompt]) -> StepEstimate:
    """Statistics that decide all counts, from completions that do not enter the gradient."""
    nothing = [Group(prompt, ()) for prompt in prompts]
    return StepEstimate(stats, [GradientPart(stats, nothing, nothing)])


def cross_fit(groups: Sequence[Group], grad_norms: Sequence[np.ndarray]) -> StepEstimate:
    """Two streams from pilot groups: what one half of a group tells, the other half enters.

    Args:
        groups: pilot rollouts of each prompt, at least two each.
        grad_norms: as for :func:`pilot_statistics`.
    """
    cuts = [len(group.rollouts) // 2 for group in groups]

    def halves(values: Sequence[_Sliceable]) -> tuple[list[_Sliceable], list[_Sliceable]]:
        pairs = [(v[:cut], v[cut:]) for v, cut in zip(values, cuts, strict=True)]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    first, second = (
        [Group(g.prompt, part) for g, part in zip(groups, half, strict=True)]
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


def step_budget(config: Config, cost: np.ndarray | None) -> float:
    """The budget of a step, in completions, or in tokens where completions cost those, [m]."""
    if cost is None:
        assert config.budget is not None
        return float(config.budget)
    options = config.allocate
    return float(options.num_generations * cost.sum() if options.budget is None else options.budget)


def allocation_problems(streams: Sequence[GradientPart], config: Config) -> list[AllocationProblem]:
    """The allocation problem of every stream: an equal part of the step's budget and bounds.

    What a stream was given counts as spent: it is the least that a prompt can have. A budget of tokens
    is raised to what the lower bounds cost.
    """
    options, algorithm = config.allocate, config.algorithm

    def part(total: int, index: int) -> int:
        return total // len(streams) + (index < total % len(streams))

    lower = [np.maximum(part(options.lower, i), s.reused_counts) for i, s in enumerate(streams)]
    upper = [None if options.upper is None else part(options.upper, i) for i in range(len(streams))]
    costs: list[np.ndarray | None] = [None] * len(streams)
    if options.budget_unit == "completions":
        budgets = _divided(int(step_budget(config, None)), lower, upper)
    else:
        longest = config.sampling.max_completion_length
        tokens = [expected_tokens(stream.stats, otherwise=longest) for stream in streams]
        costs = [*tokens]
        budgets = [
            max(step_budget(config, cost) / len(streams), float(low @ cost))
            for cost, low in zip(tokens, lower, strict=True)
        ]
    return [
        pose(
            stream.stats,
            budget,
            cost=cost,
            lower=low,
            upper=high,
            objective=algorithm.objective,
            baseline=algorithm.baseline,
            accept_rate_penalty=options.accept_rate_penalty,
            accept_rate_power=options.accept_rate_power,
        )
        for stream, budget, cost, low, high in zip(
            streams, budgets, costs, lower, upper, strict=True
        )
    ]


def _divided(budget: int, lower: Sequence[np.ndarray], upper: Sequence[int | None]) -> list[float]:
    """A budget in parts as equal as the bounds of each part allow."""
    least = [int(low.sum()) for low in lower]
    most = [
        budget if high is None else high * len(low) for low, high in zip(lower, upper, strict=True)
    ]
    parts: list[int] = []
    for i in range(len(lower)):
        left = budget - sum(parts)
        even = -(-left // (len(lower) - i))
        low = max(least[i], left - sum(most[i + 1 :]))
        high = min(most[i], left - sum(least[i + 1 :]))
        parts.append(min(max(even, low), high))
    return [float(each) for each in parts]


def missing_counts(
    allocations: Sequence[Allocation], streams: Sequence[GradientPart]
) -> list[np.ndarray]:
    """Completions that every stream still needs of each prompt, int64 [m] a stream."""
    return [
        allocation.counts - stream.reused_counts
        for allocation, stream in zip(allocations, streams, strict=True)
    ]


def assign_rollouts(
    fresh: Sequence[Group], missing: Sequence[np.ndarray], streams: Sequence[GradientPart]
) -> list[list[Group]]:
    """The groups of every stream: what it was given, and its share of the fresh rollouts."""
    dealt = []
    start = np.zeros(len(fresh), dtype=np.int64)
    rest = list(fresh)
    for stream, counts in zip(streams, missing, strict=True):
        parts = [
            replace(group, rollouts=group.rollouts[first : first + count])
            for group, first, count in zip(rest, start, counts, strict=True)
        ]
        dealt.append([Group.merged(pair) for pair in zip(stream.reused, parts, strict=True)])
        start = start + counts
        # Completions without a verdict are counted once.
        rest = [replace(group, unreached=()) for group in rest]
    return dealt
