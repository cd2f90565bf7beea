"""Factors of verl's advantages that turn verl's mean over completions into the weighted sum.

verl's losses except ``clip_cov``, ``kl_cov`` and ``dro`` are homogeneous in the advantage, so a weight
may multiply it. ``actor.loss_agg_mode`` decides what the loss is divided by:

=======================  ========================  ==============================================
mode                     divided by                hence the factor
=======================  ========================  ==============================================
``seq-mean-...``         completions               weight times completions
``token-sum``            nothing                   the same; at uniform counts verl's own sum
``token-mean``           tokens of the mini-batch  the same, with a mean over the step's tokens of
                                                   the weights' sum, 1 where every prompt has any
=======================  ========================  ==============================================

In ``token-mean`` prompts with many completions change the divisor, compared with uniform counts. The
mean over the step's tokens corrects it. At uniform counts all factors are 1.
"""

from __future__ import annotations

import numpy as np


def loss_factors(weights: np.ndarray, tokens: np.ndarray, loss_agg_mode: str) -> np.ndarray:
    """Return the factor of each completion's advantage, float64 [N].

    Args:
        weights: of the estimator, [N], with all normalization such as 1/(m n_i).
        tokens: of each completion that enter the loss, [N].
        loss_agg_mode: that of verl's configuration.
    """
    factors = weights * len(weights)
    if loss_agg_mode == "token-mean":
        weighted = float(factors @ tokens)
        mean = float(tokens.sum()) * float(weights.sum())
        factors = factors * (mean / weighted if weighted > 0 else 0.0)
    return factors
