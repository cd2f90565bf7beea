"""The standard deviation that divides GRPO's advantages, where the group itself is not to decide it.

A group's own deviation makes the target depend on the counts: a group of equal rewards has advantages 0,
and whether rewards are equal depends on how many there are. A deviation that is known before the group
is drawn is one factor for all its completions, whatever their number.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from dibs.allocation.posterior import Posterior
from dibs.allocation.target import Target


def expected_deviations(posterior: Posterior, target: Target) -> np.ndarray:
    """The deviation of one completion's r, expected under the posterior; float64 [m], at least 0.

    For rewards of 0 and 1 it is ``E[sqrt(p (1 - p))] = B(alpha + 1/2, beta + 1/2) / B(alpha, beta)``.
    Divided by this mean, a prompt's gradient is off by the factor ``sqrt(p (1 - p)) / E[sqrt(p (1 -
    p))]``, whose mean under the posterior is 1. For other rewards it is the root of the expected
    variance.
    """
    if posterior.rewards is not None and not target.fits_accepted:
        return posterior.reward_moments(target)[1]
    alpha, beta = posterior.alpha, posterior.beta
    log = special.betaln(alpha + 0.5, beta + 0.5) - special.betaln(alpha, beta)
    return np.asarray(np.exp(log))
