"""Counts over a pool of prompts: expected ones from what is known, whole ones at random.

Statistics may be shared: all prompts of which nothing is known have one row. So a pool of a million
prompts costs little more than those of them that were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dibs.allocation import rules
from dibs.allocation.allocators import POWERS
from dibs.allocation.fractional import expected_counts, round_at_random
from dibs.allocation.problem import AllocationProblem
from dibs.allocation.proportional import fill


@dataclass(frozen=True)
class PoolCounts:
    """Completions of each of the N prompts of a pool.

    ``expected``: ``e_i``, above 0, float64 [N]. ``counts``: ``n_i`` at random with that expectation,
    int64 [N]. ``expected_gain``: variance expected of uniform expected counts over that of ``expected``.
    ``achievable_gain``: the same of the counts that would be best if all beliefs were true. ``correct``:
    whether weights undo the choice.
    """

    expected: np.ndarray
    counts: np.ndarray
    expected_gain: float
    achievable_gain: float
    correct: bool = True

    @property
    def largest_weight(self) -> float:
        """Of a completion, over that under uniform counts."""
        return float(self.expected.mean() / self.expected.min()) if self.correct else 1.0

    @property
    def shares(self) -> np.ndarray:
        """What the weights of each prompt's completions add up to, [N].

        ``n_i / (N e_i)``, or where the choice is not corrected, the prompt's share of the completions.
        """
        once = len(self.counts) * self.expected if self.correct else self.counts.sum()
        shares: np.ndarray = self.counts / once
        return shares


def pool_counts(
    problem: AllocationProblem,
    rows: np.ndarray,
    allocator: str,
    *,
    group: int,
    uniform_share: float,
    rng: np.random.Generator,
    correct: bool = True,
) -> PoolCounts:
    """Decide how many completions each prompt of a pool gets.

    Args:
        problem: of k rows of statistics; lower bounds are completions that its prompts have already.
        rows: which of them each of the N prompts has, int64 [N].
        allocator: ``min_variance``, which takes only counts that are surely better, one of ``rules``, or
            a user's ``module:function`` for weights.
        group: completions that a prompt gets at a time, beyond the lower bound.
        uniform_share: of a uniform count, expected of every prompt at least; in (0, 1].
        correct: whether what is drawn seldom weighs more.
    """
    shared = not np.array_equal(rows, np.arange(len(problem.stats)))
    if shared and allocator not in ("min_variance", "uniform"):
        # A rule may draw at random, or rank the prompts, so each has a row of its own.
        problem = problem.restricted(rows, [str(i) for i in range(len(rows))])
        rows = np.arange(len(rows))
    multiplicity = np.bincount(rows, minlength=len(problem.stats)).astype(np.float64)
    chosen, gain, achievable = expected_of_rows(
        problem, multiplicity, allocator, uniform_share, rng
    )
    drawn = round_at_random(((chosen - problem.lower) / group)[rows], rng)
    counts = problem.lower[rows] + group * drawn
    return PoolCounts(chosen[rows], counts, gain, achievable, correct)


def expected_of_rows(
    problem: AllocationProblem,
    multiplicity: np.ndarray,
    allocator: str,
    uniform_share: float,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, float, float]:
    """Expected counts of k rows, their expected gain and the achievable one; see :func:`pool_counts`.

    ``multiplicity``: prompts that have each row, [k].
    """
    even = _even(problem, multiplicity)
    if allocator == "uniform":
        return even, 1.0, 1.0
    floor = np.maximum(problem.lower, uniform_share * even.min())

    def in_proportion(sigma: np.ndarray) -> np.ndarray:
        return expected_counts(sigma, problem.budget, problem.cost, floor, multiplicity)

    believed = problem.sigma**2 * multiplicity

    def gained(expected: np.ndarray) -> float:
        return float((believed / even).sum() / (believed / expected).sum())

    candidates = [in_proportion(problem.sigma**power) for power in POWERS]
    achievable = max(map(gained, candidates))
    if allocator != "min_variance":
        weights = np.maximum(rules.weights_of(allocator, problem, rng), 1e-200)
        unlimited = np.full(len(weights), np.inf)
        chosen = fill(weights, problem.budget, floor, unlimited, problem.cost * multiplicity)
        return chosen, gained(chosen), achievable
    doubts = problem.doubts**2 * multiplicity
    worst = [float(((doubts / even).sum(1) / (doubts / e).sum(1)).min()) for e in candidates]
    best = candidates[int(np.argmax(worst))]
    return (best, gained(best), achievable) if max(worst) > 1 else (even, 1.0, achievable)


def describe_pool(found: Sequence[PoolCounts], allocator: str) -> dict[str, Any]:
    """What is expected of the counts of each part of a step, for the metrics.

    ``largest_weight``: of a completion, over that under uniform counts.
    """
    achievable = float(np.mean([each.achievable_gain for each in found]))
    gain = float(np.mean([each.expected_gain for each in found]))
    note = None
    if allocator == "min_variance" and gain == 1:
        note = f"uniform: an expected gain of {achievable:.3f} is not sure, or there is none"
    return {
        "expected_gain": gain,
        "achievable_gain": achievable,
        "allocation_note": note,
        "pool_size": len(found[0].counts),
        "largest_weight": float(max(each.largest_weight for each in found)),
    }


def _even(problem: AllocationProblem, multiplicity: np.ndarray) -> np.ndarray:
    """The same expected count for every prompt, as far as the lower bounds allow; [k]."""
    lower = problem.lower.astype(np.float64)
    alike = np.sqrt(problem.cost)
    return expected_counts(alike, problem.budget, problem.cost, lower, multiplicity)
