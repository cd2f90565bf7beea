"""Examples for the tiny policies of the tests, and their log-probabilities the slow way."""

from __future__ import annotations

from random import Random

import torch

from dibs.config import UpdateConfig
from dibs.data.arithmetic import draw_problem
from dibs.model.policy import Policy
from dibs.rollouts.sampling.annealing import Annealing
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from dibs.types import Completion, Prompt, TrainingExample

RAFT = PolicyLoss(clip=None)
RATIO = PolicyLoss(clip=(0.2, 0.28))


def examples(policy: Policy, count: int, seed: int = 0) -> list[TrainingExample]:
    """Ragged contexts and completions of the embedded task."""
    rng = Random(seed)
    encode = policy.tokenizer.encode
    made = []
    for _ in range(count):
        problem = draw_problem(rng, 1, 4)
        completion = [*encode(problem.demonstration(rng)), policy.tokenizer.eos_token_id]
        made.append(
            TrainingExample(
                tuple(encode(problem.prompt)), tuple(completion), rng.gauss(0, 1), rng.random()
            )
        )
    return made


def naive_logprobs(policy: Policy, example: TrainingExample) -> torch.Tensor:
    """One unpadded sequence through the whole model."""
    ids = torch.tensor([[*example.context_ids, *example.completion_ids]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0].float() / policy.temperature
    table = logits.log_softmax(-1)
    start = len(example.context_ids)
    return torch.stack(
        [table[start + t - 1, token] for t, token in enumerate(example.completion_ids)]
    )


def updater(policy: Policy, loss: PolicyLoss = RAFT, **options) -> Updater:
    reference = policy.frozen_copy() if loss.beta else None
    return Updater(policy, loss, UpdateConfig(**options), 100, reference)


def gradient_of(maker, made, old=None):
    maker.optimizer.zero_grad(set_to_none=False)
    maker.gradient(made, None if old is None else [value.reshape(1) for value in old])
    return torch.cat([p.grad.flatten() for p in maker.parameters]).clone()


def annealed_logprobs(
    policy: Policy, prompt: Prompt, completion: Completion, annealing: Annealing
) -> torch.Tensor:
    """``log pi`` of each token of a completion, at the temperature of its place; [T]."""
    ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, len(prompt.token_ids) - 1 : -1]
    places = torch.arange(len(completion.token_ids))
    cooled = logits / policy.temperature / annealing.at(places)[:, None]
    return cooled.log_softmax(-1)[places, list(completion.token_ids)]
