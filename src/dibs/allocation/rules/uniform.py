"""All prompts alike.

Needs nothing. Unbiased, in a batch and over a pool.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """1 for every prompt, [m]."""
    return np.ones(len(problem.stats))
