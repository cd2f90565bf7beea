"""A check, before a run, that prompts computed once for several completions give the same gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dibs.config import UpdateConfig
from dibs.model.policy import Batch, Policy
from dibs.model.prompt_sharing import share_prompts, unseen_window, why_not_shared
from dibs.training.dropout import set_update_mode
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from dibs.types import TrainingExample

_ROUNDING = 1000
"""Relative difference that is allowed, in units of the rounding of what is compared."""


def try_sharing(
    policy: Policy, examples: Sequence[TrainingExample], dropout: float = 0.0
) -> str | None:
    """Let updates share prompts where that changes nothing; otherwise return why it stays off.

    Log-probabilities and the gradient of the examples are computed both ways and compared, in float32
    where products are mixed. ``.grad`` of the policy is None afterwards.

    Args:
        examples: several completions of each of a few prompts, with advantages and weights.
        dropout: of LoRA's adapters.
    """
    reason = why_not_shared(policy, dropout)
    if reason is not None:
        return reason
    share_prompts(policy, on=True)
    try:
        with policy.full_precision():
            reason = _difference(policy, examples)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        what = " ".join(str(error).split())[:200]
        reason = f"{type(policy.base_model).__name__} does not compute them: {what}"
    if reason is not None:
        share_prompts(policy, on=False)
    return reason


def _difference(policy: Policy, examples: Sequence[TrainingExample]) -> str | None:
    """Why prompts cannot be shared, from a batch computed both ways."""
    updater = Updater(policy, PolicyLoss(clip=None), UpdateConfig(), 1)
    set_update_mode(policy.model)

    def computed(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        updater.optimizer.zero_grad(set_to_none=False)
        logprobs = policy.logprobs(batch)
        advantages = logprobs.new_tensor([example.advantage for example in examples])
        (advantages @ logprobs.sum(1)).backward()
        return logprobs.detach(), updater.projection()

    packed = policy.pack(examples)
    try:
        logprobs, gradient = computed(policy.collate(examples))
        own, own_gradient = computed(packed)
    finally:
        updater.optimizer.zero_grad(set_to_none=True)
    window = unseen_window(policy, packed)
    if window is not None:
        return window
    rounding = min(_ROUNDING * torch.finfo(policy.model.dtype).eps, 0.1)
    same = (own - logprobs).norm() <= rounding * logprobs.norm()
    if same and (own_gradient - gradient).norm() <= rounding * gradient.norm():
        return None
    return f"{type(policy.base_model).__name__} would have another gradient"
