"""Per-prompt budgets in a trainer of your own: a policy of one logit a prompt, in thirty lines.

Prompt i is answered right with probability sigmoid(logit_i). REINFORCE with a group mean raises the mean
accept rate; the counts go where the gradient is noisy, and solved prompts get few.
"""

import json

import numpy as np

from dibs.allocation.prompt_budget import BudgetConfig, PromptBudget

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
    # The norm of that derivative is what tells noisy prompts from quiet ones.
    norms = [np.abs(right - rate) for right, rate in zip(rewards, rates, strict=True)]
    budget.update(prompt_ids, rewards, grad_norms=norms)
    if step % 10 == 9:
        print(
            f"step {step + 1}: mean accept rate {rates.mean():.3f}, counts {sorted(counts.tolist())}"
        )

print(json.dumps(budget.metrics()))
