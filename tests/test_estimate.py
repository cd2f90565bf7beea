"""Pilot statistics and evaluation scores against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import assert_equal_arrays, make_group, make_prompt
from dibs.estimate import no_statistics, pilot_statistics, weighting_rates
from dibs.evaluate import clustered_interval, score
from dibs.types import InputError, PromptStats


def test_algorithm_2_by_hand():
    groups = [
        make_group([1, 0, 1, 0], make_prompt("a"), length=5),
        make_group([0, 0], make_prompt("b"), length=2),
        make_group([1], make_prompt("c")),
        make_group([], make_prompt("d")),
    ]
    norms = [np.array([3.0, 10.0, 5.0, 20.0]), np.array([1.0, 2.0]), np.array([7.0]), np.array([])]
    stats = pilot_statistics(groups, norms)
    assert list(stats.prompt_ids) == ["a", "b", "c", "d"]
    assert stats.trials.tolist() == [4, 2, 1, 0]
    assert stats.successes.tolist() == [2, 0, 1, 0]
    assert_equal_arrays(stats.accept_rate, [0.5, 0, 1, np.nan])
    assert_equal_arrays(stats.grad_norm, [4, np.nan, 7, np.nan])
    assert_equal_arrays(stats.grad_norm_rejected, [15, 1.5, np.nan, np.nan])
    assert_equal_arrays(stats.mean_tokens, [5, 2, 3, np.nan])
    assert_equal_arrays(weighting_rates(stats), [0.5, 1 / 3, 1, 1])


def test_nothing_known():
    stats = no_statistics([make_prompt("a"), make_prompt("b")])
    assert np.isnan(stats.accept_rate).all()
    assert_equal_arrays(weighting_rates(stats), [1, 1])


def test_statistics_that_cannot_be_name_the_prompt():
    with pytest.raises(InputError, match="prompt 'b': successes = 3 exceeds trials"):
        PromptStats(["a", "b"], np.array([1, 2]), np.array([1, 3]), np.array([1.0, 1.0]))


def test_scores_by_hand():
    result = score([make_group([1, 0]), make_group([0, 0]), make_group([1, 1])])
    assert result.accuracy == 0.5
    assert result.pass_at_k == pytest.approx(2 / 3)
    # Rates 1/2, 0, 1: variance 1/4, squared error 1/12, effective size 3. Wilson with z^2 = 3.8415:
    # half = 1.96 / (1 + 3.8415/3) * sqrt(0.25/3 + 3.8415/36) = 0.3747.
    assert (result.low, result.high) == pytest.approx((0.1253, 0.8747), abs=1e-4)


@pytest.mark.parametrize("rates", [[0.0], [1.0], [0.5], [0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.5]])
def test_intervals_of_degenerate_rates_are_sane(rates):
    low, high = clustered_interval(np.array(rates))
    assert 0 <= low <= np.mean(rates) <= high <= 1
    assert high > low


def test_the_interval_covers_at_about_its_level():
    rng = np.random.default_rng(0)
    inside, trials = 0, 2000
    for _ in range(trials):
        rates = rng.binomial(4, rng.beta(0.5, 0.5, 100)) / 4
        low, high = clustered_interval(rates)
        inside += low <= 0.5 <= high
    assert 0.93 < inside / trials < 0.97
