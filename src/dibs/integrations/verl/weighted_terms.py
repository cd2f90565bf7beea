"""verl's actor and critic losses with a weight for each completion. They run in verl's workers.

verl multiplies the policy's loss by advantages, so weights may stand there. Its KL, its entropy and the
critic's squared error have no such place. Without weights in a batch the losses are verl's own.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, compute_value_loss, kl_penalty
from verl.utils.metric import AggregationType, Metric
from verl.utils.torch_functional import masked_mean
from verl.workers.utils.losses import ppo_loss, value_loss
from verl.workers.utils.padding import no_padding_2_padding

ACTOR_WEIGHTS, CRITIC_WEIGHTS = "dibs_actor_weights", "dibs_critic_weights"
"""Fields of verl's batches with the weight of each row, [rows, 1]."""


def actor_loss(
    config: Any, model_output: Any, data: Any, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """verl's ``ppo_loss``, whose KL and entropy have the weights of :data:`ACTOR_WEIGHTS`."""
    entropy = model_output.get("entropy", None)
    if ACTOR_WEIGHTS not in data or not (config.use_kl_loss or entropy is not None):
        loss, metrics = ppo_loss(config, model_output, data, dp_group)
        return loss, metrics
    plain = copy(config)
    object.__setattr__(plain, "use_kl_loss", False)
    outputs = {name: each for name, each in model_output.items() if name != "entropy"}
    loss, metrics = ppo_loss(plain, outputs, data, dp_group)
    fields = ["response_mask", ACTOR_WEIGHTS, *(["ref_log_prob"] if config.use_kl_loss else [])]
    padded = data.select(*fields).to_padded_tensor()
    mask = padded["response_mask"].to(bool)

    def weighted(values: Tensor, name: str) -> Tensor:
        found: Tensor = agg_loss(
            loss_mat=values * padded[ACTOR_WEIGHTS],
            loss_mask=mask,
            loss_agg_mode=config.loss_agg_mode,
            **plain.global_batch_info,
        )
        metrics[name] = Metric(value=found, aggregation=metrics["actor/pg_loss"].aggregation)
        return found

    if entropy is not None:
        spread = weighted(no_padding_2_padding(entropy, data), "actor/entropy_loss")
        loss = loss - config.entropy_coeff * spread
    if config.use_kl_loss:
        logprobs = no_padding_2_padding(model_output["log_probs"], data)
        kl = kl_penalty(logprobs, padded["ref_log_prob"], config.kl_loss_type)
        loss = loss + weighted(kl, "kl_loss") * config.kl_loss_coef
        metrics["kl_coef"] = config.kl_loss_coef
    return loss, metrics


def critic_loss(
    config: Any, model_output: Any, data: Any, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """verl's ``value_loss``, whose squared errors have the weights of :data:`CRITIC_WEIGHTS`.

    A squared error is multiplied by a weight where values, returns and the range of clipping are
    multiplied by its root.
    """
    if CRITIC_WEIGHTS not in data:
        loss, metrics = value_loss(config, model_output, data, dp_group)
        return loss, metrics
    found = no_padding_2_padding(model_output["values"], data)
    padded = data.select("values", "returns", "response_mask", CRITIC_WEIGHTS).to_padded_tensor()
    mask, root = padded["response_mask"].to(bool), padded[CRITIC_WEIGHTS].sqrt()
    batch = {name: data[name] for name in ("dp_size", "batch_num_tokens", "global_batch_size")}
    loss, clipped = compute_value_loss(
        vpreds=found * root,
        values=padded["values"] * root,
        returns=padded["returns"] * root,
        response_mask=mask,
        cliprange_value=config.cliprange_value * root,
        loss_agg_mode=config.loss_agg_mode,
        loss_scale_factor=config.loss_scale_factor,
        **batch,
    )
    of_whole_batch = batch["dp_size"] > 1 or any(
        each is not None
        for each in (
            batch["batch_num_tokens"],
            batch["global_batch_size"],
            config.loss_scale_factor,
        )
    )
    how = AggregationType.SUM if of_whole_batch else AggregationType.MEAN
    with torch.no_grad():
        return loss, {
            "critic/vf_loss": Metric(value=loss, aggregation=how),
            "critic/vf_clipfrac": clipped.item(),
            "critic/vpred_mean": masked_mean(found, mask).item(),
        }
