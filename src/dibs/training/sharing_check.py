"""Checks, before a run, of prompts computed once for several completions.

Updates that share prompts must have the same gradient. Samples that go on from held keys and values of a
prompt must have the policy's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dibs.config import SamplingConfig, UpdateConfig
from dibs.model.forward_pass import in_evaluation_mode
from dibs.model.memory import out_of_memory
from dibs.model.policy import Batch, Policy
from dibs.model.prompt_sharing import share_prompts, unseen_window, why_not_shared
from dibs.processes import ALONE, Processes
from dibs.rollouts.sampling.cache import new_cache
from dibs.rollouts.sampling.sampler import SampleRequest, collected
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.dropout import set_update_mode
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from dibs.types import Prompt, TrainingExample

_ROUNDING = 1000
"""Relative difference that is allowed, in units of the rounding of what is compared."""
_SAMPLES, _SAMPLE_LENGTH = 3, 8
_SAMPLE_TOLERANCE = 1e-3
"""Difference of log-probabilities that is allowed, in nats."""


def made_up_examples(contexts: Sequence[Sequence[int]], longest: int) -> list[TrainingExample]:
    """Completions of 1, 3 and 5 tokens of each prompt, or shorter ones, made of its own tokens."""
    made = []
    for context in map(tuple, contexts):
        for i in range(3):
            length = min(1 + 2 * i, longest)
            tokens = (context[i:] + context * length)[:length]
            made.append(TrainingExample(context, tokens, 1.0 - 0.75 * i, 1.0))
    return made


def try_sharing(
    policy: Policy,
    examples: Sequence[TrainingExample],
    dropout: float = 0.0,
    processes: Processes = ALONE,
) -> str | None:
    """Let updates share prompts where that changes nothing; otherwise return why it stays off.

    Log-probabilities and the gradient of the examples are computed both ways and compared, in float32
    where products are mixed. ``.grad`` of the policy is None afterwards. All processes share prompts, or
    none does, since they deal completions among themselves by that.

    Args:
        examples: several completions of each of a few prompts, with advantages and weights.
        dropout: of LoRA's adapters.
    """
    found = _first_reason(
        processes, lambda: why_not_shared(policy, dropout) or _why_it_differs(policy, examples)
    )
    if found is None:
        share_prompts(policy, on=True)
    return found


def try_holding(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    length: int,
    processes: Processes = ALONE,
) -> str | None:
    """Let sampling hold a prompt's keys and values once for all its completions, or return why not.

    It may do so in float32 on a CPU, where updates share prompts and rows come and go; elsewhere this
    does nothing. On GPUs it was not measured, and in lower precision torch's own attention rounds less.
    A few samples are compared with the policy's log-probabilities. All processes do the same.

    Args:
        prompts: token ids of a few prompts.
        length: of completions, at most. Those of one token need nothing to go on from.
    """
    policy.holds_prompts = False
    exact = policy.model.dtype == torch.float32 and not policy.mixed
    if not (policy.shares_prompts and exact and policy.device.type == "cpu"):
        return None
    if length == 1 or not new_cache(policy.model)[1]:
        return None
    length = min(length, _SAMPLE_LENGTH)
    found = _first_reason(processes, lambda: _why_samples_differ(policy, prompts, length))
    policy.holds_prompts = found is None
    return found


def _first_reason(processes: Processes, work: Callable[[], str | None]) -> str | None:
    """The reason of the first process that has one, the same in all of them."""
    reasons = processes.all_gather_results(work)
    return next((reason for reason in reasons if reason is not None), None)


def _reason(policy: Policy, work: Callable[[], str | None]) -> str | None:
    """``work()``, or what the model's own code raises there; want of memory is raised again."""
    try:
        return work()
    except Exception as error:
        if out_of_memory(error):
            raise
        what = " ".join(str(error).split())[:200]
        return f"{type(policy.base_model).__name__} does not compute them: {what}"


def _why_samples_differ(
    policy: Policy, prompts: Sequence[Sequence[int]], length: int
) -> str | None:
    """Why a model's samples cannot go on from held prompts, from trying it; that is off afterwards."""
    policy.holds_prompts = True
    try:
        return _reason(policy, lambda: _sample_difference(policy, prompts, length))
    finally:
        policy.holds_prompts = False


def _sample_difference(policy: Policy, prompts: Sequence[Sequence[int]], length: int) -> str | None:
    """Why samples cannot go on from held prompts, from their log-probabilities and the learner's."""
    name = type(policy.base_model).__name__
    made = [Prompt(str(i), "", tuple(ids), "") for i, ids in enumerate(prompts)]
    requests = [SampleRequest(prompt, _SAMPLES, (i,)) for i, prompt in enumerate(made)]
    sampler = TransformersSampler(policy, length, SamplingConfig().batch_tokens)
    groups = collected(requests, sampler.sample(requests))
    drawn = [each for group in groups for each in group]
    if max(len(each.token_ids) for each in drawn) < 2:
        return f"samples of {name} end with their first token, so it could not be tried"
    examples = [
        TrainingExample(prompt.token_ids, each.token_ids, 0.0, 0.0)
        for prompt, group in zip(made, groups, strict=True)
        for each in group
    ]
    with torch.no_grad(), in_evaluation_mode(policy.model):
        scores = policy.logprobs(policy.collate(examples)).tolist()
    difference = max(
        abs(theirs - ours)
        for each, row in zip(drawn, scores, strict=True)
        for theirs, ours in zip(each.sampling_logprobs, row, strict=False)
    )
    if difference <= _SAMPLE_TOLERANCE:
        return None
    return f"log-probabilities of {name} would be off by {difference:.2g}"


def _why_it_differs(policy: Policy, examples: Sequence[TrainingExample]) -> str | None:
    """Why a model cannot share prompts, from trying it; sharing is off afterwards."""
    share_prompts(policy, on=True)
    try:
        with policy.full_precision():
            return _reason(policy, lambda: _difference(policy, examples))
    finally:
        share_prompts(policy, on=False)


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
