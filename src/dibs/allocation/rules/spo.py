"""SPO: prompts in proportion to the spread of their reward (arXiv 2509.13232).

Needs accept rates from earlier steps. The paper draws single completions of prompts from the whole
training set, and does not weigh them by how likely they were drawn.

Unbiased over a pool, where what is drawn seldom weighs more. Biased as published, with
``select.correct: false``: prompts that are drawn often weigh more.

Departures: the accept rate is that of the posterior, which borrows from other prompts, and not a Beta
tracker of the prompt alone.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem

_LEAST = 0.05
"""Added for every prompt, so that none is forgotten."""


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i = sqrt(p_i (1 - p_i)) + 0.05``, [m]."""
    p = problem.posterior.accept_rate
    return np.sqrt(p * (1 - p)) + _LEAST
