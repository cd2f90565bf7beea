"""VAS of MMR1: half of the prompts by the spread of their reward, half evenly (arXiv 2509.21268).

Needs accept rates from earlier steps. What is published fills half of a batch with prompts drawn in
proportion to a score, and half evenly, and does not weigh by the choice.

Unbiased over a pool, where what is drawn seldom weighs more. Biased as published, with
``select.correct: false``: prompts that are drawn often weigh more.

Departures: the score is the variance of the reward alone. The paper adds how diverse the completions of
a prompt are. The accept rate is that of the posterior, where the paper refreshes its own now and then.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem

_EVEN = 0.5
"""Share of the draws that is even."""


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i = v_i / mean(v) / 2 + 1/2`` with ``v_i = p_i (1 - p_i)``, [m]."""
    p = problem.posterior.accept_rate
    spread = p * (1 - p)
    return _EVEN + (1 - _EVEN) * spread / max(float(spread.mean()), 1e-300)
