"""VIP: counts that minimize the variance of RLOO if all gradients are equally long (arXiv 2602.01601).

Needs accept rates. The variance of a group of n with a leave-one-out baseline is, up to a factor that
all prompts share, ``p (1 - p) / (n - 1)``, so the best n is nearly in proportion to its root.

Unbiased over a pool, and in a batch where every prompt gets completions: earlier steps or pilots
decide the counts.

Departures: the accept rate is that of the posterior, and not of a Gaussian process over embeddings of
the prompts. Counts are rounded by largest remainder, not greedily.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i = sqrt(p_i (1 - p_i))``, [m]."""
    p = problem.posterior.accept_rate
    return np.sqrt(p * (1 - p))
