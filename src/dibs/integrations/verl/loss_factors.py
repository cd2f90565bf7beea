"""What multiplies verl's advantages, so that verl's mean over completions becomes the weighted sum.

verl's losses (but ``clip_cov``, ``kl_cov`` and ``dro``) are homogeneous in the advantage, so a weight
may multiply it. They are divided afterwards, by ``actor.loss_agg_mode``:

=======================  ========================  ==============================================
mode                     divided by                hence the factor
=======================  ========================  ==============================================
``seq-mean-...``         completions               weight times completions
``token-sum``            nothing                   the same; at uniform counts verl's own sum
``token-mean``           tokens of the mini-batch  the same, with a mean over the step's tokens of
                                                   the weights' sum, 1 where every prompt has any
=======================  ========================  ==============================================

In ``token-mean`` the tokens of prompts with many completions would make the divisor larger than it is at
uniform counts; that mean takes it out. At uniform counts all factors are 1.
"""

from __future__ import annotations

import numpy as np


def loss_factors(weights: np.ndarray, tokens: np.ndarray, loss_agg_mode: str) -> np.ndarray:
    """Factor of each completion's advantage, float64 [N].

    Args:
        weights: of the estimator, [N]; they hold all normalization (1/(m n_i) and kin).
        tokens: that enter the loss, [N].
        loss_agg_mode: verl's.
    """
    factors = weights * len(weights)
    if loss_agg_mode == "token-mean":
        weighted = float(factors @ tokens)
        mean = float(tokens.sum()) * float(weights.sum())
        factors = factors * (mean / weighted if weighted > 0 else 0.0)
    return factors
