"""CurES, its prompts: more often where the reward's deviation is large (arXiv 2510.01037).

Needs accept rates from earlier steps, and a pool. What is published draws prompts with these
probabilities and does not weigh by the choice.

Unbiased over a pool, where what is drawn seldom weighs more. Biased as published, with
``select.correct: false``: prompts that are drawn often weigh more.

Departures: the temperature is the 0.1 that the released sampler declares and does not use. The one that
it uses is 100 times the number of accepted completions and one more, with which no two probabilities
differ by more than half a percent: there the choice is even in all but name.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem

_TEMPERATURE = 0.1


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i = exp(sqrt(p_i (1 - p_i)) / tau)``, [m]."""
    p = problem.posterior.accept_rate
    return np.exp(np.sqrt(p * (1 - p)) / _TEMPERATURE)
