"""Per-prompt budgets in a trainer of your own, in thirty lines: the policy is one logit for each prompt.

Prompt i is answered correctly with probability sigmoid(logit_i). REINFORCE with a leave-one-out baseline
raises the mean accept rate. Prompts whose gradient is noisy get many completions, solved prompts few.
"""

import json

import numpy as np

from dibs import BudgetConfig, PromptBudget

rng = np.random.default_rng(0)
prompt_ids = [f"prompt {i}" for i in range(32)]
logits = rng.normal(-1, 4, len(prompt_ids))
budget = PromptBudget(
    BudgetConfig(num_generations=8, objective="expected_reward", baseline="leave_one_out")
)

for step in range(30):
    rates = 1 / (1 + np.exp(-logits))
    counts = budget.allocate(prompt_ids)
    rewards = [rng.binomial(1, rate, count) for rate, count in zip(rates, counts, strict=True)]
    advantages, weights = budget.weights(rewards)
    for i, right in enumerate(rewards):
        score = right - rates[i]  # the derivative of each completion's log-probability
        logits[i] += 12 * (weights[i] * advantages[i] * score).sum()
    # The norms of that derivative show which prompts are noisy.
    norms = [np.abs(right - rate) for right, rate in zip(rewards, rates, strict=True)]
    budget.update(prompt_ids, rewards, grad_norms=norms)
    if step % 10 == 9:
        print(
            f"step {step + 1}: mean accept rate {rates.mean():.3f}, counts {sorted(counts.tolist())}"
        )

print(json.dumps(budget.metrics()))
