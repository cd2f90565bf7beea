"""Fractional counts: which prompts of a pool are drawn, and how many completions each gets, as one rule.

Every prompt i of a pool of N has an *expected* number ``e_i`` of completions, which need not be whole. A
step rounds it at random to ``n_i``, so that ``E[n_i] = e_i``, and a completion weighs ``1 / (N e_i)``::

    g = (1/N) sum_i (1/e_i) sum_{j <= n_i} a_ij s_ij

This is the estimator of Horvitz and Thompson (1952): unbiased for the mean gradient of the pool,
whatever the ``e_i > 0``, as long as they do not depend on the completions that enter. A prompt whose
``e_i`` is small is drawn rarely and weighs much when it is.

With groups of g completions, ``mu_i = E[a s]`` of a prompt, ``sigma_i^2`` the variance of a group's mean
and ``k_i = e_i / g`` groups expected, a prompt adds ``1 / N^2`` of ::

    (||mu_i||^2 + sigma_i^2) / k_i - ||mu_i||^2                     k_i <= 1
    sigma_i^2 / k_i + f (1 - f) ||mu_i||^2 / k_i^2                  k_i > 1, f its fractional part

to the variance where prompts are rounded independently. Systematic rounding makes the total certain.
Without knowledge of ``mu_i``, the least of the upper bound ``sum_i S_i / e_i``, where ``S_i = E[a^2
||s||^2]``, has ``e_i`` in proportion to ``sqrt(S_i / c_i)``, c_i being the cost of a completion.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.proportional import fill


def expected_counts(
    sigma: np.ndarray,
    budget: float,
    cost: np.ndarray,
    floor: np.ndarray,
    multiplicity: np.ndarray | None = None,
) -> np.ndarray:
    """Expected counts of least variance: ``clip(scale * sigma_i / sqrt(cost_i), floor_i)``, [k].

    Args:
        sigma: ``sqrt(S_i)`` of each prompt, at least 0, [k]. If all are 0, all prompts are alike.
        budget: what ``sum_i multiplicity_i cost_i e_i`` is; at least that sum over the floors.
        cost: of a completion of each prompt, above 0, [k].
        floor: least expected count of each prompt, [k].
        multiplicity: how many prompts a row stands for, [k]; None: one.
    """
    each = cost if multiplicity is None else cost * multiplicity
    weights = sigma / np.sqrt(cost)
    largest = weights.max(initial=0.0)
    # Far below any count that matters, a bound keeps quotients of weights finite.
    weights = np.maximum(weights / largest, 1e-200) if largest > 0 else np.ones(len(sigma))
    return fill(weights, budget, floor, np.full(len(sigma), np.inf), each)


def round_at_random(expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers ``n_i`` with ``E[n_i] = expected_i``, each rounded down or up; int64 [N].

    The sum is that of ``expected``, rounded down or up itself where it is not whole. This is systematic
    sampling over an order drawn at random: a grid of distance 1 with a random start is laid over the
    line on which every prompt has a piece as long as its expected number.
    """
    order = rng.permutation(len(expected))
    ends = np.cumsum(expected[order])
    total = round(float(ends[-1])) if len(ends) else 0
    if total and abs(ends[-1] - total) < 1e-6:
        ends = np.minimum(ends * (total / ends[-1]), total)
        ends[-1] = total
    below = np.floor(ends + rng.random()).astype(np.int64)
    below[1:] -= below[:-1].copy()
    counts = np.empty(len(expected), dtype=np.int64)
    counts[order] = below
    return counts


def rounded_variance(
    expected: np.ndarray, mean_square: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """What each prompt adds to ``N^2`` times the variance, rounded independently; float64 [N].

    Args:
        expected: groups, ``k_i`` above 0.
        mean_square: ``||mu_i||^2``.
        variance: ``sigma_i^2`` of a group's mean.
    """
    part = expected - np.floor(expected)
    rare = (mean_square + variance) / expected - mean_square
    often = variance / expected + part * (1 - part) * mean_square / expected**2
    return np.where(expected <= 1, rare, often)
