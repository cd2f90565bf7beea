"""Per-prompt budgets in a trainer of your own, in thirty lines: the policy is one logit for each prompt.

Prompt i is answered correctly with probability sigmoid(logit_i). REINFORCE with a leave-one-out baseline
raises the mean accept rate. Of 128 prompts a step chooses some, with two completions or more of each:
those that are sometimes solved come often and get many, solved and hopeless ones come seldom.
"""

import json

import numpy as np

from dibs import BudgetConfig, PromptBudget

rng = np.random.default_rng(0)
prompt_ids = [f"prompt {i}" for i in range(128)]
logits = rng.normal(-1, 4, len(prompt_ids))
budget = PromptBudget(
    BudgetConfig(objective="expected_reward", baseline="leave_one_out", half_life=40)
)

for step in range(120):
    chosen = budget.choose(prompt_ids, budget=128)
    rates = 1 / (1 + np.exp(-logits[chosen.positions]))
    rewards = [rng.binomial(1, rate, n) for rate, n in zip(rates, chosen.counts, strict=True)]
    advantages, weights = budget.weights(rewards)
    for k, i in enumerate(chosen.positions):
        score = rewards[k] - rates[k]  # the derivative of each completion's log-probability
        logits[i] += 20 * (weights[k] * advantages[k] * score).sum()
    # Where the gradient norms of completions are known, they go in too: grad_norms=...
    budget.update(chosen.prompt_ids, rewards)
    if step % 40 == 39:
        accuracy = (1 / (1 + np.exp(-logits))).mean()
        print(
            f"step {step + 1}: mean accept rate {accuracy:.3f}; {chosen.counts.sum()} completions of "
            f"{len(chosen.counts)} of 128 prompts, {chosen.counts.max()} at most"
        )

print(json.dumps(budget.metrics()))
