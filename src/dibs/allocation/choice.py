"""What a step samples: which prompts, how many completions of each, and what they weigh.

Without a pool all prompts of a batch are trained on, and an allocator decides their counts. From a pool,
prompts and counts are chosen together (:mod:`.pool`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from dibs.allocation.allocators import describe, solve
from dibs.allocation.cross_fit import GradientPart, StepEstimate, allocation_problems
from dibs.allocation.pool import describe_pool, pool_counts
from dibs.allocation.problem import AllocationProblem
from dibs.allocation.prompt_weights import curverl_weights
from dibs.config import Config
from dibs.types import Allocation, Group, Prompt, PromptStats

_ROUNDING = 7
"""Part of the seed of what is rounded at random, so that nothing else draws the same numbers."""


@dataclass(frozen=True)
class Choice:
    """The m prompts of a step and their counts.

    ``stats``: all that was known of them. ``parts``, ``problems``, ``allocations``: of each part of the
    gradient. ``metrics``: what is expected of the choice.
    """

    prompts: Sequence[Prompt]
    stats: PromptStats
    parts: Sequence[GradientPart]
    problems: Sequence[AllocationProblem]
    allocations: Sequence[Allocation]
    metrics: Mapping[str, Any]

    @property
    def allocation(self) -> Allocation:
        """The counts of the whole step."""
        expected = [each.expected for each in self.allocations if each.expected is not None]
        return replace(
            self.allocations[0],
            counts=np.sum([each.counts for each in self.allocations], axis=0),
            expected=np.sum(expected, axis=0) if expected else None,
        )

    def restricted(
        self, rows: np.ndarray, counts: np.ndarray, shares: np.ndarray, metrics: Mapping[str, Any]
    ) -> Choice:
        """Some of the prompts, by their positions, with other counts and weights; of one part.

        Args:
            counts: of these prompts. shares: what the weights of each prompt's completions add up to.
        """
        prompts = [self.prompts[i] for i in rows.tolist()]
        names = [prompt.prompt_id for prompt in prompts]
        nothing = [Group(prompt, ()) for prompt in prompts]
        stats = self.stats.take(rows, names)
        return Choice(
            prompts,
            stats,
            [GradientPart(stats, nothing, nothing, shares)],
            [problem.restricted(rows, names) for problem in self.problems],
            [Allocation(names, counts, self.allocations[0].allocator)],
            {**self.metrics, **metrics},
        )


def choose(prompts: Sequence[Prompt], estimate: StepEstimate, config: Config, step: int) -> Choice:
    """Choose what a step samples, by what is known of the prompts of its batch or pool.

    The same in every process, and in a run that was resumed: what is random depends on the seed and the
    step alone.
    """
    problems = allocation_problems(estimate, config, _reading(prompts, estimate, config))
    if config.allocate.rounds is not None:
        return _candidates(prompts, estimate, problems, config.allocate.rounds)
    prompt_weights = [_prompt_weights(problem, estimate, config) for problem in problems]
    if not config.chooses:
        allocations = [solve(problem, config.allocate.allocator) for problem in problems]
        metrics = describe(problems, allocations)
        parts = [
            replace(part, shares=None if weights is None else weights / len(prompts))
            for part, weights in zip(estimate.parts, prompt_weights, strict=True)
        ]
        return Choice(prompts, estimate.stats, parts, problems, allocations, metrics)
    rows = np.arange(len(prompts)) if estimate.rows is None else estimate.rows
    found = [
        pool_counts(
            problem,
            rows,
            config.allocate.allocator,
            group=config.group,
            uniform_share=config.select.uniform_share,
            rng=np.random.default_rng([config.seed, step, part, _ROUNDING]),
            correct=config.select.correct,
        )
        for part, problem in enumerate(problems)
    ]
    drawn = np.flatnonzero(reduce(np.logical_or, [each.counts > 0 for each in found]))
    chosen = [prompts[i] for i in drawn.tolist()]
    names = [prompt.prompt_id for prompt in chosen]
    nothing = [Group(prompt, ()) for prompt in chosen]

    def of_drawn(groups: Sequence[Group]) -> Sequence[Group]:
        return [groups[i] for i in drawn.tolist()] if groups else nothing

    return Choice(
        chosen,
        estimate.stats.take(rows[drawn], names),
        [
            GradientPart(
                part.stats.take(rows[drawn], names),
                of_drawn(part.reused),
                of_drawn(part.baseline_only),
                own.shares[drawn] if weights is None else (own.shares * weights)[drawn],
            )
            for part, own, weights in zip(estimate.parts, found, prompt_weights, strict=True)
        ],
        [problem.restricted(rows[drawn], names) for problem in problems],
        [
            Allocation(names, own.counts[drawn], config.allocate.allocator, own.expected[drawn])
            for own in found
        ],
        describe_pool(found, config.allocate.allocator),
    )


def _candidates(
    prompts: Sequence[Prompt],
    estimate: StepEstimate,
    problems: Sequence[AllocationProblem],
    rule: str,
) -> Choice:
    """All prompts, with no completions yet: a rule for rounds decides them as it draws."""
    names = [prompt.prompt_id for prompt in prompts]
    none_yet = Allocation(names, np.zeros(len(prompts), dtype=np.int64), rule)
    unknown = {"expected_gain": None, "achievable_gain": None, "allocation_note": None}
    return Choice(prompts, estimate.stats, estimate.parts, problems, [none_yet], unknown)


def _prompt_weights(
    problem: AllocationProblem, estimate: StepEstimate, config: Config
) -> np.ndarray | None:
    """How much each prompt counts in the objective, [N]; None: all alike."""
    if config.algorithm.prompt_weight == "none":
        return None
    rate = problem.posterior.accept_rate
    rate = rate if estimate.rows is None else rate[estimate.rows]
    return curverl_weights(rate, config.allocate.num_generations + 1)


def _reading(
    prompts: Sequence[Prompt], estimate: StepEstimate, config: Config
) -> np.ndarray | None:
    """What reading a prompt of each row of the statistics costs on average, in tokens written, [k]."""
    if config.allocate.prompt_cost == 0:
        return None
    lengths = np.array([len(prompt.token_ids) for prompt in prompts], dtype=np.float64)
    if estimate.rows is not None:
        k = len(estimate.stats)
        lengths = np.bincount(estimate.rows, lengths, k) / np.bincount(estimate.rows, minlength=k)
    return config.allocate.prompt_cost * lengths
