"""Pilot statistics and evaluation scores against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as distributions

from dibs.allocation.history import History
from dibs.allocation.intervals import clustered_interval
from dibs.allocation.posterior import expected_tokens, fit_posterior
from dibs.allocation.statistics import no_statistics, pilot_statistics
from dibs.allocation.target import BASELINES, Target
from dibs.rollouts.scores import score
from dibs.types import InputError, PromptStats
from tiny_groups import assert_equal_arrays, logprob_moments, make_group, make_prompt


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
    assert stats.rejected is not None
    assert stats.accepted is not None
    # Of b's two norms, 1 and 2: mean of ln is ln(2)/2, squares about it add up to ln(2)^2 / 2.
    assert_equal_arrays(stats.rejected.count, [2, 2, 0, 0])
    assert_equal_arrays(stats.rejected.log_norm[1], np.log(2) / 2)
    assert_equal_arrays(stats.rejected.log_norm_scatter[1], np.log(2) ** 2 / 2)
    assert_equal_arrays(stats.rejected.effective_count, [2, 2, 0, 0])
    assert_equal_arrays(stats.accepted.logprob, [-5, np.nan, -3, np.nan])


def test_nothing_known():
    stats = no_statistics([make_prompt("a"), make_prompt("b")])
    assert np.isnan(stats.accept_rate).all()
    np.testing.assert_allclose(fit_posterior(stats).accept_rate, [0.5, 0.5], atol=1e-6)


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


def draw(seed, m=400, trials=8, spread=1.0, classes=True):
    """Prompts with known rates and second moments, and the statistics of their pilots."""
    rng = np.random.default_rng(seed)
    rate = rng.beta(2, 3, m)
    level = rng.normal(1.0, spread, m)
    groups, norms = [], []
    for i in range(m):
        rewards = (rng.random(trials) < rate[i]).astype(float)
        groups.append(make_group(list(rewards), make_prompt(str(i))))
        norms.append(np.exp((level[i] + rng.normal(0, 0.5, trials)) / 2))
    return rate, np.exp(level + 0.125), pilot_statistics(groups, norms)


def test_the_posterior_is_calibrated():
    """95% intervals hold the truth for 95% of 400 prompts, within 4 standard errors (4.4%)."""
    rate, moment, stats = draw(0)
    posterior = fit_posterior(stats)
    low, high = distributions.beta.interval(0.95, posterior.alpha, posterior.beta)
    assert abs(np.mean((low <= rate) & (rate <= high)) - 0.95) < 0.044
    error = np.log(moment) - posterior.norms.log_square[0]
    assert abs(np.mean(np.abs(error) <= 1.96 * posterior.norms.deviation[0]) - 0.95) < 0.044


def test_the_posterior_is_nearer_to_the_truth_than_shares_and_means():
    rate, moment, stats = draw(1)
    posterior = fit_posterior(stats)
    assert ((posterior.accept_rate - rate) ** 2).mean() < 0.75 * (
        (stats.accept_rate - rate) ** 2
    ).mean()
    known = stats.successes > 0
    naive = 2 * np.log(stats.grad_norm[known]) - np.log(moment[known])
    ours = posterior.norms.log_square[0, known] - np.log(moment[known])
    assert (ours**2).mean() < 0.9 * (naive**2).mean()


def test_a_prompt_without_an_accepted_pilot_keeps_a_small_rate():
    _, _, stats = draw(2)
    posterior = fit_posterior(stats)
    failed = stats.successes == 0
    assert failed.any()
    assert (posterior.accept_rate[failed] > 0.01).all()
    assert (posterior.accept_rate[failed] < 0.25).all()


def test_many_pilots_leave_the_prior_behind():
    rate, moment, stats = draw(3, m=50, trials=4000)
    posterior = fit_posterior(stats)
    np.testing.assert_allclose(posterior.accept_rate, rate, atol=0.04)
    np.testing.assert_allclose(posterior.norms.log_square[0], np.log(moment), atol=0.1)


@pytest.mark.parametrize(
    ("trials", "successes", "norms"),
    [
        ([0, 0], [0, 0], [np.nan, np.nan]),
        ([8, 8], [0, 0], [np.nan, np.nan]),
        ([8, 8], [8, 8], [0.0, 0.0]),
        ([8], [8], [1.0]),
        ([1, 1000], [0, 1000], [np.nan, 1e-30]),
    ],
)
def test_degenerate_statistics_have_a_posterior(trials, successes, norms):
    posterior = fit_posterior(
        PromptStats(
            list(range(len(trials))), np.array(trials), np.array(successes), np.array(norms)
        )
    )
    assert ((posterior.accept_rate > 0) & (posterior.accept_rate < 1)).all()
    for objective, baselines in BASELINES.items():
        for baseline in baselines:
            moment = posterior.second_moment(Target(objective, baseline))
            assert (np.isfinite(moment) & (moment > 0)).all()


def squared_error(rate: np.ndarray, trials: int, successes: np.ndarray, **known) -> float:
    m = len(rate)
    stats = PromptStats(list(range(m)), np.full(m, trials), successes, np.ones(m), **known)
    return ((fit_posterior(stats).accept_rate - rate) ** 2).mean()


def test_log_probabilities_sharpen_the_accept_rate():
    """Where likely completions are the accepted ones, prompts that failed are told apart by them."""
    rng = np.random.default_rng(4)
    m, trials = 300, 4
    hardness = rng.normal(0, 1.5, m)
    rate = 1 / (1 + np.exp(hardness))
    successes = rng.binomial(trials, rate)
    known = {
        "accepted": logprob_moments(successes, -18.0 - hardness),
        "rejected": logprob_moments(trials - successes, -20.0 - hardness),
    }
    without = squared_error(rate, trials, successes)
    assert squared_error(rate, trials, successes, **known) < 0.3 * without


def test_uninformative_log_probabilities_do_no_harm():
    """Accepted completions are the likelier ones, but their mean says nothing beyond the successes."""
    rng = np.random.default_rng(5)
    m, trials = 300, 4
    rate = rng.beta(2, 2, m)
    successes = rng.binomial(trials, rate)

    def noisy(count, shift):
        noise = rng.normal(0, 1, m) / np.sqrt(np.maximum(count, 1))
        return logprob_moments(count, shift + noise)

    known = {"accepted": noisy(successes, -17.0), "rejected": noisy(trials - successes, -20.0)}
    without = squared_error(rate, trials, successes)
    assert squared_error(rate, trials, successes, **known) < 1.03 * without


@pytest.mark.parametrize("age", [0, 20, 60, 100])
def test_old_completions_widen_the_posterior_and_do_not_bend_it(age):
    """Discounted by 1, 1/2, 1/8 and 1/32: the level stays, the deviation grows."""
    rng = np.random.default_rng(6)
    m, trials = 300, 8
    level = rng.normal(1.0, 1.0, m)
    history = History(half_life=20)
    groups = [
        make_group([float(r) for r in rng.random(trials) < 0.5], make_prompt(str(i)))
        for i in range(m)
    ]
    norms = [np.exp((x + rng.normal(0, 1.0, trials)) / 2) for x in level]
    history.add(groups, norms, step=0)
    posterior = fit_posterior(history.statistics([str(i) for i in range(m)], step=age))
    truth = level + 0.5
    for log, deviation in (
        (posterior.norms.log_square[0], posterior.norms.deviation[0]),
        (posterior.norms.log_square[1], posterior.norms.deviation[1]),
    ):
        assert abs((log - truth).mean()) < 0.25
        covered = np.mean(np.abs(log - truth) <= 1.96 * deviation)
        assert 0.9 <= covered <= 1


def test_a_mean_norm_alone_is_not_taken_at_its_word():
    """Without moments the spread within a prompt is not known; one outlier is pulled to the others."""
    norms = np.ones(100)
    norms[0] = 30.0
    posterior = fit_posterior(PromptStats(list(range(100)), np.full(100, 8), np.ones(100), norms))
    assert posterior.norms.log_square[0, 0] - posterior.norms.log_square[0, 1] < 0.9 * 2 * np.log(
        30
    )


@pytest.mark.parametrize(
    ("objective", "baseline"),
    [("expected_reward", "none"), ("expected_reward", "mean"), ("grpo", "mean")],
)
def test_many_pilots_with_real_rewards_give_their_own_second_moments(objective, baseline):
    rng = np.random.default_rng(0)
    groups, norms, expected = [], [], []
    for i in range(4):
        rewards = rng.choice([0.0, 0.3, 1.0, 1.7], 4000, p=[0.3, 0.3, 0.2, 0.2]) * (i + 1) ** 0.5
        group = make_group(rewards.tolist(), make_prompt(f"0{i}"))
        size = np.exp(rng.normal(0, 0.3, 4000) + 0.3 * rewards / (i + 1) ** 0.5)
        a = rewards if baseline == "none" else rewards - rewards.mean()
        a = a / rewards.std() if objective == "grpo" else a
        groups.append(group)
        norms.append(size)
        expected.append(np.mean(a**2 * size**2))
    got = fit_posterior(pilot_statistics(groups, norms)).second_moment(Target(objective, baseline))
    np.testing.assert_allclose(got, expected, rtol=0.1)


def test_real_rewards_where_a_class_is_missing_stay_finite():
    groups = [make_group([0.2, 0.5, 0.0]), make_group([0.1], make_prompt("01"))]
    stats = pilot_statistics(groups, [np.ones(3), np.ones(1)])
    for objective, baseline in (("expected_reward", "none"), ("grpo", "mean")):
        moment = fit_posterior(stats).second_moment(Target(objective, baseline))
        assert (np.isfinite(moment) & (moment > 0)).all()
    # Rewards of 0 and 1 keep no moments of their own.
    plain = pilot_statistics([make_group([1, 0])], [np.ones(2)])
    assert plain.accepted is not None
    assert plain.accepted.rewards is None


def test_expected_tokens_lean_on_the_batch():
    group = make_group([1, 0, 1], length=3)
    stats = pilot_statistics([group, make_group([], make_prompt("01"))], [np.ones(3), np.ones(0)])
    assert expected_tokens(stats, otherwise=99.0).tolist() == [3, 3]
    longer = pilot_statistics(
        [group, make_group([1], make_prompt("01"), length=11)], [np.ones(3), np.ones(1)]
    )
    # pooled mean (9 + 11) / 4 = 5; (9 + 5) / 4 and (11 + 5) / 2
    assert expected_tokens(longer, otherwise=99.0).tolist() == [3.5, 8]
    assert expected_tokens(no_statistics([make_prompt()]), otherwise=99.0).tolist() == [99]
