"""How much each prompt counts in the objective. numpy only.

The objective is a mean over prompts, which may be weighed. A weight comes from what was known before the
step's completions were drawn, so it is a constant as far as their gradient goes: the gradient of the
weighed objective is estimated without bias.
"""

from __future__ import annotations

import numpy as np


def curverl_weights(accept_rate: np.ndarray, bins: int) -> np.ndarray:
    """CurveRL: prompts count by where they stand among the others, not by their accept rate as such.

    ``w_i = f(p_i) / F(p_i)`` (arXiv 2605.24331, Algorithm 1): f is the share of all prompts whose rate
    lies in the same bin as p_i, F the share of those in it and in the bins below. Hard prompts, and
    those that are like many others, count for more.

    Departures: the rates are those of the posterior, before the step; the paper takes the group's own
    rate, so that its weights depend on the completions that they weigh. The reference is the prompts of
    the step, or of its pool; the paper's is the last steps' groups. A prompt of rate 0 or 1 needs no
    exception, since no posterior rate is either.

    Args:
        accept_rate: of each prompt, in (0, 1), [m].
        bins: of equal width over [0, 1]; the paper has one more than a group has completions.

    Returns:
        float64 [m], in (0, 1].
    """
    place = np.minimum((np.asarray(accept_rate) * bins).astype(np.int64), bins - 1)
    mass = np.bincount(place, minlength=bins).astype(np.float64)
    weights: np.ndarray = mass[place] / mass.cumsum()[place]
    return weights
