"""What the best counts could gain, from a few completions of each prompt. numpy only.

The gain is ``sum c sum sigma^2 / (sum sigma sqrt(c))^2``, for unit costs ``1 + CV^2(sigma)``. Noise
in an estimated sigma_i is spread too, so the gain of raw estimates is too high, by half and more
where a rare class decides. Here every sigma_i has a posterior distribution, and the gain is a mean
over draws.

The model, for rewards of 0 and 1: accept rates have one smooth prior on the logit scale, fitted to
the prompts without a shape (Laird 1978). In each class, ``ln ||s||^2`` of a prompt is normal about
``u_i`` with a variance that all prompts share, and ``u_i = b0 + b1 ln p_i + b2 ln(1 - p_i) + N(0,
t)``: rare outcomes are surprising, and a surprising completion has a large gradient. An accept rate
is judged by the norms too. b and t are fitted by restricted likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit

from dibs.allocation.intervals import Interval
from dibs.allocation.target import Target

DRAWS = 200
_LOGITS = np.linspace(-9, 9, 121)
_ON_GRID = np.stack([np.ones(len(_LOGITS)), log_expit(_LOGITS), log_expit(-_LOGITS)], axis=1)
_PRIOR_DEVIATION, _PRIOR_WEIGHT = 3.0, 4.0
"""Of the logit of an accept rate before any prompt is seen, and how many prompts that is worth."""
_PLACES = np.arange(len(_LOGITS))
_SMOOTHING = (np.abs(_PLACES[:, None] - _PLACES) <= 3).astype(np.float64)
_SLOPE_PRECISION = np.diag([0.0, 0.5, 0.5])
_TEMPERED = 0.5
"""Weight of the norms as evidence of an accept rate: the regression behind it is not exact."""
_WIDER = 1.4
"""By how much the posterior is too narrow on the log scale, found with other worlds than the model's."""
_ENOUGH = 2
"""Completions of a class that a prompt must have where a divisor depends on its accept rate."""
_ENOUGH_PROMPTS = 3


@dataclass(frozen=True)
class SigmaPosterior:
    """``draws``: of sigma_i, float64 [draws, m]. ``known``: prompts whose sigma_i the data bound,
    bool [m].

    ``extrapolated``: whether prompts without any completion of a class may be among them.
    A divisor that vanishes with the accept rate leaves sigma_i without a bound for prompts of which
    fewer than two completions were accepted (for ``grpo`` also: rejected).
    """

    draws: np.ndarray
    known: np.ndarray
    extrapolated: bool

    def achievable_gain(self, cost: np.ndarray) -> Interval:
        """The gain over the ``known`` prompts for costs ``c_i`` [m], with a 95% interval.

        It is the mean over draws. Where prompts without a success are among them it is the median:
        what is extrapolated to those has a long tail.
        """
        sigma, c = self.draws[:, self.known], cost[self.known]
        if len(c) < _ENOUGH_PROMPTS:
            return Interval(None, None, None)
        logs = np.log(c.sum() * (sigma**2).sum(1) / (sigma @ np.sqrt(c)) ** 2)
        low, middle, high = np.quantile(logs, (0.025, 0.5, 0.975))
        low, high = max(middle + _WIDER * (low - middle), 0.0), middle + _WIDER * (high - middle)
        value = float(np.exp(middle) if self.extrapolated else np.exp(logs).mean())
        return Interval(value, float(np.exp(low)), float(np.exp(high)))


def sigma_posterior(
    accepted: np.ndarray, squares: np.ndarray, target: Target, signal: np.ndarray | float = 0.0
) -> SigmaPosterior | None:
    """Draws of every sigma_i; None where a class that enters sigma_i has too few completions.

    Args:
        accepted: of K completions of each prompt, bool [m, K]. Rewards must be 1 for them, else 0.
        squares: ``||s||^2``, [m, K].
        target: the gradient.
        signal: ``||E[a s]||^2 / E[a^2 ||s||^2]`` of each prompt, in [0, 1), [m].
    """
    trials = accepted.shape[1]
    successes = accepted.sum(1)
    entering = [powers is not None for powers in target.square_powers]
    classes = [accepted, ~accepted]
    for mask, enters in zip(classes, entering, strict=True):
        if enters and (mask & (squares > 0)).any(1).sum() < _ENOUGH_PROMPTS:
            return None
    usable = [
        (_Class.of(mask, squares) if enters else None)
        for mask, enters in zip(classes, entering, strict=True)
    ]
    likelihood = np.outer(successes, log_expit(_LOGITS)) + np.outer(
        trials - successes, log_expit(-_LOGITS)
    )
    chances = _accept_rates(likelihood)
    for _ in range(3):
        norms = np.zeros(chances.shape)
        for each in usable:
            if each is not None:
                each.fit(chances @ _ON_GRID)
                norms += each.log_density()
        chances = _accept_rates(likelihood + _TEMPERED * norms)
    rng = np.random.default_rng(0)
    logit = _draw(chances, rng)
    moments = [np.zeros(logit.shape) if c is None else c.draw(logit, rng) for c in usable]
    square = target.variance(expit(logit), moments[0], moments[1]) * (1 - np.asarray(signal))
    known = np.ones(len(accepted), dtype=bool)
    # An order bounds what the accept rate divides: w_k(p) is at most k.
    divided = (target.fits_accepted and target.order is None) or target.divides_by_deviation
    if divided:
        known &= successes >= _ENOUGH
    if target.divides_by_deviation:
        known &= trials - successes >= _ENOUGH
    return SigmaPosterior(np.sqrt(np.maximum(square, 1e-200)), known, not divided)


def _accept_rates(likelihood: np.ndarray) -> np.ndarray:
    """Posterior of every prompt's logit over the grid, [m, grid], under a prior fitted to all (EM)."""
    scaled = np.exp(likelihood - likelihood.max(1, keepdims=True))
    before = np.exp(-0.5 * (_LOGITS / _PRIOR_DEVIATION) ** 2)
    before /= before.sum()
    prior = before
    for _ in range(60):
        chances = scaled * prior
        chances /= chances.sum(1, keepdims=True)
        prior = _SMOOTHING @ (chances.sum(0) + _PRIOR_WEIGHT * before)
        prior /= prior.sum()
    chances = scaled * prior
    return chances / chances.sum(1, keepdims=True)


def _draw(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws of the logits, [draws, m]."""
    m, width = len(chances), _LOGITS[1] - _LOGITS[0]
    below = chances.cumsum(1)
    at = np.stack(
        [np.searchsorted(row, u) for row, u in zip(below, rng.random((m, DRAWS)), strict=True)], 1
    )
    return _LOGITS[at.clip(max=len(_LOGITS) - 1)] + rng.uniform(-0.5, 0.5, (DRAWS, m)) * width


@dataclass
class _Class:
    """The accepted, or the rejected, completions: the model of their ``ln ||s||^2``.

    ``own``: a prompt's mean, ``count``: of how many, [m]. ``within``: variance of one completion within
    a prompt. ``total``: ``sum ||s||^2``.
    """

    own: np.ndarray
    count: np.ndarray
    within: float
    total: float
    slopes: np.ndarray
    covariance: np.ndarray
    between: float
    between_error: float

    @classmethod
    def of(cls, mask: np.ndarray, squares: np.ndarray) -> _Class:
        """From the completions of the class, bool [m, K], and all ``||s||^2``, [m, K]."""
        mask = mask & (squares > 0)
        logs = np.log(np.where(mask, squares, 1.0))
        count = mask.sum(1)
        own = logs.sum(1) / np.maximum(count, 1)
        scatter = (np.where(mask, logs - own[:, None], 0.0) ** 2).sum()
        within = float((scatter + 0.5) / (np.maximum(count - 1, 0).sum() + 1))
        total = float(squares[mask].sum())
        return cls(own, count, within, total, np.zeros(3), np.eye(3), 0.3, 0.1)

    @property
    def noise(self) -> np.ndarray:
        """Variance of a prompt's own mean about u_i, [m]."""
        return self.within / np.maximum(self.count, 1)

    def fit(self, covariates: np.ndarray) -> None:
        """Fit the regression of u_i on covariates [m, 3], and the variance about it."""
        has = self.count > 0
        x, y, noise = covariates[has], self.own[has], self.noise[has]
        for _ in range(80):
            weight = 1 / (self.between + noise)
            self.covariance = np.linalg.inv(x.T @ (x * weight[:, None]) + _SLOPE_PRECISION)
            self.slopes = self.covariance @ (x.T @ (weight * y))
            # What fitting the regression took away from the residuals.
            fitted = np.einsum("ij,jk,ik->i", x, self.covariance, x)
            excess = weight**2 @ ((y - x @ self.slopes) ** 2 - noise + fitted)
            updated = max(float(excess / (weight @ weight)), 1e-3)
            settled = abs(updated - self.between) < 1e-5
            self.between = updated
            if settled:
                break
        self.between_error = float(np.sqrt(2 / (weight @ weight)))

    def log_density(self) -> np.ndarray:
        """Of each prompt's own mean, were its logit that of the grid, [m, grid]."""
        off = self.own[:, None] - _ON_GRID @ self.slopes
        density = -0.5 * off**2 / (self.between + self.noise)[:, None]
        return np.where(self.count[:, None] > 0, density, 0.0)

    def draw(self, logit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws of ``E[||s||^2]`` at drawn logits [draws, m], which add up to ``total``."""
        slopes = rng.multivariate_normal(self.slopes, self.covariance, size=len(logit))
        level = (
            slopes[:, :1] + slopes[:, 1:2] * log_expit(logit) + slopes[:, 2:] * log_expit(-logit)
        )
        doubt = rng.normal(self.between, self.between_error, (len(logit), 1))
        between = np.abs(doubt).clip(min=1e-3)
        pull = np.where(self.count > 0, between / (between + self.noise), 0.0)
        deviation = np.sqrt(between * (1 - pull))
        u = level + pull * (self.own - level) + rng.normal(size=logit.shape) * deviation
        square = np.exp(u.clip(-600, 600))
        return square * (self.total / (square @ self.count))[:, None]
