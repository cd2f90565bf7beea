"""Advantages that judge counts: by hand, and their second moment against the truth."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.target import Target
from dibs.training.judging_advantages import judging_advantages

STEP = np.array([1.0, 0.0, 0.0, 1.0])
"""Rewards of a step, with mean 1/2."""


def test_by_hand():
    """Of 1 and 0 each sees the other and the step's 1/2: means (0 + .5) / 2 and (1 + .5) / 2."""
    rewards = np.array([1.0, 0.0])
    plain = judging_advantages(Target("expected_reward", "none"), rewards, rewards, STEP)
    assert plain.tolist() == [1, 0]
    centered = judging_advantages(Target("expected_reward", "mean"), rewards, rewards, STEP)
    assert centered == pytest.approx([0.75, -0.75])
    scaled = judging_advantages(Target("grpo", "mean"), rewards, rewards, STEP)
    assert scaled == pytest.approx(np.array([0.75, -0.75]) / np.sqrt(0.25 * 0.75))
    # None of the other k - 1 = 1 was accepted: a^2 is 2 * 3 / (1 * 2).
    likelihood = judging_advantages(Target("log_likelihood", "none"), rewards, rewards, STEP)
    assert likelihood == pytest.approx([np.sqrt(3), 0])


@pytest.mark.parametrize("rewards", [[], [1.0], [0.0], [1.0, 1.0], [0.0, 0.0]])
@pytest.mark.parametrize("name", ["log_likelihood", "expected_reward", "grpo"])
def test_degenerate_groups(name, rewards):
    target = Target(name, "mean")
    values = np.array(rewards)
    for of_step in (STEP, np.zeros(4), np.ones(4)):
        found = judging_advantages(target, values, values, of_step)
        assert found.shape == values.shape
        assert np.isfinite(found).all()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_the_second_moment_of_the_accepted_is_about_that_of_the_true_rate(p):
    """log_likelihood: E[r a^2] is 1/p with the true rate, but for the chance of too few successes."""
    rng = np.random.default_rng(0)
    total = 0.0
    for _ in range(4000):
        rewards = (rng.random(8) < p).astype(float)
        target = Target("log_likelihood", "none")
        total += float((judging_advantages(target, rewards, rewards, STEP) ** 2).mean())
    few = (1 - p) ** 9 + 9 * p * (1 - p) ** 8
    assert total / 4000 == pytest.approx((1 - few) / p, rel=0.05)
