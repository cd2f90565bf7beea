"""GRPO over a pool: groups of equal rewards have no gradient, so prompts that have many come seldom."""

from __future__ import annotations

import numpy as np
import pytest

from dibs import BudgetConfig, PromptBudget
from dibs.allocation.problem import pose
from dibs.allocation.target import Target
from dibs.types import PromptStats

RATES = np.array([0.0] * 4 + [0.02, 0.1, 0.3, 0.5, 0.7, 0.9] + [0.99] * 2 + [1.0] * 12)
NAMES = [f"p{i}" for i in range(len(RATES))]
WIDTH = 6
DIRECTIONS = np.random.default_rng(7).normal(size=(len(RATES), WIDTH))


def scores(rng: np.random.Generator, i: int, rewards: np.ndarray) -> np.ndarray:
    """Gradients of log-probabilities, whose mean over completions is 0; [n, WIDTH]."""
    signal = np.where(rewards == 1, 1 - RATES[i], -RATES[i])
    return signal[:, None] * DIRECTIONS[i] + rng.normal(size=(len(rewards), WIDTH))


def measured_budget(**options) -> PromptBudget:
    """A budget that knows four hundred completions of every prompt."""
    rng = np.random.default_rng(0)
    budget = PromptBudget(BudgetConfig(half_life=1e6, **options))
    rewards = [rng.binomial(1, rate, 400) for rate in RATES]
    norms = [np.linalg.norm(scores(rng, i, each), axis=1) for i, each in enumerate(rewards)]
    budget.allocate(NAMES)
    budget.update(NAMES, rewards, grad_norms=norms)
    return budget


def gradients(budget: PromptBudget, group: int, steps: int, seed: int) -> np.ndarray:
    """Gradients of repeated steps that all know the same, [steps, WIDTH]."""
    rng = np.random.default_rng(seed)
    found = np.zeros((steps, WIDTH))
    for step in range(steps):
        chosen = budget.choose(NAMES, 12 * group, group=group, seed=seed * steps + step)
        rewards = [
            rng.binomial(1, RATES[i], n).astype(float)
            for i, n in zip(chosen.positions, chosen.counts, strict=True)
        ]
        advantages, weights = budget.weights(rewards)
        for i, r, a, w in zip(chosen.positions, rewards, advantages, weights, strict=True):
            found[step] += (w * a) @ scores(rng, int(i), r)
    return found


@pytest.mark.parametrize(("group", "gain"), [(2, 1.6), (4, 1.8)])
def test_the_gradient_varies_less_and_is_the_same(group, gain):
    chosen = gradients(measured_budget(), group, 400, seed=1)
    uniform = gradients(measured_budget(allocator="uniform"), group, 400, seed=2)
    apart = chosen.mean(0) - uniform.mean(0)
    error = np.sqrt(chosen.var(0) / len(chosen) + uniform.var(0) / len(uniform))
    # A prompt that is chosen twice has one group of twice the size, of which GRPO's deviation differs.
    assert (np.abs(apart) < 4 * error + 0.02 * np.linalg.norm(uniform.mean(0))).all()
    assert uniform.var(0).sum() / chosen.var(0).sum() > gain


def test_how_often_rewards_of_a_group_differ():
    target = Target.named("grpo").of_groups(3)
    # By hand: 1 - 1/8 - 1/8, 1 - .001 - .729, and never.
    assert target.spread(np.array([0.5, 0.1, 0.0, 1.0])) == pytest.approx([0.75, 0.27, 0, 0])


@pytest.mark.parametrize(
    "target",
    [
        Target.named("grpo"),
        Target.named("expected_reward", "leave_one_out"),
        Target.named("log_likelihood", order=2),
        Target("grpo", "history", known_deviation=True),
    ],
)
def test_targets_that_do_not_depend_on_the_size_of_a_group(target):
    size = 1 if target == Target.named("grpo") else 4
    assert target.of_groups(size) is target


def test_a_pair_of_a_well_known_prompt_weighs_as_vip_does():
    """For pairs the second moment is 2 p (1 - p) times the squared norm."""
    trials, rates = 10**6, np.array([0.1, 0.5, 0.9])
    stats = PromptStats(["a", "b", "c"], np.full(3, trials), rates * trials, np.ones(3), np.ones(3))
    sigma = pose(stats, 6, Target.named("grpo").of_groups(2)).sigma
    expected = np.sqrt(2 * rates * (1 - rates))
    assert sigma / sigma[1] == pytest.approx(expected / expected[1], rel=0.02)
