"""Gradient norms of classes that were seldom seen, or never."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.class_norms import class_norms
from dibs.types import CompletionMoments

NOISE = 0.5
"""Standard deviation of ln ||s||^2 within a class."""


def moments(
    rng: np.random.Generator, count: np.ndarray, log_square: np.ndarray, logprob: np.ndarray
) -> CompletionMoments:
    """What ``count`` completions of each prompt show, whose ``ln ||s||^2`` is N(log_square, NOISE^2)."""
    logs = [
        rng.normal(level, NOISE, int(n)) / 2 for level, n in zip(log_square, count, strict=True)
    ]
    mean = np.array([x.mean() if len(x) else np.nan for x in logs])
    scatter = np.array([((x - x.mean()) ** 2).sum() if len(x) else np.nan for x in logs])
    known = np.where(count > 0, logprob, np.nan)
    return CompletionMoments(count.astype(float), mean, scatter, count.astype(float), known)


def world(slope: float, likelihood: bool, m: int = 200, trials: int = 4, seed: int = 0):
    """Truth and inference where ``ln ||s||^2`` is 2 + slope * ln(surprisal) + N(0, .3^2)."""
    rng = np.random.default_rng(seed)
    rate = rng.beta(0.5, 0.5, m).clip(0.02, 0.98)
    successes = rng.binomial(trials, rate)
    rarity = -np.log(np.array([rate, 1 - rate]))
    truth = 2 + slope * np.log(rarity) + rng.normal(0, 0.3, (2, m))
    counts = (successes, trials - successes)
    classes = [moments(rng, n, t, -r) for n, t, r in zip(counts, truth, rarity, strict=True)]
    norms = class_norms(classes[0], classes[1], rate, np.ones(m), likelihood)
    return truth + NOISE**2 / 2, norms, np.array(counts)


@pytest.mark.parametrize("likelihood", [True, False])
@pytest.mark.parametrize("slope", [1.3, 0.0, 2.0])
def test_what_was_never_seen_is_inferred_from_the_line(slope, likelihood):
    """Error far below that of a level, and 95% intervals that hold the truth."""
    truth, norms, counts = world(slope, likelihood)
    unseen = counts == 0
    error = (norms.log_square - truth)[unseen]
    of_a_level = truth[unseen] - truth[~unseen].mean()
    assert (error**2).mean() < (0.25 if slope else 1.3) * (of_a_level**2).mean()
    covered = np.mean(np.abs(error) <= 1.96 * norms.deviation[unseen])
    # 4 standard errors of the mean of as many.
    assert covered > 0.95 - 4 * np.sqrt(0.95 * 0.05 / unseen.sum())


@pytest.mark.parametrize("first", [0, 1])
def test_of_many_prompts_those_with_completions_decide_the_line(first):
    """Every second prompt is known: an even choice among all could miss them."""
    m = 8192
    has = np.arange(m) % 2 == first
    count = np.where(has, 4.0, 0.0)
    log_norm = np.where(has, 1.0, np.nan)
    flat = np.where(has, 0.1, np.nan)
    known = CompletionMoments(count, log_norm, flat, count, np.full(m, np.nan))
    norms = class_norms(known, known, np.full(m, 0.5), np.ones(m), False)
    assert np.isfinite(norms.log_square).all()
    np.testing.assert_allclose(norms.log_square, 2.0, atol=0.3)


def test_many_completions_leave_the_line_behind():
    truth, norms, counts = world(1.3, likelihood=True, m=50, trials=4000)
    often = counts > 1000
    np.testing.assert_allclose(norms.log_square[often], truth[often], atol=0.1)
    assert (norms.inferred[often] < 0.02).all()


def test_a_class_that_was_never_seen_is_wholly_inferred():
    _, norms, counts = world(1.3, likelihood=True)
    assert (norms.inferred[counts == 0] > 1 - 1e-9).all()
    assert (norms.inferred[counts > 0] < 1).all()
    assert ((norms.inferred >= 0) & (norms.inferred <= 1 + 1e-9)).all()


def test_one_completion_of_one_prompt():
    """All that is known is one norm; other prompts and the other class are about like it."""
    rng = np.random.default_rng(0)
    one, none = np.array([1, 0]), np.array([0, 0])
    accepted = moments(rng, one, np.array([3.0, 3.0]), np.array([-1.0, -1.0]))
    rejected = moments(rng, none, np.zeros(2), np.zeros(2))
    norms = class_norms(accepted, rejected, np.array([0.5, 0.5]), np.ones(2), likelihood=True)
    assert np.isfinite(norms.log_square).all()
    assert (np.abs(norms.log_square - 3.0) < 2).all()
    assert norms.deviation[0, 0] < norms.deviation[0, 1] <= 2


def test_lines_of_many_prompts_are_fitted_to_an_even_choice_of_them():
    """The answer for each prompt is about that of a batch which is fitted whole."""
    whole, norms, counts = world(1.3, likelihood=True, m=4096)
    more, larger, _ = world(1.3, likelihood=True, m=20_000)
    unseen = counts == 0
    for truth, found in ((whole, norms), (more, larger)):
        assert np.isfinite(found.log_square).all()
        error = found.log_square - truth
        assert (error[:, :4096][unseen] ** 2).mean() < 1


def test_long_completions_are_surprising_in_both_classes():
    """Surprisal is a tenth of a nat a token; half of the prompts have ten times the length."""
    rng = np.random.default_rng(0)
    m, slope = 100, 1.3
    length = np.where(np.arange(m) % 2, 10.0, 100.0)
    rate = np.full(m, 0.5)
    truth = np.tile(2 + slope * np.log(0.1 * length - np.log(0.5)), (2, 1))
    successes = rng.choice([0, 2], m)
    counts = np.array([successes, 2 - successes])
    logprob = -(0.1 * length - np.log(0.5))
    classes = [moments(rng, n, t, logprob) for n, t in zip(counts, truth, strict=True)]
    norms = class_norms(classes[0], classes[1], rate, length, likelihood=True)
    error = (norms.log_square - truth - NOISE**2 / 2)[counts == 0]
    assert np.abs(error).mean() < 0.4
    blind = class_norms(classes[0], classes[1], rate, np.ones(m), likelihood=True)
    assert np.abs((blind.log_square - truth - NOISE**2 / 2)[counts == 0]).mean() > 0.8
