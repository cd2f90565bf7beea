"""Whole counts in proportion to weights, within bounds."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np


def spend_rest(
    counts: np.ndarray,
    budget: float,
    upper: np.ndarray,
    cost: np.ndarray,
    gain: Callable[[int, int], tuple[bool, float]],
) -> np.ndarray:
    """Add completion after completion to ``counts``, while any can be paid for; return ``counts``.

    The largest ``gain(prompt, count)`` comes first: whether it is urgent, and its size.
    """
    left = budget - float(counts @ cost)
    open_ = np.flatnonzero((counts < upper) & (cost <= left))

    def entry(i: int) -> tuple[bool, float, int]:
        urgent, value = gain(i, int(counts[i]))
        return not urgent, -value, i

    heap = [entry(i) for i in open_.tolist()]
    heapq.heapify(heap)
    while heap:
        *_, i = heapq.heappop(heap)
        if cost[i] > left:
            continue
        counts[i] += 1
        left -= cost[i]
        if counts[i] < upper[i]:
            heapq.heappush(heap, entry(i))
    return counts


def proportional(
    weights: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Integer counts as close to proportional to ``weights`` as bounds and the budget allow.

    The real-valued optimum is ``clip(scale * weight, lower, upper)`` with the one scale that spends
    the budget; it is rounded by largest remainder. Prompts of weight 0 get their lower bound, and
    share evenly what is left once all others are at their upper bound. If every weight is 0, all
    prompts share evenly. O(m log m).

    Args:
        weights: float64 [m], at least 0.
        budget, lower, upper, cost: as for :func:`.least_variance`.

    Returns:
        int64 [m].
    """
    positive = weights > 0
    if not positive.any():
        positive, weights = ~positive, np.ones(len(weights))
    # Far below any count that rounds to 1, a floor keeps quotients of weights finite.
    weights = np.where(positive, np.maximum(weights / weights.max(initial=0), 1e-200), 0.0)
    cost = np.ones(len(weights)) * cost
    counts, sharing = lower.copy(), positive
    if (
        upper[positive].astype(np.float64) @ cost[positive] + lower[~positive] @ cost[~positive]
        < budget
    ):
        counts[positive] = upper[positive]
        sharing, weights = ~positive, np.ones(len(weights))
    left = budget - float(counts[~sharing] @ cost[~sharing])
    low, high, price = lower[sharing], upper[sharing], cost[sharing]
    shares = fill(weights[sharing], left, low, high, price)
    counts[sharing] = (
        _round(shares, int(left), low, high)
        if (cost == 1).all()
        else _round_down(shares, left, low, high, price)
    )
    return counts


def fill(
    weights: np.ndarray, total: float, lower: np.ndarray, upper: np.ndarray, cost: np.ndarray
) -> np.ndarray:
    """Real shares ``clip(scale * weights, lower, upper)`` that cost ``total``; weights > 0, float64 [m].

    ``upper`` may be infinite.

    The cost is piecewise linear in the scale: prompt i grows between ``lower/weight`` and
    ``upper/weight``. A binary search over those sorted breakpoints finds the linear piece that holds
    the total. Every sum is taken afresh over positive terms: running sums would cancel where weights
    differ by many orders of magnitude.
    """
    if not len(weights):
        return np.zeros(0)
    grows_from, grows_to = lower / weights, upper / weights
    breakpoints = np.sort(np.concatenate([grows_from, grows_to]))
    first, last = 0, len(breakpoints) - 1
    while first < last:
        middle = (first + last + 1) // 2
        if np.clip(breakpoints[middle] * weights, lower, upper) @ cost <= total:
            first = middle
        else:
            last = middle - 1
    scale = breakpoints[first]
    growing = (grows_from <= scale) & (scale < grows_to)
    if growing.any():
        fixed = np.clip(scale * weights[~growing], lower[~growing], upper[~growing])
        room = total - fixed @ cost[~growing]
        scale = max(scale, room / (weights[growing] @ cost[growing]))
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


def _round_down(
    shares: np.ndarray, total: float, lower: np.ndarray, upper: np.ndarray, cost: np.ndarray
) -> np.ndarray:
    """Integers within bounds: rounded down, then up by largest remainder while ``total`` can pay."""
    # The shift guards against shares that rounding error lifted over an integer.
    counts = np.clip(np.floor(shares * (1 - 1e-12)).astype(np.int64), lower, upper)

    def remainder(i: int, count: int) -> tuple[bool, float]:
        return False, float(shares[i] - count)

    return spend_rest(counts, total, upper, cost, remainder)
