"""Knapsack: counts of the largest total value, as if groups were goods (arXiv 2509.25849).

Needs accept rates, and a fixed batch. A group of n learns something if its rewards differ, with
probability ``1 - p^n - q^n``; what it learns is worth ``p q^2``, ``q = 1 - p``.

Unbiased where every prompt gets completions: earlier steps or pilots decide the counts.

Departures: the accept rate is that of the posterior, which is above 0 and below 1, so that no prompt is
worth nothing and no fallback is needed. Every prompt gets two completions where the budget allows that.
Where it does not, pairs go first to the prompts whose pair is worth most for its cost. From there on a
further completion is worth less than the one before, so taking the best one again and again is optimal;
the paper fills a table instead.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def counts(problem: AllocationProblem) -> np.ndarray:
    """Counts that maximize ``sum_i (1 - p_i^n_i - q_i^n_i) p_i q_i^2`` beyond pairs, int64 [m]."""
    p = problem.posterior.accept_rate
    q = 1 - p
    found = problem.lower.astype(np.int64)
    left = float(problem.budget - found @ problem.cost)
    missing = np.where(problem.upper >= 2, np.maximum(2 - found, 0), 0)
    price = missing * problem.cost
    worth = np.divide(p**2 * q**3, price, out=np.zeros(len(p)), where=missing > 0)
    for i in np.argsort(-worth, kind="stable"):
        if price[i] <= left:
            found[i] += missing[i]
            left -= price[i]
    while True:
        open_ = (found < problem.upper) & (problem.cost <= left)
        if not open_.any():
            return found
        gain = (p**found * q + q**found * p) * p * q**2 / problem.cost * (found > 0)
        best = int(np.argmax(np.where(open_, gain, -1.0)))
        found[best] += 1
        left -= problem.cost[best]
