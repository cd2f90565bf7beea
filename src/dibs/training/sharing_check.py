"""A check, before a run, of prompts computed once for several completions.

They must give the same gradient, and completions that go on from them the policy's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from dibs.config import SamplingConfig, UpdateConfig
from dibs.model.memory import out_of_memory
from dibs.model.policy import Batch, Policy
from dibs.model.prompt_sharing import share_prompts, unseen_window, why_not_shared
from dibs.processes import ALONE, Processes
from dibs.rollouts.sampling.parity import ParityCheck
from dibs.rollouts.sampling.sampler import Sampled, SampleRequest
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.dropout import set_update_mode
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from dibs.types import TrainingExample

_ROUNDING = 1000
"""Relative difference that is allowed, in units of the rounding of what is compared."""


def try_sharing(
    policy: Policy,
    examples: Sequence[TrainingExample],
    dropout: float = 0.0,
    processes: Processes = ALONE,
) -> str | None:
    """Let updates and sampling share prompts where that changes nothing; otherwise return why not.

    Log-probabilities and the gradient of the examples are computed both ways and compared, in float32
    where products are mixed. ``.grad`` of the policy is None afterwards. All processes share prompts, or
    none does, since they deal completions among themselves by that.

    Args:
        examples: several completions of each of a few prompts, with advantages and weights.
        dropout: of LoRA's adapters.
    """
    reasons = processes.all_gather_results(
        lambda: why_not_shared(policy, dropout) or _why_it_differs(policy, examples)
    )
    found = next((reason for reason in reasons if reason is not None), None)
    if found is None:
        share_prompts(policy, on=True)
    return found


def _why_it_differs(policy: Policy, examples: Sequence[TrainingExample]) -> str | None:
    """Why a model cannot share prompts, from trying it; sharing is off afterwards."""
    share_prompts(policy, on=True)
    try:
        with policy.full_precision():
            _check_sampling(policy)
            return _difference(policy, examples)
    except Exception as error:  # whatever a model's own code raises
        if out_of_memory(error):
            raise
        what = " ".join(str(error).split())[:200]
        return f"{type(policy.base_model).__name__} does not compute them: {what}"
    finally:
        share_prompts(policy, on=False)


def _check_sampling(policy: Policy) -> None:
    """InputError if completions that go on from a shared prompt have other log-probabilities."""

    def draw(requests: Sequence[SampleRequest], length: int) -> Iterable[Sampled]:
        return TransformersSampler(policy, length, SamplingConfig().batch_tokens).sample(requests)

    ParityCheck(policy, SamplingConfig())("the sampler", draw, "see policy.share_prompts")


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
