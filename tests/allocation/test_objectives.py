"""Advantages and weights against numbers worked by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.estimators import weigh, weigh_rewards
from dibs.allocation.target import (
    BASELINES,
    LOG_LIKELIHOOD,
    KnownBaseline,
    Target,
    unbiased_baseline,
)
from dibs.types import InputError, RewardMoments
from tiny_groups import assert_equal_arrays, make_group

REWARDS = np.array([1.0, 0.0, 0.0, 1.0, 0.0])  # mean 0.4, population std sqrt(0.24)


@pytest.mark.parametrize(
    ("objective", "baseline", "expected"),
    [
        ("log_likelihood", "none", [2, 0, 0, 2, 0]),
        ("log_likelihood", "mean", [1.2, -0.8, -0.8, 1.2, -0.8]),
        ("expected_reward", "none", [1, 0, 0, 1, 0]),
        ("expected_reward", "mean", [0.6, -0.4, -0.4, 0.6, -0.4]),
        ("expected_reward", "leave_one_out", [0.75, -0.5, -0.5, 0.75, -0.5]),
        (
            "grpo",
            "mean",
            [
                0.6 / math.sqrt(0.24),
                *([-0.4 / math.sqrt(0.24)] * 2),
                0.6 / math.sqrt(0.24),
                -0.4 / math.sqrt(0.24),
            ],
        ),
    ],
)
def test_advantages_match_hand_worked_numbers(objective, baseline, expected):
    assert_equal_arrays(Target(objective, baseline).advantages(REWARDS, 0.5), expected)


@pytest.mark.parametrize(
    ("objective", "baseline", "rewards", "beside", "expected"),
    [
        ("expected_reward", "leave_one_out", [1, 0], [1, 1], [1 / 3, -1]),
        (
            "expected_reward",
            "mean",
            [1],
            [0],
            [0.5],
        ),  # a group of one has others to be compared with
        ("expected_reward", "none", [1, 0], [1, 1], [1, 0]),
        ("log_likelihood", "mean", [1, 0], [1, 1], [0.5, -1.5]),
        ("grpo", "mean", [1, 0], [1, 1], [0.25 / math.sqrt(0.1875), -0.75 / math.sqrt(0.1875)]),
        ("grpo", "mean", [1, 1], [1, 1], [0, 0]),
        ("grpo", "mean", [], [1, 0], []),
    ],
)
def test_completions_beside_a_group_enter_its_baseline(
    objective, baseline, rewards, beside, expected
):
    found = Target(objective, baseline).advantages(
        np.array(rewards, dtype=float), 0.5, baseline_only=np.array(beside)
    )
    assert_equal_arrays(found, expected)


@pytest.mark.parametrize("rate", [0.06, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("objective", "baseline", "estimator"),
    [
        ("log_likelihood", "mean", "self_normalized"),
        ("log_likelihood", "mean", "prompt_mean"),
        ("expected_reward", "mean", "prompt_mean"),
        ("expected_reward", "leave_one_out", "prompt_mean"),
        ("grpo", "mean", "prompt_mean"),
    ],
)
def test_a_group_with_completions_beside_it_expects_what_one_of_both_together_does(
    objective, baseline, estimator, rate
):
    """Exactly, over all outcomes of four draws that are accepted at a rate; two and two, or four."""

    def expectation(own: int) -> float:
        total = 0.0
        for outcome in itertools.product([1.0, 0.0], repeat=4):
            drawn = np.array(outcome)
            ((advantages,), (weights,)) = weigh_rewards(
                [drawn[:own]],
                Target(objective, baseline),
                estimator,
                accept_rates=np.array([rate]),
                baseline_only=[drawn[own:]],
            )
            scores = drawn[:own] - rate  # of the logit of being accepted
            total += np.prod(np.where(drawn == 1, rate, 1 - rate)) * (advantages * weights) @ scores
        return total

    assert expectation(2) == pytest.approx(expectation(4), rel=1e-9)


def test_grpo_as_other_trainers_have_it():
    found = Target("grpo", "mean").advantages(REWARDS, 0.5, bessel=True, epsilon=0.1)
    divisor = math.sqrt(0.3) + 0.1  # the squares add up to 1.2, over n - 1 = 4
    assert_equal_arrays(found, np.array([0.6, -0.4, -0.4, 0.6, -0.4]) / divisor)
    for degenerate in ([], [1.0], [0.3, 0.3, 0.3]):
        none = Target("grpo", "mean").advantages(
            np.array(degenerate), 0.5, bessel=True, epsilon=1e-4
        )
        assert none.tolist() == [0.0] * len(degenerate)


@pytest.mark.parametrize(
    ("objective", "baseline"), [(o, b) for o, allowed in BASELINES.items() for b in allowed]
)
@pytest.mark.parametrize("rewards", [[], [0.0], [1.0], [1.0, 1.0], [0.0, 0.0, 0.0]])
def test_degenerate_groups_have_finite_advantages(objective, baseline, rewards):
    for rate in (0.0, 1.0):
        target, known = Target(objective, baseline), KnownBaseline(rate, 0.0)
        got = target.advantages(np.array(rewards), rate, baseline=known)
        assert got.shape == (len(rewards),)
        assert np.isfinite(got).all()
        if target.needs_groups:
            assert_equal_arrays(got, np.zeros(len(rewards)))


def test_known_baselines_by_hand():
    """What is known: 4 completions of mean 1/4, so one success. In the group: 1, 0, 1."""
    known, rewards = KnownBaseline(0.25, 4.0), np.array([1.0, 0.0, 1.0])
    history, shrunk = (Target("expected_reward", name) for name in ("history", "shrinkage"))
    assert_equal_arrays(history.advantages(rewards, 0.5, baseline=known), [0.75, -0.25, 0.75])
    # Of 4 + 2 completions beside each one, 2, 3 and 2 are successes.
    found = shrunk.advantages(rewards, 0.5, baseline=known)
    assert_equal_arrays(found, [1 - 2 / 6, -3 / 6, 1 - 2 / 6])
    # A group of one has the history alone, and one of which nothing is known its other completions.
    for target in (history, shrunk):
        assert target.advantages(np.ones(1), 0.5, baseline=known).tolist() == [0.75]
    nothing = KnownBaseline(0.25, 0.0)
    assert_equal_arrays(
        shrunk.advantages(rewards, 0.5, baseline=nothing),
        Target("expected_reward", "leave_one_out").advantages(rewards, 0.5),
    )
    # Divided as without a baseline.
    divided = Target("log_likelihood", "history").advantages(rewards, 0.5, baseline=known)
    assert_equal_arrays(divided, [1.5, -0.5, 1.5])
    grpo = Target("grpo", "history", known_deviation=True)
    assert_equal_arrays(
        grpo.advantages(rewards, 0.5, baseline=known, deviation=0.5), [1.5, -0.5, 1.5]
    )
    with pytest.raises(ValueError, match="needs what is known of the prompt"):
        history.advantages(rewards, 0.5)
    with pytest.raises(InputError, match="order_k has no baseline history"):
        Target("log_likelihood", "history", order=2)


def test_a_group_of_equal_real_rewards_has_advantages_of_exactly_zero():
    # The mean of three times 0.1 is not 0.1 in floating point.
    assert not Target("grpo", "mean").advantages(np.array([0.1, 0.1, 0.1]), 0.0).any()
    assert not Target("expected_reward", "mean").advantages(np.array([0.1] * 3), 0.0).any()


def test_lemma_1_weights_are_one_over_m_n_p():
    groups = [make_group([1, 0, 1, 0]), make_group([]), make_group([1])]
    advantages, weights = weigh(
        groups,
        target=Target("log_likelihood", "none"),
        estimator="prompt_mean",
        accept_rates=np.array([0.25, 0.5, 0.1]),
    )
    shares = [a * w for a, w in zip(advantages, weights, strict=True)]
    assert_equal_arrays(shares[0], np.array([1, 0, 1, 0]) / (3 * 4 * 0.25))
    assert shares[1].shape == (0,)
    assert_equal_arrays(shares[2], [1 / (3 * 1 * 0.1)])


def test_self_normalized_weighs_accepted_rollouts_by_one_over_m_accepted():
    groups = [make_group([1, 0, 1, 1, 0]), make_group([0, 0])]
    advantages, weights = weigh(
        groups,
        target=Target("log_likelihood", "none"),
        estimator="self_normalized",
        accept_rates=np.array([np.nan, np.nan]),
    )
    assert_equal_arrays(advantages[0] * weights[0], np.array([1, 0, 1, 1, 0]) / (2 * 3))
    assert_equal_arrays(advantages[1], [0, 0])


def test_flat_weighs_every_accepted_rollout_of_the_step_alike():
    groups = [make_group([1, 0, 1, 1]), make_group([0, 1])]
    advantages, weights = weigh(
        groups,
        target=Target("log_likelihood", "none"),
        estimator="flat",
        accept_rates=np.array([np.nan, np.nan]),
    )
    assert_equal_arrays(advantages[0] * weights[0], np.array([1, 0, 1, 1]) / 4)
    assert_equal_arrays(advantages[1] * weights[1], np.array([0, 1]) / 4)


def test_all_rejected_and_all_empty_steps_weigh_nothing():
    for groups in ([make_group([0, 0]), make_group([0])], [make_group([]), make_group([])]):
        for estimator in ("prompt_mean", "self_normalized", "flat"):
            advantages, weights = weigh(
                groups,
                target=Target("log_likelihood", "none"),
                estimator=estimator,
                accept_rates=np.array([0.1, 0.1]),
            )
            assert all(not a.any() for a in advantages)
            assert all(np.isfinite(w).all() for w in weights)


def test_log_likelihood_looks_at_acceptance_and_expected_reward_at_rewards():
    groups = [make_group([2.5, 0.5])]
    options: dict[str, Any] = {"estimator": "prompt_mean", "accept_rates": np.array([0.5])}
    by_acceptance, _ = weigh(groups, LOG_LIKELIHOOD, **options)
    by_reward, _ = weigh(groups, Target("expected_reward", "none"), **options)
    assert_equal_arrays(by_acceptance[0], [2, 0])
    assert_equal_arrays(by_reward[0], [2.5, 0.5])


def test_what_a_target_answers():
    relative = [Target(o, b) for o, allowed in BASELINES.items() for b in allowed]
    relative.remove(Target("expected_reward", "none"))
    assert len(relative) == 11
    assert [t for t in relative if not t.has_baseline] == [LOG_LIKELIHOOD]
    assert {t.objective for t in relative if t.divides_by_deviation} == {"grpo"}
    assert [t.baseline for t in relative if t.needs_groups] == [
        "mean",
        "mean",
        "leave_one_out",
        "mean",
    ]
    assert {t.objective for t in relative if t.fits_accepted} == {"log_likelihood"}


def test_a_target_of_an_objective_alone_has_its_first_baseline():
    for objective, allowed in BASELINES.items():
        assert Target.named(objective) == Target(objective, allowed[0])
    assert Target.named("expected_reward", "mean") == Target("expected_reward", "mean")
    assert Target.of(BudgetConfig(objective="log_likelihood")) == Target("log_likelihood", "mean")
    assert [unbiased_baseline(o) for o in ("grpo", "expected_reward", "x")] == [
        None,
        "leave_one_out",
        None,
    ]


def test_a_pair_that_is_not_in_the_table_is_refused():
    with pytest.raises(InputError, match=r"grpo has no baseline none; choose .* mean"):
        Target("grpo", "none")
    with pytest.raises(InputError, match="unknown objective 'x'; known: log_likelihood"):
        Target("x", "none")


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_variance_table_matches_enumeration(rate):
    """A softmax over five outcomes, two accepted: trace Cov(a s) from all outcomes, and from moments."""
    rng = np.random.default_rng(0)
    accepted = np.array([True, True, False, False, False])
    weights = rng.random(5)
    weights /= np.where(accepted, weights[accepted].sum(), weights[~accepted].sum())
    probabilities = weights * np.where(accepted, rate, 1 - rate)
    scores = np.eye(5) - probabilities  # gradients of ln p with respect to the logits; E[s] = 0
    squares = (scores**2).sum(1)
    q1 = (weights * squares)[accepted].sum()
    q0 = (weights * squares)[~accepted].sum()
    mean = (weights[:, None] * scores)[accepted].sum(0)
    for objective, baselines in BASELINES.items():
        for baseline in baselines:
            got = Target(objective, baseline).variance(np.array([rate]), q1, q0, mean @ mean)
            if rate == 0 or (rate == 1 and baseline != "none"):
                assert got == [0]
                continue
            a = accepted - (0 if baseline == "none" else rate)
            if objective == "log_likelihood":
                a = a / rate
            if objective == "grpo":
                a = a / np.sqrt(rate * (1 - rate))
            x = a[:, None] * scores
            first = probabilities @ x
            expected = probabilities @ (x**2).sum(1) - first @ first
            assert got == pytest.approx([expected], rel=1e-9, abs=1e-12)
            bound = Target(objective, baseline).variance(np.array([rate]), q1, q0)
            assert bound >= got - 1e-12


@pytest.mark.parametrize("threshold", [-1.0, 0.4, 2.0])
def test_second_moments_of_real_rewards_match_enumeration(threshold):
    """Seven outcomes with real rewards, some accepted: E[a^2 ||s||^2] directly, and from moments."""
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(7))
    rewards = rng.normal(0.5, 1, 7)
    accepted = rewards >= threshold
    squares = ((np.eye(7) - probabilities) ** 2).sum(1)

    def of(chosen):
        weights = np.where(chosen, probabilities, 0)
        weights = weights / max(weights.sum(), 1e-300)
        norm = np.array([weights @ squares])
        share = weights * squares / max(norm[0], 1e-300)
        return norm, RewardMoments(
            *(np.array([w @ r]) for w in (weights, share) for r in (rewards, rewards**2))
        )

    (q1, r1), (q0, r0) = of(accepted), of(~accepted)
    mean = probabilities @ rewards
    spread = probabilities @ (rewards - mean) ** 2
    rate = np.array([probabilities[accepted].sum()])
    for baseline, a in (("none", rewards), ("mean", rewards - mean)):
        got = Target("expected_reward", baseline).second_moment(rate, (q1, q0), (r1, r0))
        assert got == pytest.approx([probabilities @ (a**2 * squares)])
    got = Target("grpo", "mean").second_moment(rate, (q1, q0), (r1, r0))
    assert got == pytest.approx([probabilities @ ((rewards - mean) ** 2 * squares) / spread])


def test_second_moments_where_all_rewards_are_equal_and_where_they_are_refused():
    ones = RewardMoments(*np.ones((4, 1)))
    squares = np.ones(1), np.ones(1)
    half = np.array([0.5])
    assert Target("grpo", "mean").second_moment(half, squares, (ones, ones)) == [0]
    assert Target("expected_reward", "mean").second_moment(half, squares, (ones, ones)) == [0]
    with pytest.raises(ValueError, match="takes accept indicators"):
        LOG_LIKELIHOOD.second_moment(half, squares, (ones, ones))


def test_given_advantages_are_in_the_norms_already():
    """Half of A-weighted gradients have norm 3, the other half norm 1: E = .25 * 9 + .75 * 1."""
    target = Target("expected_reward", "none", given=True)
    assert target.advantages(np.array([0.0, 1.0, 5.0]), 0.25).tolist() == [1, 1, 1]
    assert target.expected_advantages(np.array([0.0, 5.0]), 0.2, 0.1).tolist() == [1, 1]
    rates, squares = np.array([0.25, 0.0, 1.0]), (np.full(3, 9.0), np.ones(3))
    np.testing.assert_allclose(target.variance(rates, *squares), [3, 1, 9])
    of_any = RewardMoments(*(np.full(3, 7.0) for _ in range(4)))
    np.testing.assert_allclose(target.second_moment(rates, squares, (of_any, of_any)), [3, 1, 9])
    assert not target.needs_groups
    for other in (("expected_reward", "mean"), ("grpo", "mean"), ("log_likelihood", "none")):
        with pytest.raises(InputError, match="the trainer has subtracted its own baseline"):
            Target(*other, given=True)


def test_a_critics_terms_are_unbiased_at_any_counts():
    """By enumeration: two tokens, each 0 or 1, two prompts with 1 and 2 completions, any values."""
    logits = np.array([[0.3, -0.7, 1.1], [-0.4, 0.2, 0.6]])  # of a 1: at first, after 0, after 1
    values = np.array([[0.5, -2.0, 0.1], [0.9, 0.4, 3.0]])  # of a critic, at the same prefixes
    rewards = np.array([[0.0, 1.0, 0.2, 0.7], [1.0, 0.0, 0.0, 0.5]])  # of 00, 01, 10, 11
    ones = 1 / (1 + np.exp(-logits))
    chances, terms = np.zeros((2, 4)), np.zeros((2, 4, 2, 3))
    for i, (first, second) in itertools.product(range(2), itertools.product(range(2), repeat=2)):
        y, at = 2 * first + second, (0, 1 + first)
        chances[i, y] = math.prod(
            p if token else 1 - p for p, token in zip(ones[i, at], (first, second), strict=True)
        )
        for place, token in zip(at, (first, second), strict=True):  # A_t grad log pi(y_t)
            terms[i, y, i, place] = (rewards[i, y] - values[i, place]) * (token - ones[i, place])
    target = Target("expected_reward", "none", given=True)
    found = np.zeros((2, 3))
    for drawn in itertools.product(range(4), repeat=3):
        groups = [np.array(drawn[:1]), np.array(drawn[1:])]
        advantages, weights = weigh_rewards(
            [rewards[i, group] for i, group in enumerate(groups)],
            target,
            "prompt_mean",
            accept_rates=np.ones(2),
        )
        chance = math.prod(chances[i, group].prod() for i, group in enumerate(groups))
        for i, group in enumerate(groups):
            factors = chance * weights[i] * advantages[i]
            found += np.tensordot(factors, terms[i, group], axes=1)
    step = 1e-6
    for i, place in itertools.product(range(2), range(3)):

        def expected(shift, i=i, place=place):
            moved = logits[i].copy()
            moved[place] += shift
            one = 1 / (1 + np.exp(-moved))
            after = [
                rewards[i, 2 * f] * (1 - one[1 + f]) + rewards[i, 2 * f + 1] * one[1 + f]
                for f in (0, 1)
            ]
            return ((1 - one[0]) * after[0] + one[0] * after[1]) / 2

        slope = (expected(step) - expected(-step)) / (2 * step)
        assert found[i, place] == pytest.approx(slope, abs=1e-8)
