"""Integer counts that spend a budget within bounds: in proportion, or of least variance. numpy only.

Nothing here is random; ties and remainders go to the prompt that comes first. Without costs a completion
costs 1 and the budget is spent to the last one; with costs it is spent until nothing affordable is left.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import numpy as np


def least_variance(
    sigma: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray | None = None,
) -> np.ndarray:
    """The integer counts that minimise ``sum_i sigma_i^2 / n_i``: exactly, for unit costs. O(m log m).

    The problem is separable and convex, so taking one completion after another where it lowers the sum
    most is optimal: from n to n + 1 prompt i gains ``sigma_i^2 / (n (n + 1))``. Here that order is cut
    at a threshold found by bisection, and only the completions about the threshold are compared. With
    costs, gains are by cost, and counts follow ``sigma_i / sqrt(c_i)``: optimal but for the last
    completions, whose sizes must fit (a knapsack).

    Args:
        sigma: standard deviations, float64 [m], finite and at least 0. A prompt of 0 gets its lower
            bound, and a share of what is left once all others are at their upper bound.
        budget: sum of the counts, within the sums of the bounds; with costs, most that
            ``sum_i cost_i n_i`` may be, at least that of the lower bounds.
        lower, upper: int64 [m]. Where lower is 0 and sigma is not, the first completion comes before
            any second one, largest sigma first: without it the prompt is not estimated at all.
        cost: of one completion of each prompt, above 0, [m]; None: 1.

    Returns:
        int64 [m].
    """
    positive = sigma > 0
    if not positive.all():
        return _with_zeros(sigma, positive, budget, lower, upper, cost)
    relative = sigma if cost is None else sigma / np.sqrt(cost)

    def gain(i: int, count: int) -> tuple[bool, float]:
        if count == 0:
            return True, float(relative[i])
        return False, float(relative[i] ** 2 / (count * (count + 1.0)))

    first = np.maximum(lower, np.minimum(upper, 1))
    least = _spent(first, cost)
    if least > budget:
        return _spend_rest(lower.copy(), budget, upper, cost, gain)
    competing = first < upper
    if least == budget or not competing.any():
        return first
    # Far below, or above, those that compete, bounds on sigma keep squares of scales finite.
    relative = relative / (relative if competing.all() else relative[competing]).max()
    np.clip(relative, 1e-100, 1e100, out=relative)
    few, many = _bracket(relative, budget, first.astype(np.float64), upper.astype(np.float64), cost)
    if cost is None:
        return _take_best(relative, few, many, int(budget) - int(few.sum()))
    return _spend_rest(few, budget, upper, cost, gain)


def _spent(counts: np.ndarray, cost: np.ndarray | None) -> float:
    return float(counts.sum() if cost is None else counts @ cost)


def _spend_rest(
    counts: np.ndarray,
    budget: float,
    upper: np.ndarray,
    cost: np.ndarray | None,
    gain: Callable[[int, int], tuple[bool, float]],
) -> np.ndarray:
    """Completion after completion, largest ``gain(prompt, count)`` first, while any can be paid for."""
    if cost is None:
        cost = np.ones(len(counts))
    left = budget - _spent(counts, cost)
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


def _with_zeros(
    sigma: np.ndarray,
    positive: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray | None,
) -> np.ndarray:
    zeros = ~positive

    def part(chosen: np.ndarray) -> np.ndarray | None:
        return None if cost is None else cost[chosen]

    counts = lower.copy()
    share = budget - _spent(lower[zeros], part(zeros))
    share = min(share, _spent(upper[positive].astype(np.float64), part(positive)))
    if positive.any():
        counts[positive] = least_variance(
            sigma[positive], share, lower[positive], upper[positive], part(positive)
        )
    counts[zeros] = proportional(
        np.ones(int(zeros.sum())),
        budget - _spent(counts[positive], part(positive)),
        lower[zeros],
        upper[zeros],
        part(zeros),
    )
    return counts


def _bracket(
    sigma: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two thresholds, at most and at least the budget, one completion a prompt apart or less.

    The search is over the scale of :func:`_units`, by interpolation and bisection in turn.
    """
    m = len(sigma)
    one = 1.0 if cost is None else float(cost.mean())
    stride = -(-m // 16384)
    part = slice(None, None, stride)
    scale = _scale(
        sigma[part], budget / stride, lower[part], upper[part], None if cost is None else cost[part]
    )
    below, few = 0.0, lower
    above, many = np.inf, upper
    widen = 1 + max(m * one / budget / 16, 1e-9)
    for turn in itertools.count():
        counts = _units(sigma, scale, lower, upper)
        if _spent(counts, cost) <= budget:
            below, few = scale, counts
        else:
            above, many = scale, counts
        short, over = budget - _spent(few, cost), _spent(many, cost) - budget
        if short + over <= max(64, m) * one or short <= 0 or over <= 0:
            break
        if above == np.inf:
            scale, widen = below * widen, min(widen**4, 1e9)
        elif below == 0:
            scale, widen = above / widen, min(widen**4, 1e9)
        elif turn % 2:
            scale = float(np.sqrt(below) * np.sqrt(above))
        else:
            scale = float(below + (above - below) * short / (short + over))
        if not below < scale < above:
            break  # neighbouring numbers: all that lies between is a tie
    return few.astype(np.int64), many.astype(np.int64)


def _scale(
    sigma: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray | None,
) -> float:
    """A scale at which ``clip(scale * sigma, lower, upper)`` costs about the budget; by Newton."""
    one = 1.0 if cost is None else float(cost.mean())
    priced = sigma if cost is None else sigma * cost
    scale = budget / float(priced.sum())
    for _ in range(20):
        shares = scale * sigma
        clipped = np.clip(shares, lower, upper)
        excess = _spent(clipped, cost) - budget
        slope = float(priced.sum(where=clipped == shares))
        if abs(excess) <= 1e-3 * len(sigma) * one or slope == 0 or excess / slope >= scale:
            break
        scale -= excess / slope
    return scale


def _units(sigma: np.ndarray, scale: float, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Counts, as floats, when every completion that gains at least ``1 / scale^2`` is taken.

    ``sigma^2 / (n (n + 1)) >= 1 / scale^2`` holds for n up to ``sqrt(1/4 + (scale sigma)^2) - 1/2``, and
    the count is one more than the last such n.
    """
    counts = scale * sigma
    np.square(counts, out=counts)
    counts += 0.25
    np.sqrt(counts, out=counts)
    counts += 0.5
    np.floor(counts, out=counts)
    return np.clip(counts, lower, upper, out=counts)


def _take_best(sigma: np.ndarray, few: np.ndarray, many: np.ndarray, left: int) -> np.ndarray:
    """``few`` and the ``left`` best of the completions between ``few`` and ``many``."""
    if left == 0:
        return few
    extra = many - few
    prompt = np.repeat(np.arange(len(sigma)), extra)
    ends = np.cumsum(extra)
    taken = few[prompt] + np.arange(len(prompt)) - (ends - extra)[prompt]
    gain = np.square(sigma[prompt]) / (taken * (taken + 1.0))
    threshold = np.partition(gain, len(gain) - left)[len(gain) - left]
    better = gain > threshold
    ties = np.flatnonzero(gain == threshold)[: left - int(better.sum())]
    better[ties] = True
    return few + np.bincount(prompt[better], minlength=len(sigma))


def proportional(
    weights: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray | None = None,
) -> np.ndarray:
    """Integer counts as close to proportional to ``weights`` as bounds and the budget allow.

    The real-valued optimum is ``clip(scale * weight, lower, upper)`` with the one scale that spends
    the budget; it is rounded by largest remainder. Prompts of weight 0 get their lower bound, and
    share evenly what is left once all others are at their upper bound. If every weight is 0, all
    prompts share evenly. ``cost`` and ``budget`` as in :func:`least_variance`. O(m log m).
    """
    positive = weights > 0
    if not positive.any():
        positive, weights = ~positive, np.ones(len(weights))
    # Far below any count that rounds to 1, a floor keeps quotients of weights finite.
    weights = np.where(positive, np.maximum(weights / weights.max(initial=0), 1e-200), 0.0)
    price = np.ones(len(weights)) if cost is None else cost
    counts, sharing = lower.copy(), positive
    if (
        upper[positive].astype(np.float64) @ price[positive] + lower[~positive] @ price[~positive]
        < budget
    ):
        counts[positive] = upper[positive]
        sharing, weights = ~positive, np.ones(len(weights))
    left = budget - float(counts[~sharing] @ price[~sharing])
    low, high, price = lower[sharing], upper[sharing], price[sharing]
    shares = _fill(weights[sharing], left, low, high, price)
    counts[sharing] = (
        _round(shares, int(left), low, high)
        if cost is None
        else _round_down(shares, left, low, high, price)
    )
    return counts


def _fill(
    weights: np.ndarray, total: float, lower: np.ndarray, upper: np.ndarray, cost: np.ndarray
) -> np.ndarray:
    """Real shares ``clip(scale * weights, lower, upper)`` that cost ``total``; weights > 0.

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
    """Rounding down to integers within bounds, then up by largest remainder while ``total`` can pay."""
    # The shift guards against shares that rounding error lifted over an integer.
    counts = np.clip(np.floor(shares * (1 - 1e-12)).astype(np.int64), lower, upper)

    def remainder(i: int, count: int) -> tuple[bool, float]:
        return False, float(shares[i] - count)

    return _spend_rest(counts, total, upper, cost, remainder)
