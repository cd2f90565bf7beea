"""Which losses of TRL and verl divide a completion's gradient by its own length. numpy only.

Counts are decided for the gradient that is trained, so the norms that a plug-in reports must be of that
gradient. Before its advantage and weight, that of a completion of L tokens is ``s = grad log pi(y|x)``
over a divisor. As the two trainers compute their losses, at an importance ratio of 1:

========================================================  =======================  ==============
TRL's ``loss_type``                                       divided by               norm to report
========================================================  =======================  ==============
``grpo``, ``sapo``                                        L                        ``||s|| / L``
``dr_grpo``                                               a constant               ``||s||``
``luspo``                                                 nothing                  ``||s||``
``bnpo``, ``dapo``, ``cispo``, ``vespo``                  the batch's tokens       ``||s||``
========================================================  =======================  ==============

========================================================  =======================  ==============
verl's ``actor.loss_agg_mode``                            divided by               norm to report
========================================================  =======================  ==============
``seq-mean-token-mean``; losses ``sapo``, ``geo_mean``    L                        ``||s|| / L``
``seq-mean-token-sum-norm``                               a constant               ``||s||``
``seq-mean-token-sum``, ``token-sum``                     nothing                  ``||s||``
``token-mean``                                            the mini-batch's tokens  ``||s||``
========================================================  =======================  ==============

A divisor that all completions of a batch share changes no count, so nothing is divided by it.
``importance_sampling_level sequence`` of TRL and verl's ``gspo`` change the ratio only, whose gradient
at 1 is the same.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dibs.types import InputError

Normalization = Literal["none", "sequence"]
"""Whether completions have one divisor, or each its own length; as :class:`.PromptBudget` takes it."""
_OF_TRL: dict[str, Normalization] = {
    "grpo": "sequence",
    "sapo": "sequence",
    "dr_grpo": "none",
    "luspo": "none",
    "bnpo": "none",
    "dapo": "none",
    "cispo": "none",
    "vespo": "none",
}


def trl_normalization(loss_type: str) -> Normalization:
    """What TRL's ``loss_type`` divides by. Raises InputError for one that is not in the table."""
    if loss_type not in _OF_TRL:
        raise InputError(
            f"GRPOConfig.loss_type {loss_type}: it is not known what this loss divides a completion's "
            f"gradient by; set one of {', '.join(_OF_TRL)}, or DIBSConfig.grad_norm to none"
        )
    return _OF_TRL[loss_type]


def verl_normalization(loss_agg_mode: str) -> Normalization:
    """What verl divides by in the mode that its loss really uses (:func:`.verl.options.aggregation`)."""
    return "sequence" if loss_agg_mode == "seq-mean-token-mean" else "none"


def trained_norms(
    norms: np.ndarray, tokens: np.ndarray, normalization: Normalization
) -> np.ndarray:
    """Norms of the gradients that are trained, float64 [n].

    Args:
        norms: ``||s||`` of each completion, [n].
        tokens: of each completion that enter the loss, [n]. One without any has norm 0.
        normalization: of the loss.
    """
    if normalization == "none":
        return norms
    return norms / np.maximum(tokens, 1)
