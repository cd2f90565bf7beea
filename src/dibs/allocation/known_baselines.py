"""Baselines of which other completions of a prompt tell: those that decided its count, or earlier steps.

They depend on no completion that they are subtracted from, so they leave the gradient unbiased at any
count. A group of one, which has no baseline of its own, can be learned from.
"""

from __future__ import annotations

from dibs.allocation.posterior import Posterior
from dibs.allocation.target import KnownBaseline, Target


def known_baselines(posterior: Posterior, target: Target) -> list[KnownBaseline] | None:
    """What each of m prompts has for a baseline under the posterior; None where the target needs none.

    The weight is that of the accept rate's Beta distribution, ``alpha + beta``, also for rewards of
    other values.
    """
    if not target.knows_baseline:
        return None
    means = posterior.reward_moments(target)[0]
    weights = posterior.alpha + posterior.beta
    return [KnownBaseline(*pair) for pair in zip(means.tolist(), weights.tolist(), strict=True)]
