"""MoPPS: prompts whose accept rate, drawn from its Beta posterior, is nearest to 1/2 (arXiv 2507.04632).

Thompson sampling: a prompt that is little known has a wide posterior and is drawn now and then. Needs
accept rates from earlier steps, and a pool. What is published does not weigh by the choice, so it trains
another objective; here every prompt keeps its uniform share.

Unbiased: what is drawn seldom weighs more. Biased as published, with ``select.correct: false``:
prompts that are drawn often weigh more.

Departures: the posterior borrows from other prompts, and older completions count less by ``half_life``.
A quarter of the prompts is taken, and the budget decides how many completions that gives.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem

RANDOM = True


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """1 for the quarter of the prompts whose draw is nearest, 0 for the others, [m]."""
    assert rng is not None
    drawn = rng.beta(problem.posterior.alpha, problem.posterior.beta)
    distance = np.abs(drawn - 0.5)
    return (distance <= np.quantile(distance, 0.25)).astype(np.float64)
