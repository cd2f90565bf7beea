"""DARS: hard prompts get completions until they weigh as much as those of p = 1/2 (arXiv 2508.13755).

Needs accept rates. With GRPO's advantages the completions of a prompt add up to ``2 n sqrt(p (1 - p))``
in absolute value, so that a hard prompt needs more of them for the same sum ("equal treatment").

Unbiased over a pool, and in a batch where every prompt gets completions: earlier steps or pilots
decide the counts.

Departures: the paper adds completions to hard prompts, over as many rounds as it takes; here the budget
is fixed, and what they get is taken from the others. The accept rate is that of the posterior, and not
of completions drawn for it.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem

_MOST = 4.0
"""Times the count of a prompt of p = 1/2: the paper's limit of 32 for groups of 8."""


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i = 1 / (2 sqrt(p_i (1 - p_i)))`` below p = 1/2, at most 4; 1 from there on; [m]."""
    p = problem.posterior.accept_rate
    wanted = np.minimum(0.5 / np.sqrt(np.maximum(p * (1 - p), 1e-300)), _MOST)
    return np.where(p < 0.5, wanted, 1.0)
