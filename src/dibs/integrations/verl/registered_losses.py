"""RAFT and RAFT++ for verl: their losses and advantage estimator, in verl's registries.

The trainer's process and every worker must import this module.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss

from dibs.integrations.verl.options import ESTIMATOR, LOSSES
from dibs.training.losses import clipped_surrogate


@register_adv_est(ESTIMATOR)
def rewards_as_advantages(
    token_level_rewards: Tensor, response_mask: Tensor, **others: Any
) -> tuple[Tensor, Tensor]:
    """Return a completion's reward on each of its tokens, [B, T], twice.

    The trainer replaces it by the budget's advantages. Those depend on what decided the counts, which
    verl does not pass to estimators.
    """
    rewards = token_level_rewards.sum(-1, keepdim=True) * response_mask
    return rewards, rewards


@register_policy_loss(LOSSES["raft"])
def raft_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return ``-A ln pi``, which fits the accepted completions; of [B, T], a scalar."""
    return _aggregated(
        advantages * log_prob, response_mask, loss_agg_mode, config, rollout_is_weights
    ), {}


@register_policy_loss(LOSSES["raft++"])
def raft_plus_plus_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return RAFT's loss with the importance ratio, clipped at ``clip_ratio_low`` and ``_high``."""
    low, high = (
        config.clip_ratio if bound is None else bound
        for bound in (config.clip_ratio_low, config.clip_ratio_high)
    )
    # verl has an advantage for each token, clipped_surrogate one for each completion. So each token is
    # passed as a completion of length 1.
    surrogate, clipped = clipped_surrogate(
        log_prob.reshape(-1, 1), old_log_prob.reshape(-1, 1), advantages.reshape(-1), low, high
    )
    loss = _aggregated(
        surrogate.view_as(log_prob), response_mask, loss_agg_mode, config, rollout_is_weights
    )
    stopped = clipped.view_as(response_mask) & response_mask.bool()
    share = stopped.sum() / response_mask.sum().clamp(min=1)
    return loss, {"actor/pg_clipfrac": float(share)}


def _aggregated(
    surrogate: Tensor,
    mask: Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: Tensor | None,
) -> Tensor:
    if rollout_is_weights is not None:
        surrogate = surrogate * rollout_is_weights
    loss: Tensor = agg_loss(
        loss_mat=-surrogate,
        loss_mask=mask,
        loss_agg_mode=loss_agg_mode,
        **config.global_batch_info,
    )
    return loss
