"""Reinforce-Ada, Est variant: more completions where a success is rare (arXiv 2510.04996).

Needs accept rates from earlier steps or pilots. The paper keeps the mean over groups, so that the counts
do not weigh prompts.

Unbiased over a pool, and in a batch where every prompt gets completions: earlier steps or pilots
decide the counts.

Departures: the accept rate is that of the posterior. It is above 0, so that no prompt takes all.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i = 1 / sqrt(p_i)``, [m]."""
    found: np.ndarray = problem.posterior.accept_rate**-0.5
    return found
