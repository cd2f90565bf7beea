"""Estimates of prompts from the statistics of a few completions. Knows no budget.

Shares and means of a few completions are poor estimates. :func:`fit_posterior` turns them into a
:class:`Posterior`, for which every prompt borrows from the others of its batch (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import special

from dibs.allocation.accept_rates import accept_rates, knows_likelihood
from dibs.allocation.class_norms import ClassNorms, class_norms
from dibs.allocation.target import Target
from dibs.types import CompletionMoments, PromptStats, RewardMoments

_NODES = np.linspace(-3.5, 3.5, 15)
"""Where a posterior accept rate is evaluated, in standard deviations of its logit."""
_LEAST_RATE = 1e-3
"""Accept rates below count as this one where the target divides by them."""

Factor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Posterior:
    """Distributions of the unknown moments of each of m prompts.

    The accept rate is Beta(``alpha``, ``beta``), float64 [m] each. ``norms``: of ``E[||s||^2]`` of
    accepted and of rejected completions. ``rewards``: expected moments of the rewards of accepted and of
    rejected completions; None where they are 1 and 0.
    """

    alpha: np.ndarray
    beta: np.ndarray
    norms: ClassNorms
    rewards: tuple[RewardMoments, RewardMoments] | None = None

    def take(self, rows: np.ndarray) -> Posterior:
        """What is known of other prompts: that of ``rows``, one row a prompt."""
        rewards = self.rewards
        return Posterior(
            self.alpha[rows],
            self.beta[rows],
            self.norms.take(rows, len(self.alpha)),
            None if rewards is None else (rewards[0].take(rows), rewards[1].take(rows)),
        )

    @property
    def accept_rate(self) -> np.ndarray:
        """Mean of the accept rate, in (0, 1)."""
        return self.alpha / (self.alpha + self.beta)

    def reward_moments(self, target: Target) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the r of one completion, [m] each."""
        p = self.accept_rate
        if self.rewards is None or target.fits_accepted:
            return p, np.sqrt(p * (1 - p))
        yes, no = self.rewards
        mean = p * yes.mean + (1 - p) * no.mean
        square = p * yes.square + (1 - p) * no.square
        return mean, np.sqrt((square - mean**2).clip(min=0))

    def second_moment(self, target: Target, factor: Factor | None = None) -> np.ndarray:
        """``E[a_i^2 ||s||^2]``, expected under this posterior: an upper bound of sigma_i^2, [m].

        It is the sum of the classes' parts; see :meth:`class_moments`.
        """
        total: np.ndarray = self.class_moments(target, factor).sum(0)
        return total

    def class_moments(self, target: Target, factor: Factor | None = None) -> np.ndarray:
        """What accepted and rejected completions add to ``E[a_i^2 ||s||^2]``, [2, m].

        The mean gradient is not subtracted, because a few completions do not determine it. Where the
        target divides by the accept rate, rates below 1e-3 count as 1e-3. For rewards other than 0 and 1
        the accept rate is taken at its mean.

        Args:
            factor: of an accept rate; multiplies the second moment before the expectation is taken.
        """
        squares = self.norms.squares
        if self.rewards is not None and not target.fits_accepted:
            rewards, none = self.rewards, np.zeros(len(self.alpha))
            rate = self.accept_rate
            return np.array(
                [
                    target.second_moment(rate, (squares[0], none), rewards),
                    target.second_moment(rate, (none, squares[1]), rewards),
                ]
            )
        parts = np.zeros(squares.shape)
        usual = self._surprisals(self.accept_rate)
        for rate, weight in self._rates():
            grown = (self._surprisals(rate) / usual) ** self.norms.slope
            p = rate.clip(_LEAST_RATE, 1 - _LEAST_RATE)
            share = weight if factor is None else weight * factor(p)
            for c, powers in enumerate(target.square_powers):
                if powers is not None:
                    parts[c] += share * p ** powers[0] * (1 - p) ** powers[1] * grown[c]
        return parts * squares

    def _surprisals(self, rate: np.ndarray) -> np.ndarray:
        """What the norms of both classes depend on at an accept rate of each prompt [m]; [2, m]."""
        rarity = -np.log(np.array([rate, 1 - rate]).clip(1e-9, 1))
        return (self.norms.beyond + rarity).clip(min=1e-4)

    def _rates(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Accept rates of each prompt [m] and their posterior probabilities [m], node by node."""
        center = special.digamma(self.alpha) - special.digamma(self.beta)
        spread = np.sqrt(special.polygamma(1, self.alpha) + special.polygamma(1, self.beta))

        def log_density(x: float) -> np.ndarray:
            logit = center + x * spread
            accepted = special.log_expit(logit)
            density: np.ndarray = self.alpha * accepted + self.beta * (accepted - logit)
            return density

        densities = [log_density(x) for x in _NODES]
        most = reduce(np.maximum, densities)
        weights = [np.exp(density - most) for density in densities]
        total = reduce(np.add, weights)
        for x, weight in zip(_NODES, weights, strict=True):
            yield special.expit(center + x * spread), weight / total


def fit_posterior(stats: PromptStats) -> Posterior:
    """The posterior of every prompt, under priors fitted across the prompts of the batch.

    The accept rate has a Beta prior whose concentration, and whose mean as a function of the prompt's
    log-probabilities where they are known, are fitted by maximum likelihood (beta-binomial regression).
    The logarithm of a class's second moment has a normal prior fitted by restricted likelihood; each
    prompt's own mean pulls it as far as the class's spread within prompts allows. A prompt without an
    accepted completion keeps a small accept rate, never 0.
    """
    alpha, beta = accept_rates(stats)
    accepted = _class_of(stats, stats.accepted, stats.grad_norm, stats.successes)
    rejections = np.asarray(stats.trials) - np.asarray(stats.successes)
    rejected = _class_of(stats, stats.rejected, stats.grad_norm_rejected, rejections)
    if not (accepted.count > 0).any() and not (rejected.count > 0).any():
        return Posterior(alpha, beta, ClassNorms.unknown(len(stats)))
    rate = alpha / (alpha + beta)
    tokens = expected_tokens(stats, otherwise=1.0)
    norms = class_norms(accepted, rejected, rate, tokens, knows_likelihood(stats))
    rewards = None
    if accepted.rewards is not None and rejected.rewards is not None:
        counts = (np.asarray(stats.successes), rejections)
        rewards = (
            _shrunken(accepted.rewards, counts[0], otherwise=1.0),
            _shrunken(rejected.rewards, counts[1], otherwise=0.0),
        )
    return Posterior(alpha, beta, norms, rewards)


def _shrunken(rewards: RewardMoments, count: np.ndarray, otherwise: float) -> RewardMoments:
    """Each prompt's means, with one completion added that is the mean of the batch's.

    ``otherwise``: the reward of a class of which no prompt of the batch has a completion.
    """

    def shrink(own: np.ndarray) -> np.ndarray:
        usable = np.isfinite(own) & (count > 0)
        pooled = (own[usable] @ count[usable]) / count[usable].sum() if usable.any() else otherwise
        return np.where(usable, (np.nan_to_num(own) * count + pooled) / (count + 1), pooled)

    return RewardMoments(
        shrink(rewards.mean),
        shrink(rewards.square),
        shrink(rewards.weighted),
        shrink(rewards.weighted_square),
    )


def expected_tokens(stats: PromptStats, otherwise: float) -> np.ndarray:
    """Expected tokens of a completion of each prompt, float64 [m], at least 1.

    It is the mean over a prompt's own completions and one more, which has the mean length of the
    batch's. ``otherwise``: the length where no prompt of the batch has a completion.
    """
    if stats.mean_tokens is None:
        return np.full(len(stats), max(otherwise, 1.0))
    own, trials = np.asarray(stats.mean_tokens), np.asarray(stats.trials)
    known = np.isfinite(own) & (trials > 0)
    pooled = (own[known] @ trials[known]) / trials[known].sum() if known.any() else otherwise
    return np.where(known, (np.nan_to_num(own) * trials + pooled) / (trials + 1), pooled).clip(
        min=1
    )


def _class_of(
    stats: PromptStats, known: CompletionMoments | None, norm: np.ndarray | None, count: np.ndarray
) -> CompletionMoments:
    """The moments given, or those of completions that all have the mean norm."""
    if known is not None:
        return known
    unknown = np.full(len(stats), np.nan)
    norm = unknown if norm is None else np.asarray(norm, dtype=np.float64)
    usable = norm > 0
    logs = np.log(np.where(usable, norm, 1.0))
    return CompletionMoments(
        np.where(usable, count, 0.0), np.where(usable, logs, np.nan), unknown, count, unknown
    )
