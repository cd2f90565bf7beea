"""Integer counts of least variance against brute force, with costs and without."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dibs.allocation.least_variance import least_variance

NAN = float("nan")


def greedy(sigma, budget, lower, upper):
    """One completion after another where it helps most; the first of a prompt before any second."""
    counts = lower.copy()
    for _ in range(budget - int(lower.sum())):
        gains = [
            (-1.0, 0.0)
            if n >= high
            else (1.0, s)
            if n == 0 and s > 0
            else (0.0, s**2 / (n * (n + 1)) if n else 0.0)
            for s, n, high in zip(sigma, counts, upper, strict=True)
        ]
        counts[gains.index(max(gains))] += 1
    return counts


def cost(sigma, counts):
    """What is left out comes first, then the variance of the rest."""
    varies = sigma > 0
    left_out = varies & (counts == 0)
    kept = varies & ~left_out
    return left_out.sum(), (sigma[left_out] ** 2).sum(), (sigma[kept] ** 2 / counts[kept]).sum()


@pytest.mark.parametrize("seed", range(20))
def test_least_variance_matches_brute_force(seed):
    """1,000 small cases in all: no count vector within the bounds does better."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        m = int(rng.integers(1, 5))
        sigma = np.exp(rng.normal(0, rng.choice([0.0, 0.5, 3.0, 20.0]), m))
        sigma[rng.random(m) < 0.15] = 0
        lower = rng.integers(0, 3, m)
        upper = lower + rng.integers(0, 6, m)
        budget = int(rng.integers(lower.sum(), upper.sum() + 1))
        counts = least_variance(sigma, budget, lower, upper)
        assert counts.sum() == budget
        assert (lower <= counts).all()
        assert (counts <= upper).all()
        ranges = [range(a, b + 1) for a, b in zip(lower, upper, strict=True)]
        every = (np.array(c) for c in product(*ranges) if sum(c) == budget)
        best = min(cost(sigma, counts) for counts in every)
        got = cost(sigma, counts)
        assert got[:2] == best[:2]
        assert got[2] <= best[2] * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_least_variance_matches_greedy_on_larger_problems(seed):
    rng = np.random.default_rng(seed)
    m = 200
    sigma = np.exp(rng.normal(0, 2, m))
    lower = rng.integers(0, 3, m)
    upper = lower + rng.integers(0, 60, m)
    budget = int(rng.integers(lower.sum(), upper.sum() + 1))
    counts = least_variance(sigma, budget, lower, upper)
    assert cost(sigma, counts) == pytest.approx(cost(sigma, greedy(sigma, budget, lower, upper)))


def test_least_variance_by_hand():
    def solve(sigma, budget, lower=0, upper=99):
        m = len(sigma)
        return least_variance(
            np.array(sigma, dtype=float), budget, np.full(m, lower), np.full(m, upper)
        ).tolist()

    # Second completions gain 9/2 and 1/2, third 9/6, fourth 9/12, fifth 9/20 < 1/2.
    assert solve([3, 1], 5) == [4, 1]
    assert solve([3, 1], 6) == [4, 2]
    assert solve([1, 1, 1], 7) == [3, 2, 2]
    assert solve([1, 3, 2], 2) == [0, 1, 1]  # too few for all: the largest sigma first
    assert solve([0, 0, 0], 4) == [2, 1, 1]
    assert solve([5, 0, 0], 9, upper=4) == [4, 3, 2]
    assert solve([5, 0, 0], 9) == [9, 0, 0]
    assert solve([2], 7) == [7]
    assert solve([1, 1e-200, 1e200], 12) == [1, 1, 10]
    assert solve([1, 2], 0) == [0, 0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.integers(0, 100), st.randoms())
def test_least_variance_is_monotone_and_blind_to_order(sigma, budget, random):
    sigma = np.array(sigma)
    m = len(sigma)
    bounds = np.zeros(m, dtype=np.int64), np.full(m, 100)
    counts = least_variance(sigma, budget, *bounds)
    for i, j in product(range(m), range(m)):
        if sigma[i] > sigma[j] * (1 + 1e-9):
            assert counts[i] >= counts[j]
    order = np.array(random.sample(range(m), m))
    shuffled = least_variance(sigma[order], budget, *bounds)
    assert sorted(shuffled) == sorted(counts)
    for value in np.unique(sigma):
        assert sorted(shuffled[sigma[order] == value]) == sorted(counts[sigma == value])


@pytest.mark.parametrize(
    ("sigma", "budget", "lower", "upper", "expected"),
    [
        ([1, 1e-35], 150, [0, 0], [100, 150], [100, 50]),
        ([1, 1e-140], 1500, [0, 0], [100, 1500], [100, 1400]),
        ([3, 1e-110, 1e110], 18, [3, 3, 0], [17, 8, 0], [15, 3, 0]),
    ],
)
def test_sigmas_of_very_different_size(sigma, budget, lower, upper, expected):
    counts = least_variance(np.array(sigma), budget, np.array(lower), np.array(upper))
    assert counts.tolist() == expected


def cheapest_variance(sigma, budget, lower, upper, cost):
    """By trying every vector of counts that the budget can pay for."""
    best = np.inf
    for counts in product(*(range(lo, hi + 1) for lo, hi in zip(lower, upper, strict=True))):
        if np.dot(counts, cost) <= budget:
            best = min(best, sum(s**2 / n for s, n in zip(sigma, counts, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(200))
def test_counts_of_unequal_cost_are_near_the_best(seed):
    """A knapsack: nothing affordable is left, and the variance is the best's but for one completion."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(1, 4))
    sigma, cost = rng.lognormal(0, 1.5, m), rng.integers(1, 20, m).astype(float)
    lower = rng.integers(1, 3, m)
    upper = lower + rng.integers(0, 9, m)
    budget = float(lower @ cost + rng.integers(0, 100))
    counts = least_variance(sigma, budget, lower, upper, cost)
    assert ((lower <= counts) & (counts <= upper)).all()
    left = budget - counts @ cost
    assert left >= 0
    assert (cost[counts < upper] > left).all()
    achieved = (sigma**2 / counts).sum()
    assert achieved >= cheapest_variance(sigma, budget, lower, upper, cost) * (1 - 1e-12)
    richer = cheapest_variance(sigma, budget - cost.max(), lower, upper, cost)
    assert achieved <= richer * (1 + 1e-12)


def test_equal_costs_change_nothing():
    rng = np.random.default_rng(0)
    sigma = rng.lognormal(0, 1, 1000)
    bounds = np.ones(1000, dtype=np.int64), np.full(1000, 50)
    plain = least_variance(sigma, 8000, *bounds)
    assert least_variance(sigma, 8000 * 7.0, *bounds, np.full(1000, 7.0)).tolist() == plain.tolist()


def test_counts_follow_sigma_over_the_root_of_the_cost():
    sigma, cost = np.array([1.0, 1.0, 2.0]), np.array([100.0, 400.0, 100.0])
    bounds = np.zeros(3, dtype=np.int64), np.full(3, 10**6)
    counts = least_variance(sigma, 1e6, *bounds, cost)
    # n ~ 1, 1/2, 2 and 100 + 200 + 200 = 500 tokens a unit: 2000, 1000, 4000
    assert np.abs(counts - [2000, 1000, 4000]).max() <= 1
