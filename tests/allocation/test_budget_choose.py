"""PromptBudget.choose: prompts and counts of any trainer, chosen together and without bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.prompt_budget import PromptBudget
from dibs.types import InputError

NAMES = [f"p{i}" for i in range(40)]
RATES = np.linspace(0.02, 0.98, 40)
SINGLE: dict[str, Any] = {"objective": "expected_reward", "baseline": "history"}


def informed(steps: int = 6, **options: Any) -> PromptBudget:
    """A budget that saw 8 completions of each prompt a step; hard prompts have large gradients."""
    budget = PromptBudget(BudgetConfig(**(options or SINGLE)))
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rewards = [rng.binomial(1, rate, 8).astype(float) for rate in RATES]
        norms = [np.where(r > 0, 3 * (1 - p), p) for r, p in zip(rewards, RATES, strict=True)]
        budget.update(NAMES, rewards, grad_norms=norms)
    return budget


def test_counts_add_up_and_follow_what_is_known():
    budget = informed()
    times = np.zeros(40)
    for _ in range(60):
        chosen = budget.choose(NAMES, 16)
        assert chosen.counts.sum() == 16
        assert chosen.counts.min() >= 1
        assert [NAMES[i] for i in chosen.positions] == chosen.prompt_ids
        times[chosen.positions] += chosen.counts
        budget.update(
            chosen.prompt_ids, [[]] * len(chosen.counts), grad_norms=[[]] * len(chosen.counts)
        )
    assert times[10:20].sum() > 2 * times[-5:].sum()
    metrics = budget.metrics()
    assert metrics["pool_size"] == 40
    assert isinstance(metrics["largest_weight"], float)
    assert 1 < metrics["largest_weight"] <= 4
    assert isinstance(metrics["expected_gain"], float)
    assert metrics["expected_gain"] > 1.05


def test_weights_make_the_sum_over_the_pool_right():
    """The sum of weight x reward is, in expectation, the mean reward of all prompts."""
    budget = informed(objective="expected_reward", baseline="none")
    rng, sums, plain = np.random.default_rng(1), [], []
    for seed in range(500):
        chosen = budget.choose(NAMES, 8, seed=seed)
        rewards = [
            rng.binomial(1, RATES[i], n).astype(float)
            for i, n in zip(chosen.positions, chosen.counts, strict=True)
        ]
        advantages, weights = budget.weights(rewards)
        sums.append(sum(float(a @ w) for a, w in zip(advantages, weights, strict=True)))
        plain.append(np.concatenate(rewards).mean())
        shares = [w.sum() for w in weights]
        assert shares == pytest.approx(chosen.shares.tolist())
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - RATES.mean()) < 5 * error
    assert abs(np.mean(plain) - RATES.mean()) > 5 * np.std(plain) / np.sqrt(len(plain))


def test_the_same_step_chooses_the_same_also_after_a_resume():
    budget = informed()
    state = budget.state()
    first = budget.choose(NAMES, 16)
    resumed = PromptBudget(BudgetConfig(**SINGLE))
    resumed.load_state(state)
    again = resumed.choose(NAMES, 16)
    assert again.prompt_ids == first.prompt_ids
    assert again.counts.tolist() == first.counts.tolist()
    other = resumed.choose(NAMES, 16, seed=1)
    assert other.prompt_ids != first.prompt_ids
    resumed.update(NAMES, [[1.0]] * 40)
    assert resumed.choose(NAMES, 16).prompt_ids != first.prompt_ids


def test_groups_unknown_prompts_and_repeated_ones():
    budget = informed(objective="expected_reward", baseline="leave_one_out")
    chosen = budget.choose([*NAMES, "new", "p3", "other"], 20, uniform_share=1.0)
    assert set(chosen.counts.tolist()) <= {2, 4}
    assert chosen.counts.sum() == 20
    every = budget.choose([*NAMES, "new", "p3", "other"], 86, uniform_share=1.0)
    assert every.positions.tolist() == list(range(43))
    assert set(every.counts.tolist()) == {2}
    advantages, weights = budget.weights([[1.0, 0.0]] * 43)
    assert advantages[0].tolist() == [1.0, -1.0]
    assert weights[0] == pytest.approx([1 / 86] * 2)


def test_nothing_known_and_a_fixed_batch_afterwards():
    budget = PromptBudget(BudgetConfig(**SINGLE))
    chosen = budget.choose(NAMES, 10)
    assert chosen.counts.tolist() == [1] * 10
    assert budget.metrics()["expected_gain"] == 1
    budget.allocate(["a", "b"], 8)
    assert [w.sum() for w in budget.weights([[1.0] * 4] * 2)[1]] == pytest.approx([0.5, 0.5])


def test_pilots_decide_for_a_pool_too():
    budget = PromptBudget(BudgetConfig(mode="pilot", **SINGLE))
    budget.take_pilots(NAMES, [[1.0, 0.0]] * 40)
    assert budget.choose(NAMES, 16).counts.sum() == 16
    with pytest.raises(InputError, match="pilots of 0 prompts, but 40"):
        budget.choose(NAMES, 16)


def test_a_function_of_the_user_weighs_the_prompts_of_a_pool(own_rules):
    own = own_rules(rule=lambda problem, rng: problem.posterior.accept_rate > 0.7)
    times = np.zeros(40)
    budget = informed(**SINGLE, allocator=own)
    for seed in range(60):
        chosen = budget.choose(NAMES, 16, seed=seed)
        times[chosen.positions] += chosen.counts
    assert times[30:].mean() > 4 * times[:25].mean() > 0


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (SINGLE, {"candidate_ids": []}, "no candidates"),
        (SINGLE, {"budget": 0}, "budget of 0 completions is not a multiple of group 1"),
        (SINGLE, {"budget": 9, "group": 2}, "budget of 9 completions is not a multiple of group 2"),
        (SINGLE, {"group": 0}, "group 0 is below 1"),
        ({}, {"group": 1}, "group 1 is below 2: baseline mean is that of a group; baselines none"),
        (SINGLE, {"uniform_share": 0.0}, "uniform_share 0 is not above 0"),
        (SINGLE, {"uniform_share": 2.0}, "uniform_share 2 is not above 0 and at most 1"),
        ({**SINGLE, "lower": 1}, {}, "lower and upper are for a fixed batch"),
        (
            {**SINGLE, "allocator": "knapsack"},
            {},
            "allocator knapsack decides counts of a fixed batch",
        ),
    ],
)
def test_what_cannot_be_chosen_is_one_clear_line(options, arguments, message):
    budget = PromptBudget(BudgetConfig(**options))
    with pytest.raises(InputError, match=message) as caught:
        budget.choose(**{"candidate_ids": NAMES, "budget": 16, **arguments})
    assert "\n" not in str(caught.value)
