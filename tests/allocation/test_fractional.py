"""Fractional counts: optimal in expectation, rounded without bias, and of the promised variance."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.fractional import expected_counts, round_at_random, rounded_variance

RNG = 20261126


def test_expected_counts_by_hand():
    """sqrt(S / c) = 1, 2, 3 share 12; then the first is held up by its floor."""
    sigma, one, none = np.array([1.0, 2.0, 3.0]), np.ones(3), np.zeros(3)
    assert expected_counts(sigma, 12, one, none) == pytest.approx([2, 4, 6])
    assert expected_counts(sigma, 12, one, np.full(3, 3.0)) == pytest.approx([3, 3.6, 5.4])
    # A completion of the last costs 9: 3 / sqrt(9) = 1, and 1 + 2 + 9 a unit of scale.
    costs = np.array([1.0, 1.0, 9.0])
    assert expected_counts(sigma, 12, costs, none) == pytest.approx([1, 2, 1])
    # A row that stands for two prompts.
    twice = np.array([2.0, 1.0, 1.0])
    assert expected_counts(sigma, 14, one, none, twice) == pytest.approx([2, 4, 6])
    assert expected_counts(none, 6, one, none) == pytest.approx([2, 2, 2])
    assert expected_counts(np.array([0.0, 1.0]), 4, np.ones(2), np.full(2, 0.5)) == pytest.approx(
        [0.5, 3.5]
    )


def test_expected_counts_are_optimal():
    """No shift between two prompts lowers sum S / e."""
    rng = np.random.default_rng(RNG)
    for _ in range(50):
        m = int(rng.integers(2, 12))
        sigma, cost = rng.lognormal(0, 1, m), rng.lognormal(0, 1, m)
        budget = float(rng.uniform(0.5, 30))
        floor = np.full(m, 0.3 * budget / cost.sum())
        e = expected_counts(sigma, budget, cost, floor)
        assert e @ cost == pytest.approx(budget)
        assert (e >= floor - 1e-12).all()
        least = (sigma**2 / e).sum()
        for _ in range(20):
            i, j = rng.choice(m, 2, replace=False)
            shift = 1e-3 * min(e[i] * cost[i], e[j] * cost[j])
            other = e.copy()
            other[i] -= shift / cost[i]
            other[j] += shift / cost[j]
            if (other >= floor - 1e-12).all():
                assert (sigma**2 / other).sum() >= least - 1e-9


@pytest.mark.parametrize(
    "expected",
    [[0.5, 0.5], [0.25, 1.75, 3.0, 0.1, 0.9], [2.0, 0.0, 1.0], [0.3], [1.3, 0.4]],
    ids=["halves", "mixed", "whole", "one", "total not whole"],
)
def test_rounding_is_unbiased_and_keeps_the_total(expected):
    rng, e, times = np.random.default_rng(RNG), np.array(expected), 4000
    counts = np.array([round_at_random(e, rng) for _ in range(times)])
    assert ((counts == np.floor(e)) | (counts == np.ceil(e))).all()
    sums = counts.sum(1)
    assert ((sums == np.floor(e.sum() + 1e-9)) | (sums == np.ceil(e.sum() - 1e-9))).all()
    part = e - np.floor(e)
    error = np.sqrt(part * (1 - part) / times)
    assert (np.abs(counts.mean(0) - e) <= 5 * error + 1e-12).all()


def test_rounding_nothing_and_a_million():
    assert round_at_random(np.zeros(0), np.random.default_rng(0)).shape == (0,)
    e = np.random.default_rng(0).random(1_000_000)
    e *= 128 / e.sum()
    assert round_at_random(e, np.random.default_rng(1)).sum() == 128


def test_rounding_depends_on_the_seed_alone():
    e = np.full(40, 0.4)
    first, again, other = (round_at_random(e, np.random.default_rng(s)) for s in (3, 3, 4))
    assert first.tolist() == again.tolist() != other.tolist()


def test_the_variance_of_rounded_counts_by_repetition():
    """Scalar gradients N(mu_i, sigma_i^2), rounded prompt by prompt."""
    rng = np.random.default_rng(RNG)
    mean, spread = np.array([1.0, -2.0, 0.5, 3.0]), np.array([1.0, 0.5, 2.0, 1.0])
    e, times = np.array([0.3, 0.8, 1.6, 3.0]), 200_000
    counts = np.floor(e + rng.random((times, 4)))
    sums = counts * mean + np.sqrt(counts) * spread * rng.normal(size=(times, 4))
    drawn = (sums / e).sum(1)
    assert drawn.mean() == pytest.approx(mean.sum(), abs=5 * drawn.std() / np.sqrt(times))
    promised = rounded_variance(e, mean**2, spread**2).sum()
    assert drawn.var() == pytest.approx(promised, rel=0.03)


def test_the_variance_of_rounded_counts_by_hand():
    """k = 1/2: (4 + 2) 2 - 4 = 8; k = 1: 2; k = 2: 1; k = 3/2: 2 / 1.5 + 4 / 9."""
    k, ones = np.array([0.5, 1.0, 2.0, 1.5]), np.ones(4)
    assert rounded_variance(k, 4 * ones, 2 * ones) == pytest.approx([8, 2, 1, 4 / 3 + 4 / 9])
