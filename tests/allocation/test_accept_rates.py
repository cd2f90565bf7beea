"""Accept rates of prompts from few completions: no batch claims what it cannot show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dibs.allocation.accept_rates import _Likelihood, accept_rates, knows_likelihood
from dibs.types import PromptStats
from tiny_groups import logprob_moments


def means(
    trials: np.ndarray, successes: np.ndarray, logprobs: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    m = len(trials)
    classes: dict[str, Any] = {}
    if logprobs is not None:
        counts = (successes, trials - successes)
        names = ("accepted", "rejected")
        classes = {
            name: logprob_moments(count, values)
            for name, count, values in zip(names, counts, logprobs, strict=True)
        }
    alpha, beta = accept_rates(
        PromptStats(list(range(m)), trials, successes, np.ones(m), **classes)
    )
    found: np.ndarray = alpha / (alpha + beta)
    return found


@pytest.mark.parametrize("prompts", [1, 4, 16, 256])
@pytest.mark.parametrize("pilots", [1, 2, 4])
def test_a_batch_without_any_success_has_about_laplaces_rate(prompts, pilots):
    """Laplace's rule of succession gives 1 / (n + 2) after n failures; mirrored after n successes."""
    trials, none = np.full(prompts, float(pilots)), np.zeros(prompts)
    laplace = 1 / (prompts * pilots + 2)
    failed, solved = means(trials, none), means(trials, trials)
    np.testing.assert_allclose(failed, 1 - solved, rtol=1e-3)
    assert laplace / 4 < failed[0] < 2 * laplace
    np.testing.assert_allclose(failed, failed[0])


def test_0_of_64_by_the_issue():
    assert 0.003 < means(np.full(16, 4.0), np.zeros(16))[0] < 0.04


def test_log_probabilities_cannot_claim_certainty():
    """However well they seem to separate two pilots each, no rate is off by more than their reach."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(50):
        rate = rng.beta(0.5, 1.0, 16).clip(0.01, 0.99)
        successes = rng.binomial(2, rate).astype(float)
        accepted = np.log(rate) - rng.exponential(0.5, 16)
        rejected = np.log(1 - rate) - rng.exponential(3.0, 16)
        found = means(np.full(16, 2.0), successes, (accepted, rejected))
        worst = max(worst, float((rate / found)[successes > 0].max()))
    assert worst < 10


def test_an_accepted_completion_bounds_the_accept_rate_from_below():
    """It is one of the accepted ones: their probability is at least its own. And mirrored."""
    trials = np.full(3, 2.0)
    likely, unlikely = np.log([0.9, 0.9, 0.9]), np.log([1e-4, 1e-4, 1e-4])
    found = means(trials, np.array([1.0, 1.0, 1.0]), (likely, unlikely))
    assert (found >= 0.9 - 1e-9).all()
    found = means(trials, np.array([1.0, 1.0, 1.0]), (unlikely, likely))
    assert (found <= 0.1 + 1e-9).all()


def test_log_probabilities_that_contradict_each_other_are_left_aside():
    """Two completions of probability .9 cannot be of different classes; rounding may say so."""
    likely = np.log(np.full(4, 0.9))
    found = means(np.full(4, 2.0), np.ones(4), (likely, likely))
    np.testing.assert_allclose(found, 0.5, atol=0.01)


def test_log_probabilities_of_zero_or_nan_are_unknown():
    count = np.array([1.0, 2.0])

    def known(accepted: list[float], rejected: list[float]) -> bool:
        ends = [logprob_moments(count, np.array(values)) for values in (accepted, rejected)]
        stats = PromptStats(
            ["a", "b"], 2 * count, count, np.ones(2), accepted=ends[0], rejected=ends[1]
        )
        return knows_likelihood(stats)

    assert known([-1.0, -2.0], [-1.0, -3.0])
    assert known([0.0, 0.0], [-1.0, -3.0])
    assert not known([0.0, 0.0], [0.0, 0.0])
    assert not known([np.nan, -1.0], [-1.0, -1.0])
    assert not knows_likelihood(PromptStats(["a"], np.ones(1), np.ones(1), np.ones(1)))


@pytest.mark.parametrize("parameters", [[0.3, 0.4, 1.5], [-2.0, -1.1, 0.2], [-8.9, 2.9, 6.0]])
def test_the_gradient_of_the_fit_is_that_of_its_loss(parameters):
    rng = np.random.default_rng(0)
    trials = rng.integers(0, 9, 30)
    successes = rng.binomial(trials, rng.random(30))
    rows = (successes.astype(float), (trials - successes).astype(float), rng.normal(0, 1, 30))
    likelihood = _Likelihood(*rows, rng.integers(1, 4, 30).astype(float))
    found = likelihood.loss(np.array(parameters))[1]
    for i, each in enumerate(np.eye(3) * 1e-6):
        above, below = (likelihood.loss(np.array(parameters) + s * each)[0] for s in (1, -1))
        assert found[i] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-4)
