"""The truncated log-likelihood against subsets and outcomes, all of them counted."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dibs.allocation.allocators import allocate
from dibs.allocation.estimators import weigh_rewards
from dibs.allocation.order_k import expected_pass, order_k_advantages
from dibs.allocation.problem import Bounds, pose
from dibs.allocation.target import NOTHING, Target
from dibs.types import InputError, PromptStats
from tiny_groups import assert_equal_arrays

KINDS = np.array([0.5, 0.3, 0.2])
"""Shares of two accepted kinds and a rejected one, before the accept rate scales them."""


def shares(p: float) -> np.ndarray:
    """Probabilities of three kinds of completions; the first two are accepted, with chance p."""
    return np.array([KINDS[0] * p / 0.8, KINDS[1] * p / 0.8, 1 - p])


def scores(p: float) -> np.ndarray:
    """Gradients of the log-probabilities with respect to logits of the kinds, [3, 3]."""
    return np.eye(3) - shares(p)


def gradient_of_rate(p: float) -> np.ndarray:
    return np.array(shares(p)[:2] @ scores(p)[:2])


def weighted_sum(drawn, p, target, estimator, beside=NOTHING) -> np.ndarray:
    """The estimate of a prompt from the kinds that were drawn, from the functions that train."""
    kinds = np.array(drawn, dtype=int)
    ((advantages,), (weights,)) = weigh_rewards(
        [(kinds < 2).astype(float)],
        target,
        estimator,
        accept_rates=np.array([max(p, 1e-9)]),
        baseline_only=[beside],
    )
    return np.array((advantages * weights) @ scores(p)[kinds])


def expectation(n, p, target, estimator="order_k", beside=NOTHING) -> np.ndarray:
    """Over all outcomes of n draws, exactly."""
    total = np.zeros(3)
    for drawn in itertools.combinations_with_replacement(range(3), n):
        times = [drawn.count(kind) for kind in range(3)]
        ways = math.factorial(n) / math.prod(math.factorial(t) for t in times)
        total += (
            ways * np.prod(shares(p) ** times) * weighted_sum(drawn, p, target, estimator, beside)
        )
    return total


def order(k: int, baseline: str = "none") -> Target:
    return Target("log_likelihood", baseline, k)


@pytest.mark.parametrize(
    "accepted", [[1, 0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1], [1, 0], [0], [1], []]
)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_advantages_are_the_mean_of_self_normalized_ones_over_all_subsets(accepted, k):
    n, r = len(accepted), np.array(accepted, dtype=float)
    size = min(k, n)
    total, subsets = np.zeros(n), list(itertools.combinations(range(n), size))
    for subset in subsets:
        chosen = list(subset)
        if r[chosen].sum():
            total[chosen] += r[chosen] / r[chosen].sum()
    found = order_k_advantages(r, k, baseline=False, baseline_only=NOTHING)
    assert_equal_arrays(found / max(n, 1), total / len(subsets))


def test_advantages_match_hand_worked_numbers():
    r = np.array([1.0, 0, 0, 1, 0])
    # pass@2 of 2 in 5 is 1 - C(3, 2)/C(5, 2) = 0.7; over the accepted share of 0.4.
    assert_equal_arrays(order_k_advantages(r, 2, baseline=False, baseline_only=NOTHING), 1.75 * r)
    # The others hold 1 in 4 of an accepted completion, 2 in 4 of a rejected one: pass@2 1/2 and 5/6.
    found = order_k_advantages(r, 2, baseline=True, baseline_only=NOTHING)
    assert_equal_arrays(found, [1.25, -5 / 6, -5 / 6, 1.25, -5 / 6])
    # One more, rejected, that is only subtracted: 1 in 5 and 2 in 5, pass@2 of 0.4 and 0.7.
    found = order_k_advantages(r, 2, baseline=True, baseline_only=np.zeros(1))
    assert_equal_arrays(found, [1.35, -0.7, -0.7, 1.35, -0.7])


@pytest.mark.parametrize("baseline", ["none", "mean"])
@pytest.mark.parametrize("p", [0.0, 1 / 16, 0.3, 0.9, 1.0])
def test_the_expectation_is_the_truncated_gradient_whatever_the_count(p, baseline):
    for k, n in [(1, 2), (1, 5), (2, 2), (2, 3), (2, 6), (3, 4), (4, 4), (4, 7)]:
        factor = sum((1 - p) ** j for j in range(k))
        got = expectation(n, p, order(k, baseline))
        np.testing.assert_allclose(got, factor * gradient_of_rate(p), atol=1e-13)


def test_the_truncated_gradient_is_that_of_the_truncated_log_likelihood():
    k, p, step = 3, 0.3, 1e-6

    def value(rate: float) -> float:
        return -sum((1 - rate) ** j / j for j in range(1, k + 1))

    slope = (value(p + step) - value(p - step)) / (2 * step)
    assert slope == pytest.approx(float(expected_pass(p, k)) / p, rel=1e-8)


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_a_group_below_the_order_has_the_order_of_its_size(baseline):
    p = 1 / 16
    for n in (2, 3):
        got = expectation(n, p, order(4, baseline))
        np.testing.assert_allclose(got, expectation(n, p, order(n, baseline)), atol=1e-15)
    alone = expectation(1, p, order(4, baseline))
    expected = gradient_of_rate(p) if baseline == "none" else np.zeros(3)
    np.testing.assert_allclose(alone, expected, atol=1e-15)
    assert not expectation(0, p, order(4, baseline)).any()


@pytest.mark.parametrize("p", [1 / 16, 0.7])
@pytest.mark.parametrize("outcome", [(0, 2, 1, 2), (2, 2, 2), (0, 1, 0), (0, 2)])
def test_order_one_is_reinforce_and_the_order_of_the_count_is_self_normalized(p, outcome):
    """Outcome by outcome: REINFORCE of the accept rate without a baseline, RLOO with one."""
    for baseline, same in (("none", "none"), ("mean", "leave_one_out")):
        assert_equal_arrays(
            weighted_sum(outcome, p, order(1, baseline), "order_k"),
            weighted_sum(outcome, p, Target("expected_reward", same), "prompt_mean"),
        )
    assert_equal_arrays(
        weighted_sum(outcome, p, order(len(outcome)), "order_k"),
        weighted_sum(outcome, p, Target("log_likelihood", "none"), "self_normalized"),
    )


def test_the_mean_within_a_group_lowers_the_order_of_self_normalized_by_one():
    for p, n in itertools.product((1 / 16, 0.5), (2, 4, 7)):
        got = expectation(n, p, Target("log_likelihood", "mean"), "self_normalized")
        factor = sum((1 - p) ** j for j in range(n - 1))
        np.testing.assert_allclose(got, factor * gradient_of_rate(p), atol=1e-13)


@pytest.mark.parametrize("beside", [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0, 1.0]])
def test_completions_beside_a_group_do_not_bias_it_whatever_they_are(beside):
    for n in (3, 5):
        got = expectation(n, 0.3, order(3, "mean"), beside=np.array(beside))
        factor = float(expected_pass(0.3, 3)) / 0.3
        np.testing.assert_allclose(got, factor * gradient_of_rate(0.3), atol=1e-13)


def test_the_chance_of_passing_keeps_its_digits():
    assert expected_pass(0.0, 3) == 0
    assert expected_pass(1.0, 3) == 1
    assert expected_pass(1e-12, 4) == pytest.approx(4e-12, rel=1e-9)
    assert_equal_arrays(expected_pass(np.array([0.5, 0.25]), 2), [0.75, 0.4375])


def exact_variance(n: int, p: float, k: int) -> float:
    """Trace of the covariance of the estimate from n completions."""
    mean, square = np.zeros(3), 0.0
    for drawn in itertools.combinations_with_replacement(range(3), n):
        times = [drawn.count(kind) for kind in range(3)]
        ways = math.factorial(n) / math.prod(math.factorial(t) for t in times)
        estimate = weighted_sum(drawn, p, order(k), "order_k")
        chance = ways * np.prod(shares(p) ** times)
        mean, square = mean + chance * estimate, square + chance * estimate @ estimate
    return float(square - mean @ mean)


def moments(p: float) -> tuple[float, float]:
    """Q1 and M of the accepted kinds."""
    accepted = shares(p)[:2] / p
    mean = accepted @ scores(p)[:2]
    return float(accepted @ (scores(p)[:2] ** 2).sum(1)), float(mean @ mean)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_variance_of_many_completions_is_that_of_the_docstring(p, k):
    q1, m = moments(p)
    w = float(expected_pass(p, k)) / p
    chances = [
        math.comb(max(k - 2, 0), b) * p**b * (1 - p) ** (max(k - 2, 0) - b)
        for b in range(max(k - 2, 0) + 1)
    ]
    d = k * (k - 1) * p * sum(c / ((1 + b) * (2 + b)) for b, c in enumerate(chances))
    leading = p * (w**2 * q1 - 2 * w * d * m + d**2 * m) - (w - d) ** 2 * p**2 * m
    # Richardson: n Var = v + c/n + ..., so that 2 (2n) Var(2n) - n Var(n) has no c/n.
    n = 24
    limit = 2 * (2 * n) * exact_variance(2 * n, p, k) - n * exact_variance(n, p, k)
    assert limit == pytest.approx(leading, rel=0.02)
    bound = order(k).variance(np.array([p]), np.array([q1]), np.array([1.0]))[0]
    assert bound == pytest.approx(w**2 * p * q1)
    assert bound >= leading - 1e-12


@pytest.mark.parametrize("p", [1 / 16, 0.3, 0.7])
@pytest.mark.parametrize("k", [2, 4])
def test_the_variance_goes_with_one_over_n_from_the_order_on(p, k):
    q1, _ = moments(p)
    bound = float(order(k).variance(np.array([p]), np.array([q1]), np.array([1.0]))[0])
    shares_of_bound = [n * exact_variance(n, p, k) / bound for n in (k, 2 * k, 4 * k)]
    assert 0.5 < min(shares_of_bound) <= max(shares_of_bound) < 0.95
    assert shares_of_bound[-1] > 0.75 * shares_of_bound[0]


def test_counts_follow_the_second_moment_of_the_truncated_target():
    """Where nothing is known of the norms, sigma is about (1 - (1 - p)^k) / sqrt(p)."""
    stats = PromptStats("ab", np.array([4000, 4000]), np.array([1000, 40]), np.ones(2))
    plain = pose(stats, 40, Target("log_likelihood", "none")).sigma
    cut = pose(stats, 40, order(2)).sigma
    p = np.array([0.25, 0.01])
    assert cut[1] / cut[0] == pytest.approx(
        np.sqrt(p[0] / p[1]) * float(expected_pass(p[1], 2) / expected_pass(p[0], 2)), rel=0.05
    )
    assert cut[1] < cut[0] < plain[0] < plain[1]


def test_no_prompt_gets_fewer_completions_than_the_order():
    known: dict[str, Any] = {"trials": [8, 8], "successes": [0, 4], "grad_norm": [np.nan, 1.0]}
    for allocator in ("min_variance", "gvm", "uniform"):
        counts = allocate(**known, budget=20, order=3, allocator=allocator)
        assert counts.sum() == 20
        assert counts.min() >= 3
    with pytest.raises(InputError, match=r"lower the bounds \(.* at least its order, 11\)"):
        allocate(**known, budget=20, order=11)
    stats = PromptStats("ab", np.ones(2), np.ones(2), np.ones(2))
    with pytest.raises(InputError, match=r"exceeds upper bound 2 \(.* its order, 3\)"):
        pose(stats, 8, order(3), bounds=Bounds(0, 2))


def test_an_order_without_its_estimator_and_objective_is_refused():
    with pytest.raises(InputError, match="only log_likelihood has one"):
        Target("expected_reward", "none", 2)
    with pytest.raises(InputError, match="order 0"):
        order(0)
    for target, estimator in ((order(2), "self_normalized"), (Target("grpo", "mean"), "order_k")):
        with pytest.raises(InputError, match="order_k needs a target with an order"):
            weigh_rewards([np.ones(2)], target, estimator, accept_rates=np.ones(1))
