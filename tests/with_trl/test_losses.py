"""The gradient of every loss of TRL, for ragged groups of completions of uneven lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from dibs.allocation.estimators import weigh_rewards
from dibs.allocation.target import Target
from dibs.training.losses import kl_to_reference
from training import SKEWED, TARGET, Reward, build, judge, uneven

pytestmark = pytest.mark.trl
RERUN = {"steps_per_generation": 8, "num_iterations": 2, "max_steps": 4, "beta": 0.5}
"""A generation batch of 64 rows, 2 updates of it, each twice, with a KL."""
GATHERED = {"steps_per_generation": 2, "max_steps": 2}
"""Two generation batches of 16 rows an update."""


class Gradients(TrainerCallback):
    """Keeps the gradient of every update."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters()})


def divisors(loss_type: str, lengths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What TRL divides each completion's sum over tokens by."""
    if loss_type in ("grpo", "sapo"):
        return lengths
    constant = {"dr_grpo": 8.0, "luspo": 1.0}.get(loss_type, float(weights @ lengths))
    return np.full(len(lengths), constant)


def slow_gradient(trainer: GRPOTrainer, reward: Reward) -> dict[str, torch.Tensor]:
    """The mean over generation batches of what ``estimators`` computes, one completion at a time."""
    model, beta, tokens = trainer.model, trainer.args.beta, trainer.processing_class
    level = {row["prompt"]: row["level"] for row in trainer.train_dataset}
    model.zero_grad()
    for call, counts in zip(reward.calls, reward.counts, strict=True):
        texts = tokens.batch_decode(call["ids"], skip_special_tokens=True)
        rewards = [judge(t, level[p]) for t, p in zip(texts, call["prompts"], strict=True)]
        advantages, weights = map(
            np.concatenate,
            weigh_rewards(
                np.split(np.array(rewards), np.cumsum(counts)[:-1]),
                Target(**TARGET),
                "prompt_mean",
                accept_rates=np.ones(len(counts)),
            ),
        )
        lengths = np.array([float(len(ids)) for ids in call["ids"]])
        shares = weights / divisors(trainer.loss_type, lengths, weights) / len(reward.calls)
        for prompt, ids, advantage, share in zip(
            call["prompts"], call["ids"], advantages, shares, strict=True
        ):
            context = tokens(prompt)["input_ids"]

            def logprobs(of: Any, context: Any = context, ids: Any = ids) -> torch.Tensor:
                logits = of(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
                return torch.log_softmax(logits, -1)[range(len(ids)), ids]

            own = logprobs(model)
            loss = -advantage * own.sum()
            if beta:
                with torch.no_grad():
                    reference = logprobs(trainer.ref_model)
                ratio = (own - own.detach()).exp() if trainer.args.use_bias_correction_kl else 1.0
                loss = loss + beta * (kl_to_reference(own, reference) * ratio).sum()
            (share * loss).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("updates", "allocator"),
    [(RERUN, SKEWED["allocator"]), (GATHERED, "training:first")],
    ids=["rerun", "gathered"],
)
@pytest.mark.parametrize(
    "loss_type", ["grpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo", "vespo"]
)
def test_the_gradient_is_that_of_the_loss(byte_model, tmp_path, loss_type, updates, allocator):
    options = {"loss_type": loss_type, "learning_rate": 0.0, "max_grad_norm": 1e9, **updates}
    if loss_type == "cispo":
        options["epsilon_high"] = 1.5
    trainer, reward = build(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": {**SKEWED, **TARGET, "allocator": allocator},
            "grpo": options,
        }
    )
    if trainer.ref_model is not None:
        torch.manual_seed(3)
        for parameter in trainer.ref_model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    trainer.rollout_func = uneven(seed=5)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    assert len(gradients.found) == updates["max_steps"]
    assert all(len({len(ids) for ids in call["ids"]}) > 3 for call in reward.calls)
    expected = slow_gradient(trainer, reward)
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        found = torch.stack([each[name] for each in gradients.found]).mean(0)
        torch.testing.assert_close(found, gradient, atol=1e-5 * largest, rtol=1e-4)
