"""The KL to the reference model with the estimator's weights. Pure torch.

TRL adds the KL to the loss of every token, after the advantages, so weights in the advantages do not
reach it. Prompts with many completions would then be held to the reference model more than others.
"""

from __future__ import annotations

from torch import Tensor

from dibs.training.losses import kl_to_reference


def weighted_kl(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    old_logprobs: Tensor | None,
    mask: Tensor,
    weights: Tensor,
    *,
    level: str,
    loss_type: str,
    max_completion_length: int,
    tokens: Tensor,
    accumulation: int,
) -> tuple[Tensor, Tensor]:
    """Return a micro-batch's share of the loss for ``beta`` 1, and the KL of every token, [B, T].

    Args:
        logprobs, ref_logprobs: [B, T].
        old_logprobs: of the policy that drew the completions, [B, T]. The KL is then multiplied by the
            importance ratio (``use_bias_correction_kl``). None leaves out the ratio.
        mask: of the tokens that count, [B, T].
        weights: of the completions, [B]; their mean over the step is 1.
        level: of that ratio (``importance_sampling_level``): ``token`` or ``sequence``.
        loss_type: decides what TRL divides by: each completion's tokens (``grpo``, ``sapo``), a constant
            (``dr_grpo``), nothing (``luspo``), or, for the others, the tokens of an update.
        max_completion_length: the constant of ``dr_grpo``.
        tokens: of an update and process, a scalar; used by the last kind of ``loss_type``.
        accumulation: micro-batches in an update; used by the other kinds.
    """
    kl = kl_to_reference(logprobs, ref_logprobs)
    if old_logprobs is not None:
        log_ratio = logprobs - old_logprobs
        if level == "sequence":
            total = (log_ratio * mask).sum(-1, keepdim=True)
            log_ratio = total / mask.sum(-1, keepdim=True).clamp(min=1)
        kl = kl * log_ratio.exp()
    sums = weights * (kl * mask).sum(-1)
    if loss_type in ("grpo", "sapo"):
        loss = (sums / mask.sum(-1).clamp(min=1)).mean() / accumulation
    elif loss_type == "dr_grpo":
        loss = sums.mean() / max_completion_length / accumulation
    elif loss_type == "luspo":
        loss = sums.mean() / accumulation
    else:
        loss = sums.sum() / tokens
    return loss, kl.detach()
