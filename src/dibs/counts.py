"""Integer counts that sum to a budget within bounds: in proportion, or of least variance. numpy only.

Nothing here is random; ties and remainders go to the prompt that comes first.
"""

from __future__ import annotations

import itertools

import numpy as np


def least_variance(
    sigma: np.ndarray, budget: int, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """The integer counts that minimise ``sum_i sigma_i^2 / n_i``, exactly. O(m log m) at most.

    The problem is separable and convex, so taking one completion after another where it lowers the sum
    most is optimal: from n to n + 1 prompt i gains ``sigma_i^2 / (n (n + 1))``. Here that order is cut
    at a threshold found by bisection, and only the completions about the threshold are compared.

    Args:
        sigma: standard deviations, float64 [m], finite and at least 0. A prompt of 0 gets its lower
            bound, and a share of what is left once all others are at their upper bound.
        budget: sum of the counts, within the sums of the bounds.
        lower, upper: int64 [m]. Where lower is 0 and sigma is not, the first completion comes before
            any second one, largest sigma first: without it the prompt is not estimated at all.

    Returns:
        int64 [m].
    """
    positive = sigma > 0
    if not positive.all():
        return _with_zeros(sigma, positive, budget, lower, upper)
    first = np.maximum(lower, np.minimum(upper, 1))
    least = first.sum()
    if least > budget:
        counts = lower.copy()
        wanting = np.flatnonzero(first > lower)
        order = wanting[np.argsort(-sigma[wanting], kind="stable")]
        counts[order[: budget - int(lower.sum())]] += 1
        return counts
    if least == budget:
        return first
    # Far below, or above, those that compete, bounds on sigma keep squares of scales finite.
    largest = sigma.max(where=first < upper, initial=0.0)
    relative = np.clip(sigma / largest, 1e-100, 1e100)
    few, many = _bracket(relative, budget, first.astype(np.float64), upper.astype(np.float64))
    return _take_best(relative, few, many, budget - int(few.sum()))


def _with_zeros(
    sigma: np.ndarray, positive: np.ndarray, budget: int, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    counts = lower.copy()
    kept = int(lower[~positive].sum())
    share = int(min(budget - kept, upper[positive].sum(dtype=np.float64)))
    if positive.any():
        counts[positive] = least_variance(sigma[positive], share, lower[positive], upper[positive])
    zeros = ~positive
    counts[zeros] = proportional(
        np.ones(int(zeros.sum())), budget - share, lower[zeros], upper[zeros]
    )
    return counts


def _bracket(
    sigma: np.ndarray, budget: int, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two thresholds, at most and at least the budget, one completion a prompt apart or less.

    The search is over the scale of :func:`_units`, by interpolation and bisection in turn.
    """
    m = len(sigma)
    stride = -(-m // 16384)
    part = slice(None, None, stride)
    scale = _scale(sigma[part], budget / stride, lower[part], upper[part])
    below, few = 0.0, lower
    above, many = np.inf, upper
    widen = 1 + max(m / budget / 16, 1e-9)
    for turn in itertools.count():
        counts = _units(sigma, scale, lower, upper)
        if counts.sum() <= budget:
            below, few = scale, counts
        else:
            above, many = scale, counts
        short, over = budget - few.sum(), many.sum() - budget
        if short + over <= max(64, m) or short == 0:
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


def _scale(sigma: np.ndarray, budget: float, lower: np.ndarray, upper: np.ndarray) -> float:
    """A scale at which ``clip(scale * sigma, lower, upper)`` sums to about the budget; by Newton."""
    scale = budget / float(sigma.sum())
    for _ in range(20):
        shares = scale * sigma
        clipped = np.clip(shares, lower, upper)
        excess = float(clipped.sum()) - budget
        slope = float(sigma.sum(where=clipped == shares))
        if abs(excess) <= 1e-3 * len(sigma) or slope == 0 or excess / slope >= scale:
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
    weights: np.ndarray, budget: int, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
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
    counts, sharing = lower.copy(), positive
    if upper[positive].sum(dtype=np.float64) + lower[~positive].sum() < budget:
        counts[positive] = upper[positive]
        sharing, weights = ~positive, np.ones(len(weights))
    left = budget - int(counts[~sharing].sum())
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
