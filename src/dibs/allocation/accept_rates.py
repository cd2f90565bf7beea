"""Accept rates of prompts from a few completions each: a Beta posterior for every prompt.

A prompt borrows from the others of its batch (beta-binomial regression). Three things keep a small batch
from claiming more than it shows:

- The mean accept rate of the batch has a Beta(1, 1) prior. So a batch without any success has a small
  accept rate, and not none.
- What log-probabilities may say of a prompt is bounded: ``_MOST_SHIFT`` on the logit scale.
- A prompt's completions bound its accept rate. The probability of an accepted completion is part of the
  accept rate, and that of a rejected one is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special
from scipy import stats as distributions

from dibs.types import PromptStats

_MOST_SHIFT = 2.0
"""Most by which the log-probabilities of a prompt's completions move its prior accept rate; logits."""
_FITTED = 2048
"""Prompts that decide on a prior; of more, an even choice."""
_EDGE = 1e-4
"""Accept rates are taken to be at least so far from 0 and 1."""


def accept_rates(stats: PromptStats) -> tuple[np.ndarray, np.ndarray]:
    """The posterior accept rate of each prompt: alpha and beta of its Beta distribution, [m] each."""
    successes = np.asarray(stats.successes, dtype=np.float64)
    failures = np.asarray(stats.trials) - successes
    a, b = _prior(successes, failures, _likelihood_covariate(stats))
    return _within(*_bounds(stats), a + successes, b + failures)


def _prior(
    successes: np.ndarray, failures: np.ndarray, covariate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta of every prompt's prior, [m] each.

    Its mean, as a function of the covariate, and its concentration are the most likely ones, under
    priors of their own: ``mean ~ Beta(1, 1)``, on the logit scale ``slope ~ N(0, 1)``, and
    ``ln concentration ~ N(ln 8, 1.5^2)``.
    """
    # Without a covariate equal prompts are one row with a multiplicity.
    rows = successes + 1j * failures if not covariate.any() else np.arange(len(successes))
    _, first, multiplicity = np.unique(rows, return_index=True, return_counts=True)
    known = (successes + failures)[first] > 0
    first, multiplicity = first[known], multiplicity[known]
    thinned = slice(None, None, max(-(-len(first) // _FITTED), 1))
    first, multiplicity = first[thinned], multiplicity[thinned]

    likelihood = _Likelihood(
        successes[first], failures[first], covariate[first], multiplicity.astype(np.float64)
    )
    overall = (successes.sum() + 1) / (successes.sum() + failures.sum() + 2)
    start = np.array([special.logit(overall), 0.0, np.log(5.0)])
    bounds = [(-9, 9), (-3, 3), (-3, 7)]
    found = optimize.minimize(likelihood.loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    mean, _ = _means(found.x, covariate)
    concentration = np.exp(found.x[2])
    return mean * concentration, (1 - mean) * concentration


def _means(parameters: np.ndarray, covariate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every prompt's prior, and the covariate as far as it moves it, [m] each."""
    level, slope, _ = parameters
    shift = np.clip(slope * covariate, -_MOST_SHIFT, _MOST_SHIFT)
    moving = np.where(np.abs(slope * covariate) < _MOST_SHIFT, covariate, 0.0)
    return special.expit(level + shift).clip(_EDGE, 1 - _EDGE), moving


@dataclass(frozen=True)
class _Likelihood:
    """Of the priors' parameters: level, slope and log concentration; all arrays are [rows]."""

    successes: np.ndarray
    failures: np.ndarray
    covariate: np.ndarray
    multiplicity: np.ndarray

    def loss(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the logarithm of the posterior density, and its gradient [3]."""
        level, slope, log_concentration = parameters
        mean, moving = _means(parameters, self.covariate)
        concentration = np.exp(log_concentration)
        a, b = mean * concentration, (1 - mean) * concentration
        trials = self.successes + self.failures
        evidence = (
            special.gammaln(a + self.successes)
            - special.gammaln(a)
            + special.gammaln(b + self.failures)
            - special.gammaln(b)
            - special.gammaln(concentration + trials)
            + special.gammaln(concentration)
        )
        by_a = special.psi(a + self.successes) - special.psi(a)
        by_b = special.psi(b + self.failures) - special.psi(b)
        by_both = special.psi(concentration) - special.psi(concentration + trials)
        inside = (mean > _EDGE) & (mean < 1 - _EDGE)
        by_logit = self.multiplicity * concentration * (by_a - by_b) * mean * (1 - mean) * inside
        by_concentration = concentration * (
            self.multiplicity @ (by_a * mean + by_b * (1 - mean) + by_both)
        )
        off = (log_concentration - np.log(8.0)) / 1.5
        prior_of_level = special.log_expit(level) + special.log_expit(-level)
        loss = 0.5 * off**2 + 0.5 * slope**2 - prior_of_level - self.multiplicity @ evidence
        gradient = np.array(
            [
                2 * special.expit(level) - 1 - by_logit.sum(),
                slope - by_logit @ moving,
                off / 1.5 - by_concentration,
            ]
        )
        return float(loss), gradient


def _bounds(stats: PromptStats) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest accept rate of each prompt that its own completions allow, [m] each.

    By Jensen's inequality the geometric mean of the probabilities of the accepted completions is at most
    that of the likeliest of them, and so at most the accept rate.
    """
    low, high = np.zeros(len(stats)), np.ones(len(stats))
    if knows_likelihood(stats):
        assert stats.accepted is not None
        assert stats.rejected is not None
        low = np.exp(np.where(stats.accepted.likelihoods > 0, stats.accepted.logprob, -np.inf))
        high = 1 - np.exp(np.where(stats.rejected.likelihoods > 0, stats.rejected.logprob, -np.inf))
    return np.minimum(low, 1 - _EDGE), np.maximum(high, _EDGE)


def _within(
    low: np.ndarray, high: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta with means within bounds. Where a mean moves, alpha + beta stays."""
    mean = alpha / (alpha + beta)
    # Old and rounded log-probabilities may contradict each other; then neither counts.
    held = np.where(low <= high, np.clip(mean, low, high), mean)
    size = alpha + beta
    return held * size, (1 - held) * size


def knows_likelihood(stats: PromptStats) -> bool:
    """Whether the log-probabilities of the prompts' completions are known; 0 for all means unknown."""
    if stats.accepted is None or stats.rejected is None:
        return False
    known = np.concatenate([c.logprob[c.likelihoods > 0] for c in (stats.accepted, stats.rejected)])
    return bool(np.isfinite(known).all() and known.any())


def _likelihood_covariate(stats: PromptStats) -> np.ndarray:
    """A standardized covariate of the accept rate, [m]: how likely the prompt's completions were.

    Accepted completions are the likelier ones, so a plain mean over the pilots would count their
    successes a second time and overstate the fit of the regression. The usual difference between the
    classes is therefore subtracted first. Ranks then limit outliers. The covariate is all zeros where
    log-probabilities are not known.
    """
    m = len(stats)
    if not knows_likelihood(stats):
        return np.zeros(m)
    yes, no = stats.accepted, stats.rejected
    assert yes is not None
    assert no is not None
    written = yes.likelihoods, no.likelihoods
    total = written[0] + written[1]
    both = (written[0] > 0) & (written[1] > 0)
    weight = (written[0] * written[1] / total.clip(min=1e-9))[both]
    difference = (yes.logprob - no.logprob)[both]
    gap = float((weight * difference).sum() / weight.sum()) if weight.sum() > 0 else 0.0
    known = total > 0
    sums = np.nan_to_num(yes.logprob - gap) * written[0] + np.nan_to_num(no.logprob) * written[1]
    result = np.zeros(m)
    ranks = distributions.rankdata(sums[known] / total[known])
    result[known] = special.ndtri((ranks - 0.5) / max(int(known.sum()), 1))
    return result
