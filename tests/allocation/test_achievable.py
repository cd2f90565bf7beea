"""The gain of the best counts: known sigmas, rare classes, and what cannot be known."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.achievable import SigmaPosterior, sigma_posterior
from dibs.allocation.group_variance import GroupGradient, coefficients
from dibs.allocation.target import Target

LL = Target("log_likelihood", "none")
RLOO = Target("expected_reward", "leave_one_out")
GRPO = Target("grpo", "mean")


def drawn(rates: np.ndarray, accepted: np.ndarray, rejected: np.ndarray, seed: int, tail=2.5):
    """48 completions of each prompt with Pareto-distributed squared norms of given means."""
    rng = np.random.default_rng(seed)
    taken = rng.random((len(rates), 48)) < rates[:, None]
    means = np.where(taken, accepted[:, None], rejected[:, None])
    return taken, means * (rng.pareto(tail, taken.shape) + 1) * (tail - 1) / tail


def gain_of(sigma: np.ndarray) -> float:
    return len(sigma) * (sigma**2).sum() / sigma.sum() ** 2


def test_the_gain_of_known_sigmas_by_hand():
    def known(*sigma: float) -> SigmaPosterior:
        m = len(sigma)
        return SigmaPosterior(np.tile(sigma, (10, 1)), np.ones(m, dtype=bool), False)

    # 3 (1 + 1 + 16) / (1 + 1 + 4)^2
    found = known(1, 1, 4).achievable_gain(np.ones(3))
    assert found.value == pytest.approx(1.5)
    assert found.low == found.high == pytest.approx(1.5)
    assert known(7, 7, 7).achievable_gain(np.ones(3)).value == pytest.approx(1)
    # In tokens: (100 + 25 + 25)(1 + 4 + 4) / (10 + 2 * 5 + 2 * 5)^2
    told = known(1, 2, 2).achievable_gain(np.array([100.0, 25, 25]))
    assert told.value == pytest.approx(150 * 9 / 900)
    assert known(1, 2).achievable_gain(np.ones(2)).value is None


def test_rare_classes_do_not_raise_the_gain():
    """Prompts whose sigma is the same for all: raw moments of 48 completions say 1.2."""
    rates = np.repeat([1 / 48, 1 / 24, 0.2, 0.5], 12)
    accepted, rejected = 1 / (rates * (1 - rates) ** 2), np.zeros(48) + 1e-6
    values, raws, inside = [], [], 0
    for seed in range(8):
        taken, squares = drawn(rates, accepted, rejected, seed)
        p = taken.mean(1, keepdims=True)
        raws.append(gain_of(np.sqrt(((taken - p) ** 2 * squares).mean(1))))
        posterior = sigma_posterior(taken, squares, RLOO)
        assert posterior is not None
        assert posterior.known.all()
        found = posterior.achievable_gain(np.ones(48))
        assert found.value is not None
        assert found.low is not None
        values.append(found.value)
        inside += found.low <= 1.001
    assert np.mean(raws) > 1.15
    assert np.mean(values) < 1.05
    assert inside >= 7


def test_spread_that_is_there_is_found():
    rates = np.tile([0.3, 0.6], 24)
    norms = np.exp(np.random.default_rng(5).normal(0, 1.2, 48))
    truth = gain_of(np.sqrt(norms / rates))
    values = []
    for seed in range(5):
        accepted, squares = drawn(rates, norms, norms, seed, tail=4)
        posterior = sigma_posterior(accepted, squares, LL)
        assert posterior is not None
        found = posterior.achievable_gain(np.ones(48))
        assert found.value is not None
        values.append(found.value)
    assert np.mean(values) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_the_gain_of_an_order_is_that_of_its_best_counts(baseline):
    """Best counts of 16 a prompt, one by one, by the variance of whole groups; 48 prompts."""
    rates, order, m = np.tile([0.05, 0.3, 0.7], 16), 4, 48
    target = Target("log_likelihood", baseline, order)
    gradient = GroupGradient(target, coefficients(target, "order_k"))
    rng = np.random.default_rng(0)
    accepted = np.exp(rng.normal(0, 1, m)) * (-np.log(rates)) ** 1.2
    rejected = np.exp(rng.normal(0, 0.5, m)) * (-np.log1p(-rates)) ** 1.2
    sizes = range(order, 100)
    spent = {
        rate: np.array(
            [gradient._by_enumeration(n, 0, round(400 * rate), 400).spent for n in sizes]
        )
        for rate in (0.05, 0.3, 0.7)
    }
    variance = np.array(
        [spent[p] @ [no, yes] for p, no, yes in zip(rates, rejected, accepted, strict=True)]
    )
    places = np.zeros(m, dtype=int)
    for _ in range(m * (16 - order)):
        places[np.argmax(variance[range(m), places] - variance[range(m), places + 1])] += 1
    truth = variance[:, 16 - order].sum() / variance[range(m), places].sum()
    taken, squares = drawn(rates, accepted, rejected, 0, tail=6)
    found = sigma_posterior(taken, squares, target)
    assert found is not None
    assert found.known.all()
    gain = found.achievable_gain(np.ones(m))
    assert gain.value == pytest.approx(truth, rel=0.1)
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low < truth < gain.high


def test_prompts_whose_divisor_is_not_bounded_are_left_out():
    taken = np.zeros((6, 12), dtype=bool)
    for i, successes in enumerate((0, 1, 2, 6, 11, 12)):
        taken[i, :successes] = True
    squares = np.random.default_rng(0).lognormal(size=taken.shape)
    known = {
        LL: [False, False, True, True, True, True],
        GRPO: [False, False, True, True, False, False],
        RLOO: [True] * 6,
    }
    for target, expected in known.items():
        posterior = sigma_posterior(taken, squares, target)
        assert posterior is not None
        assert posterior.known.tolist() == expected
        assert np.isfinite(posterior.draws).all()


@pytest.mark.parametrize("target", [LL, RLOO, GRPO], ids=lambda t: t.objective)
def test_without_a_class_nothing_is_known(target):
    squares = np.ones((4, 6))
    nothing, everything = np.zeros((4, 6), dtype=bool), np.ones((4, 6), dtype=bool)
    assert sigma_posterior(nothing, squares, target) is None
    found = sigma_posterior(everything, squares, target)
    assert (found is None) == (target != LL)
    assert sigma_posterior(everything, np.zeros((4, 6)), target) is None


@pytest.mark.parametrize("prompts", [3, 4, 5, 6])
@pytest.mark.filterwarnings("error")
def test_few_prompts_have_a_gain_too(prompts):
    """The variance between prompts is fitted to as few as three, about a line through nearly all."""
    rng = np.random.default_rng(prompts)
    for seed in range(30):
        rates = rng.beta(1, 1, prompts)
        norms = np.exp(5 - 1.3 * np.log(rates.clip(0.02)) + rng.normal(0, 0.4, prompts))
        taken, squares = drawn(rates, norms, norms, seed, tail=20.0)
        posterior = sigma_posterior(taken, squares, LL)
        if posterior is not None and posterior.known.sum() >= 3:
            gain = posterior.achievable_gain(np.ones(prompts)).value
            assert gain is not None
            assert 1 <= gain < 50


def test_the_shared_signal_does_not_matter():
    taken, squares = drawn(np.full(12, 0.4), np.ones(12), np.ones(12), 0)
    without, half = (sigma_posterior(taken, squares, GRPO, signal) for signal in (0.0, 0.5))
    assert without is not None
    assert half is not None
    np.testing.assert_allclose(half.draws, without.draws * np.sqrt(0.5))
