"""Gradients of whole groups: against every subset of the completions, by hand, and degenerate ones."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from dibs.allocation.group_variance import (
    GroupGradient,
    PromptGradients,
    coefficients,
    features,
    mean_products,
    shares_of_parts,
    wanted,
)
from dibs.allocation.target import Target

LL = Target("log_likelihood", "none")
TARGETS = [
    LL,
    Target("log_likelihood", "mean"),
    Target("expected_reward", "none"),
    Target("expected_reward", "mean"),
    Target("expected_reward", "leave_one_out"),
    Target("grpo", "mean"),
]
REWARDS = np.array([1.0, 0, 0, 1, 0, 1, 0])


def scores(rewards: np.ndarray) -> np.ndarray:
    """Gradients in five dimensions, of which the first depends on the reward."""
    noise = np.random.default_rng(0).normal(size=(len(rewards), 5))
    return noise + rewards[:, None] * np.array([2.0, 0, 0, 0, 0]) - 0.5


def known(rewards: np.ndarray, s: np.ndarray, target: Target) -> PromptGradients:
    basis = features(rewards, target)
    sums = basis.T @ s
    squares = (s**2).sum(1)
    return PromptGradients(rewards, squares, mean_products(sums @ sums.T, basis, squares))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.objective}-{t.baseline}")
@pytest.mark.parametrize("estimator", ["prompt_mean", "self_normalized"])
@pytest.mark.parametrize(("count", "others"), [(1, 0), (2, 0), (4, 0), (2, 2), (3, 1)])
def test_the_second_moment_is_the_mean_over_all_subsets(target, estimator, count, others):
    s = scores(REWARDS)
    of_group = coefficients(target, estimator)
    prompt = known(REWARDS, s, target)
    squares, kept = [], []
    for group in combinations(range(7), count):
        rest = [i for i in range(7) if i not in group]
        for beside in combinations(rest, others):
            c = of_group(REWARDS[list(group)], REWARDS[list(beside)])
            vector = c @ s[list(group)]
            squares.append(vector @ vector)
            outside = [i for i in rest if i not in beside]
            kept.append(c @ (REWARDS[list(group)] - REWARDS[outside].mean()))
    gradient = GroupGradient(target, of_group)
    variance, share = gradient.variance_and_kept(prompt, count, others)
    signal = np.sum(gradient._of(prompt, count, others).signal * prompt.products)
    assert variance + signal == pytest.approx(np.mean(squares))
    assert share == pytest.approx(np.mean(kept), abs=1e-12)


def test_mean_products_are_means_over_pairs():
    s = scores(REWARDS)
    yes, no = s[REWARDS == 1], s[REWARDS == 0]

    def pairs(group):
        return np.mean([a @ b for a, b in combinations(group, 2)])

    own = known(REWARDS, s, Target("grpo", "mean")).products
    assert own[0, 0] == pytest.approx(pairs(no))
    assert own.sum() == pytest.approx(pairs(yes))
    assert own[0].sum() == pytest.approx(np.mean([a @ b for a in yes for b in no]))
    assert known(REWARDS, s, LL).products.item() == pytest.approx(pairs(yes))
    # One accepted completion has no pair.
    assert known(REWARDS[:3], s[:3], LL).products.item() == 0


@pytest.mark.parametrize(("signal", "ratio"), [(0.0, 0.68), (0.5, 0.83), (1.0, 1.31)])
def test_more_completions_of_a_rare_success_barely_lower_the_self_normalized_variance(
    signal, ratio
):
    """p = 1/16, ||s||^2 = 1: var = E[1/k; k > 0] (1 - M) + P(k > 0) (1 - P(k > 0)) M."""
    rewards = (np.arange(16_000) < 1000).astype(float)
    prompt = PromptGradients(rewards, np.ones(16_000), np.array([[signal]]))
    gradient = GroupGradient(LL, coefficients(LL, "self_normalized"))
    (few, kept), (many, more) = (gradient.variance_and_kept(prompt, n) for n in (8, 22))
    assert few / many == pytest.approx(ratio, abs=0.02)
    for share, n in ((kept, 8), (more, 22)):
        assert share == pytest.approx((1 - (15 / 16) ** n) * 15 / 16, rel=1e-3)
    lemma = GroupGradient(LL, coefficients(LL, "prompt_mean"))
    few, many = (lemma.variance_and_kept(prompt, n)[0] for n in (8, 22))
    assert few / many == pytest.approx(2.75, rel=1e-3)


def test_groups_larger_than_what_is_at_hand_are_drawn_with_replacement():
    prompt = known(REWARDS, scores(REWARDS), LL)
    variance, kept = GroupGradient(LL, coefficients(LL, "prompt_mean")).variance_and_kept(
        prompt, 20
    )
    p, q, m = 3 / 7, prompt.squares[REWARDS == 1].mean(), prompt.products.item()
    assert variance == pytest.approx((p * q - p**2 * m) / 20)
    assert kept == pytest.approx(p * (1 - p))


def test_rewards_between_0_and_1_by_drawing():
    rewards = np.array([1, 0.3, 0, 0.8, 0, 0.5, 0.1, 0.9])
    target = Target("expected_reward", "none")
    prompt = known(rewards, scores(rewards), target)
    variance, _ = GroupGradient(target, coefficients(target, "prompt_mean")).variance_and_kept(
        prompt, 4
    )
    basis = rewards @ rewards / 8
    expected = (np.mean(rewards**2 * prompt.squares) - basis**2 * prompt.products.item()) / 4
    assert variance == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.objective}-{t.baseline}")
@pytest.mark.parametrize("rewards", [np.zeros(4), np.ones(4), np.array([1.0, 0, 0, 0])])
def test_degenerate_prompts(target, rewards):
    prompt = known(rewards, scores(rewards), target)
    gradient = GroupGradient(target, coefficients(target, "self_normalized"))
    assert gradient.variance_and_kept(prompt, 0) == (0.0, 0.0)
    for count in (1, 2, 4, 9):
        variance, kept = gradient.variance_and_kept(prompt, count)
        assert np.isfinite([variance, kept]).all()
        if not rewards.any() or (target.has_baseline and (count == 1 or rewards.all())):
            assert variance == 0
        if count < 4:
            assert -1e-12 <= kept <= 1.5 * wanted(rewards, target) + 1e-12, count


def test_parts_are_averaged_and_scaled():
    prompt = known(REWARDS, scores(REWARDS), LL)
    gradient = GroupGradient(LL, coefficients(LL, "prompt_mean"))
    one, kept = gradient.variance_and_kept(prompt, 2)
    two, again = gradient.variance_and_kept(prompt, 3)
    variance, mean = shares_of_parts(
        gradient, [prompt], [np.array([2]), np.array([3])], [np.array([1.0]), np.array([2.0])]
    )
    assert variance.tolist() == [pytest.approx((one + 4 * two) / 4)]
    assert mean.tolist() == [pytest.approx((kept + 2 * again) / 2)]


@pytest.mark.parametrize(("trials", "order", "rate"), [(8, 2, 0.1), (6, 4, 0.3), (5, 4, 0.5)])
def test_what_is_wanted_of_an_order_is_unbiased(trials, order, rate):
    """(1 - p) (1 - (1 - p)^k), over all numbers of successes; k below the trials."""
    target = Target("log_likelihood", "none", order)
    total = 0.0
    for s in range(trials + 1):
        chance = math.comb(trials, s) * rate**s * (1 - rate) ** (trials - s)
        total += chance * wanted((np.arange(trials) < s).astype(float), target)
    assert total == pytest.approx((1 - rate) * (1 - (1 - rate) ** order))


def test_what_is_wanted_by_hand():
    half = np.array([0.0, 1])
    assert wanted(np.array([1.0, 0, 0, 0]), LL) == 0.75
    assert wanted(half, Target("expected_reward", "mean")) == pytest.approx(0.5)
    # 2 sqrt(1/4) - 1 times the mean deviation of groups of one
    assert wanted(half, Target("grpo", "mean")) == pytest.approx(1)
    assert wanted(np.zeros(5), Target("grpo", "mean")) == wanted(np.ones(5), LL) == 0
