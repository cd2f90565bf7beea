"""Prompt statistics and a budget in, integer sample counts out.

An allocator is a function from an :class:`AllocationProblem` to integer counts; ``@allocator(name)``
registers it, also from outside this package. Counts sum to the budget exactly, respect the bounds
of every prompt, and do not depend on anything random: ties and remainders go to the prompt that
comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dibs.types import Allocation, InputError, PromptStats


@dataclass(frozen=True)
class AllocationProblem:
    """Everything an allocator may look at. Build it with :func:`pose`, which checks it.

    ``lower`` and ``upper``: int64 [m], counts allowed to each prompt.
    ``accept_rate_penalty``, ``accept_rate_power``: alpha >= 0 and beta >= 1 of arXiv 2505.02391,
    eq. (5).
    """

    stats: PromptStats
    budget: int
    lower: np.ndarray
    upper: np.ndarray
    accept_rate_penalty: float = 1e-3
    accept_rate_power: float = 2.0


Allocator = Callable[[AllocationProblem], np.ndarray]
ALLOCATORS: dict[str, Allocator] = {}
_LARGEST_COUNT = 2**53


def allocator(name: str) -> Callable[[Allocator], Allocator]:
    """Register an allocator under ``name`` for configs and the command line."""

    def register(function: Allocator) -> Allocator:
        ALLOCATORS[name] = function
        return function

    return register


@allocator("uniform")
def uniform(problem: AllocationProblem) -> np.ndarray:
    """The same count for every prompt, as far as the bounds allow."""
    return proportional(np.ones(len(problem.stats)), problem)


@allocator("gvm")
def gvm(problem: AllocationProblem) -> np.ndarray:
    """GVM's rule: arXiv 2505.02391, Algorithm 2 with the counts of Theorem 3.

    ``n_i = N w_i / sum w`` with ``w_i = G_i / sqrt(p_i + alpha / p_i^(beta - 1))``, where ``p_i`` is
    the accepted share of the pilots and ``G_i`` the mean gradient norm of the accepted ones. A prompt
    with no accepted pilot has weight 0 and gets its lower bound: with a bound of 0 it is starved.
    When no prompt has an accepted pilot the rule says nothing, and the budget is spent uniformly.
    """
    stats = problem.stats
    untried = np.asarray(stats.trials) < 1
    if untried.any():
        raise InputError(
            f"prompt {stats.prompt_ids[int(np.argmax(untried))]!r} has 0 trials; "
            "gvm needs at least one pilot completion a prompt"
        )
    rate = stats.accept_rate
    norm = np.where(rate > 0, stats.grad_norm, 0.0)
    rate = np.where(rate > 0, rate, 1.0)
    alpha, beta = problem.accept_rate_penalty, problem.accept_rate_power
    with np.errstate(over="ignore"):  # an infinite penalty is a weight of 0
        penalty = alpha * rate ** (1 - beta) if alpha > 0 else 0.0
    return proportional(norm / np.sqrt(rate + penalty), problem)


def proportional(weights: np.ndarray, problem: AllocationProblem) -> np.ndarray:
    """Integer counts as close to proportional to ``weights`` as bounds and an exact sum allow.

    The real-valued optimum is ``clip(scale * weight, lower, upper)`` with the one scale that spends
    the budget; it is rounded by largest remainder. Prompts of weight 0 get their lower bound, and
    share evenly what is left once all others are at their upper bound. If every weight is 0, all
    prompts share evenly. O(m log m).
    """
    positive = weights > 0
    if not positive.any():
        positive, weights = ~positive, np.ones(len(weights))
    # Far below any count that rounds to 1, a floor keeps quotients of weights finite.
    weights = np.where(positive, np.maximum(weights / weights.max(), 1e-200), 0.0)
    lower, upper = problem.lower, problem.upper
    counts, sharing = lower.copy(), positive
    if upper[positive].sum() + lower[~positive].sum() < problem.budget:
        counts[positive] = upper[positive]
        sharing, weights = ~positive, np.ones(len(weights))
    left = problem.budget - int(counts[~sharing].sum())
    shares = _fill(weights[sharing], left, lower[sharing], upper[sharing])
    counts[sharing] = _round(shares, left, lower[sharing], upper[sharing])
    return counts


def _fill(weights: np.ndarray, total: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Real shares ``clip(scale * weights, lower, upper)`` that sum to ``total``; weights > 0.

    The sum is piecewise linear in the scale: prompt i grows between ``lower/weight`` and
    ``upper/weight``. A binary search over those sorted breakpoints finds the linear piece that holds
    the total. Every sum is taken afresh over positive terms: running sums would cancel where weights
    differ by many orders of magnitude.
    """
    grows_from, grows_to = lower / weights, upper / weights
    breakpoints = np.sort(np.concatenate([grows_from, grows_to]))
    first, last = 0, len(breakpoints) - 1
    while first < last:
        middle = (first + last + 1) // 2
        if np.clip(breakpoints[middle] * weights, lower, upper).sum() <= total:
            first = middle
        else:
            last = middle - 1
    scale = breakpoints[first]
    growing = (grows_from <= scale) & (scale < grows_to)
    if growing.any():
        fixed = np.clip(scale * weights[~growing], lower[~growing], upper[~growing])
        scale = max(scale, (total - fixed.sum()) / weights[growing].sum())
    return np.clip(scale * weights, lower, upper)


def _round(shares: np.ndarray, total: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Largest-remainder rounding to integers within bounds whose sum is ``total``."""
    counts = np.floor(shares).astype(np.int64)
    missing = total - int(counts.sum())
    # The sign guards against a share that rounding error lifted over an integer.
    step, room = (1, counts < upper) if missing > 0 else (-1, counts > lower)
    order = np.argsort(-step * (shares - counts), kind="stable")
    counts[order[room[order]][: abs(missing)]] += step
    return counts


def pose(
    stats: PromptStats,
    budget: int,
    *,
    lower: ArrayLike = 0,
    upper: ArrayLike | None = None,
    accept_rate_penalty: float = 1e-3,
    accept_rate_power: float = 2.0,
) -> AllocationProblem:
    """Check bounds and budget and make them arrays; ``upper=None`` means no upper bound.

    Raises InputError where no allocation exists.
    """
    m = len(stats)
    if m == 0:
        raise InputError("no prompts to allocate to; give at least one")
    if not 0 <= budget <= _LARGEST_COUNT or budget != int(budget):
        raise InputError(f"budget {budget} is not a whole number from 0 to 2^53")
    budget = int(budget)
    if not 0 <= accept_rate_penalty < np.inf:
        raise InputError(f"accept_rate_penalty is {accept_rate_penalty}; it must be at least 0")
    if not 1 <= accept_rate_power < np.inf:
        raise InputError(f"accept_rate_power is {accept_rate_power}; it must be at least 1")
    low = _bound("lower", lower, m)
    high = np.full(m, budget, dtype=np.int64) if upper is None else _bound("upper", upper, m)
    if upper is None:
        high = np.maximum(high, low)
    crossed = low > high
    if crossed.any():
        i = int(np.argmax(crossed))
        raise InputError(
            f"prompt {stats.prompt_ids[i]!r}: lower bound {low[i]} exceeds upper bound {high[i]}"
        )
    if budget < low.sum():
        raise InputError(
            f"budget {budget} is smaller than the sum of the lower bounds, {low.sum()}; "
            "raise the budget or lower the bounds"
        )
    if budget > high.sum():
        raise InputError(
            f"budget {budget} is larger than the sum of the upper bounds, {high.sum()}; "
            "lower the budget or raise the bounds"
        )
    return AllocationProblem(stats, budget, low, high, accept_rate_penalty, accept_rate_power)


def _bound(name: str, value: ArrayLike, m: int) -> np.ndarray:
    given = np.asarray(value)
    if given.shape not in ((), (m,)):
        raise InputError(f"{name} has shape {given.shape}; give one number or one a prompt ({m})")
    if not ((given >= 0) & (given <= _LARGEST_COUNT) & (given == np.floor(given))).all():
        raise InputError(f"{name} bounds must be whole numbers from 0 to 2^53")
    return np.broadcast_to(given, (m,)).astype(np.int64)


def check_allocator(name: str) -> None:
    """InputError unless an allocator of this name is registered."""
    if name not in ALLOCATORS:
        raise InputError(f"unknown allocator {name!r}; known: {', '.join(sorted(ALLOCATORS))}")


def solve(problem: AllocationProblem, name: str) -> Allocation:
    """Run the allocator registered as ``name``.

    Raises InputError for an unknown name, RuntimeError when the allocator broke its contract.
    """
    check_allocator(name)
    counts = ALLOCATORS[name](problem)
    within = (counts >= problem.lower).all() and (counts <= problem.upper).all()
    if counts.sum() != problem.budget or not within:
        raise RuntimeError(
            f"allocator {name!r} returned counts that sum to {counts.sum()} for a budget of "
            f"{problem.budget}, or that leave their bounds"
        )
    return Allocation(problem.stats.prompt_ids, counts, name)


def allocate(
    trials: ArrayLike,
    successes: ArrayLike,
    grad_norm: ArrayLike,
    *,
    budget: int,
    allocator: str = "gvm",
    lower: ArrayLike = 0,
    upper: ArrayLike | None = None,
    grad_norm_rejected: ArrayLike | None = None,
    mean_tokens: ArrayLike | None = None,
    prompt_ids: Sequence[str] | None = None,
    accept_rate_penalty: float = 1e-3,
    accept_rate_power: float = 2.0,
) -> np.ndarray:
    """Counts for m prompts from arrays of their statistics; the library form of ``dibs allocate``.

    Args:
        trials: pilot completions drawn for each prompt, [m].
        successes: how many of them were accepted, [m].
        grad_norm: mean gradient norm of the accepted ones, [m]; NaN where none was.
        budget: total number of completions to spread over the prompts.
        allocator: a registered name; ``uniform`` and ``gvm`` come with DIBS.
        lower, upper: bounds on the count of a prompt, one number or [m].
        grad_norm_rejected: mean gradient norm of the rejected ones, [m].
        mean_tokens: mean completion length, [m].
        prompt_ids: names used in error messages; the prompt's position by default.
        accept_rate_penalty, accept_rate_power: alpha and beta of GVM's Theorem 3.

    Returns:
        int64 counts [m] whose sum is ``budget``.

    Raises:
        InputError: statistics that cannot be, or bounds that no allocation meets.
    """

    def array(values: ArrayLike | None) -> np.ndarray | None:
        return None if values is None else np.asarray(values, dtype=np.float64)

    trials = np.asarray(trials, dtype=np.float64)
    stats = PromptStats(
        prompt_ids=[str(i) for i in range(trials.size)] if prompt_ids is None else prompt_ids,
        trials=trials,
        successes=np.asarray(successes, dtype=np.float64),
        grad_norm=np.asarray(grad_norm, dtype=np.float64),
        grad_norm_rejected=array(grad_norm_rejected),
        mean_tokens=array(mean_tokens),
    )
    problem = pose(
        stats,
        budget,
        lower=lower,
        upper=upper,
        accept_rate_penalty=accept_rate_penalty,
        accept_rate_power=accept_rate_power,
    )
    return solve(problem, allocator).counts
