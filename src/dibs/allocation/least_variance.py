"""Integer counts of least variance that spend a budget within bounds. numpy only.

Nothing here is random; ties and remainders go to the prompt that comes first. Where every completion
costs 1, a whole budget is spent to the last one. Otherwise it is spent until nothing affordable is left.
"""

from __future__ import annotations

import itertools

import numpy as np

from dibs.allocation.proportional import proportional, spend_rest


def least_variance(
    sigma: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray | float = 1.0,
) -> np.ndarray:
    """The integer counts that minimize ``sum_i sigma_i^2 / n_i``: exactly, for unit costs. O(m log m).

    The problem is separable and convex, so taking one completion after another where it lowers the sum
    most is optimal: from n to n + 1 prompt i gains ``sigma_i^2 / (n (n + 1))``. Here that order is cut
    at a threshold found by bisection, and only the completions about the threshold are compared. With
    other costs, gains are divided by the cost and counts follow ``sigma_i / sqrt(c_i)``. They are then
    optimal but for the last completions, whose costs must fit what is left (a knapsack).

    Args:
        sigma: standard deviations, float64 [m], finite and at least 0. A prompt of 0 gets its lower
            bound, and a share of what is left once all others are at their upper bound.
        budget: most that ``sum_i cost_i n_i`` may be; at least the cost of the lower bounds. For unit
            costs, within the sums of the bounds, the counts sum to it.
        lower, upper: int64 [m]. Where lower is 0 and sigma is not, the first completion comes before
            any second one, largest sigma first: without it the prompt is not estimated at all.
        cost: of one completion of each prompt, above 0: one number for all, or [m].

    Returns:
        int64 [m].
    """
    cost = np.ones(len(sigma)) * cost
    positive = sigma > 0
    if not positive.all():
        return _with_zeros(sigma, positive, budget, lower, upper, cost)
    relative = sigma / np.sqrt(cost)

    def gain(i: int, count: int) -> tuple[bool, float]:
        if count == 0:
            return True, float(relative[i])
        return False, float(relative[i] ** 2 / (count * (count + 1.0)))

    first = np.maximum(lower, np.minimum(upper, 1))
    least = float(first @ cost)
    if least > budget:
        return spend_rest(lower.copy(), budget, upper, cost, gain)
    competing = first < upper
    if least == budget or not competing.any():
        return first
    # Far below, or above, those that compete, bounds on sigma keep squares of scales finite.
    relative = relative / (relative if competing.all() else relative[competing]).max()
    np.clip(relative, 1e-100, 1e100, out=relative)
    few, many = _bracket(relative, budget, first.astype(np.float64), upper.astype(np.float64), cost)
    if (cost == 1).all():
        affordable = min(int(budget), int(many.sum()))
        return _take_best(relative, few, many, affordable - int(few.sum()))
    return spend_rest(few, budget, upper, cost, gain)


def _with_zeros(
    sigma: np.ndarray,
    positive: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray,
) -> np.ndarray:
    """:func:`least_variance` where some sigma is 0: those prompts share what the others leave."""
    zeros = ~positive
    counts = lower.copy()
    share = budget - float(lower[zeros] @ cost[zeros])
    share = min(share, float(upper[positive].astype(np.float64) @ cost[positive]))
    if positive.any():
        counts[positive] = least_variance(
            sigma[positive], share, lower[positive], upper[positive], cost[positive]
        )
    counts[zeros] = proportional(
        np.ones(int(zeros.sum())),
        budget - float(counts[positive] @ cost[positive]),
        lower[zeros],
        upper[zeros],
        cost[zeros],
    )
    return counts


def _bracket(
    sigma: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two thresholds, at most and at least the budget, one completion a prompt apart or less.

    The search is over the scale of :func:`_units`, by interpolation and bisection in turn.
    """
    m = len(sigma)
    one = float(cost.mean())
    stride = -(-m // 16384)
    part = slice(None, None, stride)
    scale = _scale(sigma[part], budget / stride, lower[part], upper[part], cost[part])
    below, few = 0.0, lower
    above, many = np.inf, upper
    widen = 1 + max(m * one / budget / 16, 1e-9)
    for turn in itertools.count():
        counts = _units(sigma, scale, lower, upper)
        if counts @ cost <= budget:
            below, few = scale, counts
        else:
            above, many = scale, counts
        short, over = budget - float(few @ cost), float(many @ cost) - budget
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
            break  # neighboring numbers: all that lies between is a tie
    return few.astype(np.int64), many.astype(np.int64)


def _scale(
    sigma: np.ndarray,
    budget: float,
    lower: np.ndarray,
    upper: np.ndarray,
    cost: np.ndarray,
) -> float:
    """A scale at which ``clip(scale * sigma, lower, upper)`` costs about the budget; by Newton."""
    one, priced = float(cost.mean()), sigma * cost
    scale = budget / float(priced.sum())
    for _ in range(20):
        shares = scale * sigma
        clipped = np.clip(shares, lower, upper)
        excess = float(clipped @ cost) - budget
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
