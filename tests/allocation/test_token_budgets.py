"""Budgets of tokens: never exceeded, spent as far as they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dibs import allocate
from dibs.allocation.allocators import solve
from dibs.allocation.problem import Bounds, Tokens, pose
from dibs.types import InputError, PromptStats

NAN = float("nan")


def test_a_budget_of_tokens():
    statistics: dict[str, Any] = {
        "trials": [8] * 4,
        "successes": [4] * 4,
        "grad_norm": [1.0] * 4,
    }
    lengths = [100.0, 100.0, 400.0, 400.0]
    even = allocate(**statistics, mean_tokens=lengths, token_budget=8000, allocator="uniform")
    assert even.tolist() == [8, 8, 8, 8]  # 100 + 100 + 400 + 400 tokens a round
    best = allocate(**statistics, mean_tokens=lengths, token_budget=8000)
    assert best[:2].min() > 1.5 * best[2:].max()
    assert best @ np.array(lengths) <= 8000 * 1.02  # expected lengths are shrunk a little
    with pytest.raises(InputError, match="a budget of tokens needs mean_tokens"):
        allocate(**statistics, token_budget=8000)
    with pytest.raises(InputError, match="one of tokens, and not both"):
        allocate(**statistics, mean_tokens=lengths, token_budget=8000, budget=3)
    with pytest.raises(InputError, match="budget 300 is smaller than the cost of the lower bounds"):
        allocate(**statistics, mean_tokens=lengths, token_budget=300, lower=1)


def test_all_allocators_keep_to_a_budget_of_tokens():
    rng = np.random.default_rng(0)
    for _ in range(50):
        m = int(rng.integers(1, 30))
        trials = rng.integers(1, 9, m)
        successes = rng.binomial(trials, rng.random(m))
        stats = PromptStats(
            [str(i) for i in range(m)],
            trials,
            successes,
            np.where(successes > 0, rng.lognormal(0, 1, m), NAN),
        )
        cost = rng.lognormal(4, 1, m)
        lower = rng.integers(0, 2, m)
        budget = float(lower @ cost + rng.random() * 8 * cost.sum())
        problem = pose(stats, Tokens(budget, cost), bounds=Bounds(lower, 40))
        for name in ("uniform", "gvm", "min_variance"):
            counts = solve(problem, name).counts
            left = budget - counts @ cost
            assert left >= -1e-6
            starved = (counts == lower) & (successes == 0) & (name == "gvm")
            assert not ((cost <= left) & (counts < 40) & ~starved).any()


def test_costs_never_put_a_bound_beyond_the_budget():
    rng = np.random.default_rng(0)
    stats = PromptStats(["a"], np.array([4]), np.array([2]), np.array([1.0]))
    for _ in range(60):
        cost, lower = rng.random(1) * 100 + 0.1, int(rng.integers(1, 9))
        for upper in (None, 9):
            problem = pose(stats, Tokens(float(lower * cost[0]), cost), bounds=Bounds(lower, upper))
            assert solve(problem, "min_variance").counts.tolist() == [lower]


@pytest.mark.parametrize("budget", [NAN, -3.0, np.inf, 1e17])
def test_impossible_budgets_of_tokens_are_named(budget):
    with pytest.raises(InputError, match="is not a number from 0"):
        allocate([4], [2], [1.0], mean_tokens=[5.0], token_budget=budget)


def test_tokens_of_one_a_completion_are_spent_as_far_as_they_go():
    """A budget of tokens is not exact, even where every completion costs one."""
    stats = PromptStats(["a", "b"], np.ones(2), np.ones(2), np.ones(2))
    for name in ("uniform", "min_variance", "gvm"):
        part = solve(pose(stats, Tokens(7.5, np.ones(2))), name).counts
        assert part.tolist() == [4, 3]
        full = solve(pose(stats, Tokens(50.0, np.ones(2)), bounds=Bounds(0, 4)), name).counts
        assert full.tolist() == [4, 4]
    problem = pose(stats, 7)
    assert problem.exact
    assert problem.cost.tolist() == [1, 1]
    with pytest.raises(InputError, match=r"budget 7\.5 is not a whole number"):
        pose(stats, 7.5)
