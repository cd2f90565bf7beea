"""Expectations of the estimators on softmax policies small enough to enumerate.

Every prompt has K possible completions with probabilities softmax(theta_i), so the score of completion
y is ``onehot(y) - probabilities`` and the target gradient is a finite sum. Claims are Monte Carlo
means within five standard errors in every coordinate.
"""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.cross_fit import assign_rollouts, cross_fit, missing_counts, undivided
from dibs.allocation.estimators import weigh
from dibs.allocation.problem import Bounds, pose
from dibs.allocation.proportional import proportional
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.types import Allocation, Completion, Group, Rollout
from tiny_groups import make_prompt

COUNTS = np.array([1, 3, 7])
RIGHT = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]], dtype=bool)
LOGITS = np.array([[0.1, 0.9, 0.3, -0.2], [1.0, -0.5, 0.2, 0.4], [0.3, 0.6, -0.1, 0.8]])
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
ACCEPT_RATES = (PROBABILITIES * RIGHT).sum(axis=1)
SCORES = np.eye(4)[None] - PROBABILITIES[:, None, :]  # [m, K, K]
REPLICATES = 20_000


def target(coefficients: np.ndarray) -> np.ndarray:
    """(1/m) sum_y pi(y) a(y) s(y), exact, for coefficients [m, K]."""
    return np.einsum("ik,ik,ikd->id", PROBABILITIES, coefficients, SCORES) / len(COUNTS)


def estimates(counts, **options) -> np.ndarray:
    """Monte Carlo replicates of the gradient estimate, [REPLICATES, m, K]."""
    rng = np.random.default_rng(0)
    prompts = [make_prompt(str(i)) for i in range(len(counts))]
    texts = [Completion((y,), "", (0.0,), finished=True) for y in range(4)]
    draws = [
        rng.choice(4, size=(REPLICATES, n), p=p) for n, p in zip(counts, PROBABILITIES, strict=True)
    ]
    rollouts = [
        [Rollout(prompt, texts[y], float(right[y]), "", bool(right[y])) for y in range(4)]
        for prompt, right in zip(prompts, RIGHT, strict=True)
    ]
    result = np.zeros((REPLICATES, len(counts), 4))
    for replicate in range(REPLICATES):
        drawn = [draw[replicate] for draw in draws]
        groups = [
            Group(prompt, tuple(kinds[y] for y in ys))
            for prompt, kinds, ys in zip(prompts, rollouts, drawn, strict=True)
        ]
        advantages, weights = weigh(groups, accept_rates=ACCEPT_RATES, **options)
        for i, ys in enumerate(drawn):
            result[replicate, i] = (advantages[i] * weights[i]) @ SCORES[i, ys]
    return result


def sigmas_off(samples: np.ndarray, expected: np.ndarray) -> float:
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return float(np.max(np.abs(samples.mean(axis=0) - expected) / np.maximum(error, 1e-12)))


UNBIASED = {
    ("log_likelihood", "none"): RIGHT / ACCEPT_RATES[:, None],
    ("expected_reward", "none"): RIGHT.astype(float),
}


@pytest.mark.parametrize(("objective", "baseline"), list(UNBIASED))
def test_prompt_mean_is_unbiased_for_ragged_counts(objective, baseline):
    samples = estimates(COUNTS, target=Target(objective, baseline), estimator="prompt_mean")
    assert sigmas_off(samples, target(UNBIASED[objective, baseline])) < 5


def test_lemma_1_estimates_the_gradient_of_the_log_accept_rate():
    """d ln p_i / d theta by finite differences equals the exact target used above."""
    step, numeric = 1e-6, np.zeros((3, 4))
    for i in range(3):
        for k in range(4):
            nudged = LOGITS[i] + step * np.eye(4)[k]
            rate = (np.exp(nudged) / np.exp(nudged).sum() * RIGHT[i]).sum()
            numeric[i, k] = (np.log(rate) - np.log(ACCEPT_RATES[i])) / step / 3
    np.testing.assert_allclose(target(UNBIASED["log_likelihood", "none"]), numeric, atol=1e-6)


def test_leave_one_out_is_unbiased():
    counts = np.array([2, 3, 7])  # a group of one has no others and contributes nothing
    samples = estimates(
        counts, target=Target("expected_reward", "leave_one_out"), estimator="prompt_mean"
    )
    assert sigmas_off(samples, target(RIGHT.astype(float))) < 5


@pytest.mark.parametrize("objective", ["log_likelihood", "expected_reward"])
def test_mean_baseline_shrinks_by_n_minus_one_over_n(objective):
    samples = estimates(COUNTS, target=Target(objective, "mean"), estimator="prompt_mean")
    expected = target(UNBIASED[objective, "none"])
    shrunk = expected * ((COUNTS - 1) / COUNTS)[:, None]
    assert sigmas_off(samples, shrunk) < 5
    assert sigmas_off(samples, expected) > 5  # and the test can tell


@pytest.mark.parametrize("estimator", ["self_normalized", "flat"])
def test_the_other_estimators_are_biased_at_these_counts(estimator):
    samples = estimates(COUNTS, target=Target("log_likelihood", "none"), estimator=estimator)
    assert sigmas_off(samples, target(UNBIASED["log_likelihood", "none"])) > 5


def test_self_normalized_misses_by_the_chance_of_an_empty_group():
    """Given at least one acceptance 1/|D_i| is unbiased, so it shrinks by 1 - (1 - p_i)^n_i."""
    samples = estimates(
        COUNTS, target=Target("log_likelihood", "none"), estimator="self_normalized"
    )
    nonempty = 1 - (1 - ACCEPT_RATES) ** COUNTS
    expected = target(UNBIASED["log_likelihood", "none"]) * nonempty[:, None]
    assert sigmas_off(samples, expected) < 5


TARGETS = {
    "log_likelihood": target(RIGHT / ACCEPT_RATES[:, None]),
    "expected_reward": target(RIGHT.astype(float)),
}
PILOTS, PER_STREAM = 4, 18


def draw(prompts, counts, rng) -> list[Group]:
    groups = []
    for i, (prompt, n) in enumerate(zip(prompts, counts, strict=True)):
        ys = rng.choice(4, size=n, p=PROBABILITIES[i])
        kinds = [
            Rollout(prompt, Completion((y,), "", (0.0,), True), float(ok), "", bool(ok))
            for y, ok in enumerate(RIGHT[i])
        ]
        groups.append(Group(prompt, tuple(kinds[y] for y in ys)))
    return groups


def norms_of(groups) -> list[np.ndarray]:
    norms = np.linalg.norm(SCORES, axis=2)
    return [
        np.array([norms[i, r.completion.token_ids[0]] for r in group.rollouts])
        for i, group in enumerate(groups)
    ]


def gradient(groups, objective, baseline, estimator="prompt_mean", beside=None) -> np.ndarray:
    advantages, weights = weigh(
        groups,
        target=Target(objective, baseline),
        estimator=estimator,
        accept_rates=ACCEPT_RATES,
        baseline_only=beside,
    )
    return np.array(
        [
            (a * w) @ SCORES[i, [r.completion.token_ids[0] for r in group.rollouts]]
            for i, (group, a, w) in enumerate(zip(groups, advantages, weights, strict=True))
        ]
    )


def hungry(problem):
    """Counts that depend on luck: twice as many again for every rejected pilot."""
    rejected = np.asarray(problem.stats.trials) - np.asarray(problem.stats.successes)
    return proportional(2.0**rejected, problem.budget, problem.lower, problem.upper)


def cross_fitted(pilots, objective, baseline, rng) -> np.ndarray:
    """The gradient estimate of a step in mode cross_fit, from the parts that the loop uses."""
    streams = cross_fit(pilots, norms_of(pilots)).parts
    problems = [
        pose(stream.stats, PER_STREAM, Target.named(objective), bounds=Bounds(stream.reused_counts))
        for stream in streams
    ]
    allocations = [Allocation(p.stats.prompt_ids, hungry(p), "hungry") for p in problems]
    missing = missing_counts(allocations, streams)
    fresh = draw([group.prompt for group in pilots], np.sum(missing, axis=0), rng)
    parts = assign_rollouts(fresh, missing, streams)
    return np.mean(
        [
            gradient(groups, objective, baseline, beside=stream.baseline_only)
            for groups, stream in zip(parts, streams, strict=True)
        ],
        axis=0,
    )


def pooled(pilots, objective, baseline, rng) -> np.ndarray:
    """The tempting way: all pilots decide the counts, and all of them enter."""
    estimate = undivided(
        pilot_statistics(pilots, norms_of(pilots)), [group.prompt for group in pilots]
    )
    problem = pose(estimate.stats, 2 * PER_STREAM, Target.named(objective), bounds=Bounds(PILOTS))
    fresh = draw([group.prompt for group in pilots], hungry(problem) - PILOTS, rng)
    groups = [Group.merged(pair) for pair in zip(pilots, fresh, strict=True)]
    return gradient(groups, objective, baseline)


@pytest.mark.parametrize(
    ("objective", "baseline"),
    [
        ("expected_reward", "none"),
        pytest.param("log_likelihood", "none", marks=pytest.mark.slow),
        pytest.param("expected_reward", "leave_one_out", marks=pytest.mark.slow),
    ],
)
def test_cross_fit_is_unbiased_and_pooled_reuse_is_not(objective, baseline):
    rng = np.random.default_rng(0)
    prompts = [make_prompt(str(i)) for i in range(3)]
    samples: dict = {cross_fitted: [], pooled: []}
    for _ in range(2000):
        pilots = draw(prompts, [PILOTS] * 3, rng)
        for way, taken in samples.items():
            taken.append(way(pilots, objective, baseline, rng))
    assert sigmas_off(np.array(samples[cross_fitted]), TARGETS[objective]) < 5
    assert sigmas_off(np.array(samples[pooled]), TARGETS[objective]) > 5


def test_cross_fit_trains_on_every_pilot_once():
    rng = np.random.default_rng(0)
    pilots = draw([make_prompt(str(i)) for i in range(3)], [5, 4, 2], rng)
    estimate = cross_fit(pilots, norms_of(pilots))
    assert estimate.stats.trials.tolist() == [5, 4, 2]
    first, second = estimate.parts
    assert first.stats.trials.tolist() == second.reused_counts.tolist() == [2, 2, 1]
    assert second.stats.trials.tolist() == first.reused_counts.tolist() == [3, 2, 1]
    for group, a, b in zip(pilots, second.reused, first.reused, strict=True):
        assert a.rollouts + b.rollouts == group.rollouts
    assert (first.baseline_only, second.baseline_only) == (second.reused, first.reused)


def test_one_over_an_estimated_accept_rate_is_biased_and_drawing_until_k_is_not():
    """A gradient weighed by 1/p: E[trials/k] = 1/p when drawn until k were accepted."""
    rng = np.random.default_rng(0)
    rates = np.array([0.1, 0.3, 0.7])
    share = rng.binomial(8, rates, (REPLICATES, 3)) / 8
    successes = rng.binomial(8, rates, (REPLICATES, 3))
    posterior = (successes + 1) / (8 + 2)
    trials = 2 + rng.negative_binomial(2, rates, (REPLICATES, 3))
    assert sigmas_off(share * trials / 2, np.ones(3)) < 5
    assert sigmas_off(share / posterior, np.ones(3)) > 5
