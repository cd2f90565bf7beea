"""What multiplies the terms of verl's losses, row by row, so that they are the estimator's. numpy only.

verl's losses are means over completions, or over tokens. Each of their terms is multiplied by a factor
of the completion (:mod:`.loss_factors`): the advantages, the KL and the entropy in the actor's loss, and
the squared error in the critic's. So prompts count in each as they do at uniform counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dibs.allocation.prompt_budget import PromptBudget
from dibs.integrations.verl.groups import Groups
from dibs.integrations.verl.loss_factors import loss_factors
from dibs.integrations.verl.options import DR_GRPO, ESTIMATOR, aggregation


class RowWeights(NamedTuple):
    """Numbers of each row, float64 [rows].

    ``own``: the budget's advantages. ``advantages``: factors of the advantages that are trained on.
    ``actor``: factors of the other terms of the actor's loss. ``critic``: those of the critic's loss.
    """

    own: np.ndarray
    advantages: np.ndarray
    actor: np.ndarray
    critic: np.ndarray

    @property
    def change_nothing(self) -> bool:
        """Whether all factors are 1 in single precision, as at uniform counts."""
        factors = np.stack(self[1:])
        return bool((factors.astype(np.float32) == 1).all())


def weigh_rows(
    budget: PromptBudget,
    config: Any,
    groups: Groups,
    tokens: np.ndarray,
    rewards: Sequence[Sequence[float]],
) -> RowWeights:
    """Weigh the rows of a step by the counts that the budget gave.

    Args:
        budget: after its ``allocate`` or ``choose`` for the step.
        config: verl's.
        tokens: of each row that enter the loss, [rows].
        rewards: of each prompt's completions.
    """
    advantages, weights = budget.weights(rewards)
    written, flat = np.concatenate(groups.total(tokens)), np.concatenate(weights)
    ends = np.cumsum(groups.sizes)[:-1]
    own = config.actor_rollout_ref.actor
    # A policy's loss may have a mean of its own; KL and entropy beside it never have.
    policy, actor, critic = (
        np.split(loss_factors(flat, written, str(mode)), ends)
        for mode in (aggregation(own), own.loss_agg_mode, config.critic.loss_agg_mode)
    )
    scales = [_scale(budget, config, len(each)) for each in policy]
    factors = [each * scale for each, scale in zip(policy, scales, strict=True)]
    return RowWeights(
        groups.spread(advantages),
        *(groups.spread(each, padding=1.0) for each in (factors, actor, critic)),
    )


def _scale(budget: PromptBudget, config: Any, size: int) -> float:
    """What a group of ``size`` needs besides, so that its advantages are those of the uniform size n.

    verl subtracts the mean of all rewards of a group, a completion's own included. So the gradient of a
    group of k is (k - 1)/k of the target's, and uniform groups have (n - 1)/n of it. In a group of one,
    verl takes the reward for the advantage; a baseline of the group leaves it none.
    """
    options = budget.config
    if options.target.needs_groups and size < 2:
        return 0.0
    verls = config.algorithm.adv_estimator != ESTIMATOR and options.estimator != "flat"
    if not verls or options.target != DR_GRPO or size < 2:
        return 1.0
    return size * (options.num_generations - 1) / ((size - 1) * options.num_generations)


def whiten(advantages: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give advantages [rows, T] a weighted mean of 0 and a weighted deviation of 1, over the mask.

    verl whitens a critic's advantages over all tokens of the batch, so prompts with many completions
    would decide its mean and deviation. As whitening undoes shifts and scales, whitened advantages are
    whitened anew. Tokens outside the mask have no meaning.
    """
    counted = mask * weights[:, None]
    total, tokens = counted.sum(), mask.sum()
    if total <= 0 or tokens < 2:
        return advantages
    centered = advantages - (counted * advantages).sum() / total
    variance = (counted * centered**2).sum() / total * tokens / (tokens - 1)
    result: np.ndarray = centered / np.sqrt(variance + 1e-8)
    return result
