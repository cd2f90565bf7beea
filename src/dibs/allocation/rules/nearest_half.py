"""Prompts of which half the completions are right: those whose accept rate is nearest to 1/2.

The plain form of what several curricula do. Needs accept rates from earlier steps. What is published
does not weigh by the choice, so it trains another objective; here every prompt keeps its uniform share.

Unbiased over a pool, where what is drawn seldom weighs more. Biased as published, with
``select.correct: false``: prompts that are drawn often weigh more. Biased in a batch too, if prompts of
weight 0 get no completions (``allocate.lower: 0``).
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """1 for the quarter of the prompts that are nearest, 0 for the others, [m]; ties share."""
    distance = np.abs(problem.posterior.accept_rate - 0.5)
    return (distance <= np.quantile(distance, 0.25)).astype(np.float64)
