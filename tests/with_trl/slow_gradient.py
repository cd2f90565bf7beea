"""The gradient of a step as TRL accumulates it, and as the estimator defines it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from dibs.allocation.deviations import expected_deviations
from dibs.allocation.estimators import weigh_rewards
from dibs.allocation.known_baselines import known_baselines
from training import build, judge


class Gradient(TrainerCallback):
    """Keeps the gradient of the first update, before it is applied."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in model.named_parameters()}


def slow_gradient(
    settings: dict[str, Any], divisors: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The estimate as ``dibs.allocation.estimators`` defines it, one completion at a time."""
    trainer, reward = build(settings)
    gradient = Gradient()
    trainer.add_callback(gradient)
    model = trainer.model
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    call, counts = reward.calls[0], reward.counts[0]
    level = {row["prompt"]: row["level"] for row in trainer.train_dataset}
    texts = trainer.processing_class.batch_decode(call["ids"], skip_special_tokens=True)
    rewards = np.array([judge(t, level[p]) for t, p in zip(texts, call["prompts"], strict=True)])
    options = trainer.dibs
    advantages, weights = weigh_rewards(
        np.split(rewards, np.cumsum(counts)[:-1]),
        options.target,
        options.estimator,
        accept_rates=trainer.budget._problem.posterior.accept_rate,
        deviations=expected_deviations(trainer.budget._problem.posterior, options.target),
        baselines=known_baselines(trainer.budget._problem.posterior, options.target),
        bessel=True,
        epsilon=1e-4,
        shares=trainer.budget._shares,
    )
    factors = np.concatenate(advantages) * np.concatenate(weights)
    model.load_state_dict(start)
    model.zero_grad()
    total = divisors(call["ids"], np.concatenate(weights))
    for prompt, ids, factor, divisor in zip(
        call["prompts"], call["ids"], factors, total, strict=True
    ):
        context = trainer.processing_class(prompt)["input_ids"]
        logits = model(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
        logprob = torch.log_softmax(logits, -1)[range(len(ids)), ids].sum()
        (-factor / divisor * logprob).backward()
    return gradient.found, {name: p.grad for name, p in model.named_parameters()}
