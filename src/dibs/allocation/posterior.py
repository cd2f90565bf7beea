"""Estimates of prompts from the statistics of a few completions. Knows no budget.

Shares and means of a few completions are poor estimates. :func:`fit_posterior` turns them into a
:class:`Posterior`, for which every prompt borrows from the others of its batch (empirical Bayes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special
from scipy import stats as distributions

from dibs.allocation.target import Target
from dibs.types import CompletionMoments, PromptStats, RewardMoments


@dataclass(frozen=True)
class Posterior:
    """Distributions of the unknown moments of each of m prompts; all float64 [m].

    The accept rate is Beta(``alpha``, ``beta``). ``E[||s||^2]`` of accepted and of rejected completions
    is log-normal: ``log_square`` is the mean of its logarithm, ``log_square_deviation`` its standard
    deviation. ``rewards``: expected moments of the rewards of accepted and of rejected completions; None
    where they are 1 and 0.
    """

    alpha: np.ndarray
    beta: np.ndarray
    log_square: np.ndarray
    log_square_deviation: np.ndarray
    log_square_rejected: np.ndarray
    log_square_rejected_deviation: np.ndarray
    rewards: tuple[RewardMoments, RewardMoments] | None = None

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

    def second_moment(self, target: Target) -> np.ndarray:
        """``E[a_i^2 ||s||^2]``, expected under this posterior: an upper bound of sigma_i^2.

        A mean of 1/p is taken as the squared mean of its root, with alpha at least 1, so that it is
        finite. The mean gradient is not subtracted, because a few pilots do not determine it. Moments
        are cut at e^600 and at e^-600. For rewards other than 0 and 1 the accept rate is taken at its
        mean.
        """
        squares = self._squares()
        if self.rewards is not None and not target.fits_accepted:
            return target.second_moment(self.accept_rate, squares, self.rewards)
        total = np.zeros(len(self.alpha))
        for pair, square in zip(target.square_powers, squares, strict=True):
            if pair is not None:
                total += square * self._mean_product(*pair)
        return total

    def _squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Means of ``E[||s||^2]`` of accepted and of rejected completions."""
        logs = self.log_square + self.log_square_deviation**2 / 2
        rejected = self.log_square_rejected + self.log_square_rejected_deviation**2 / 2
        return np.exp(np.clip(logs, -600, 600)), np.exp(np.clip(rejected, -600, 600))

    def _mean_product(self, power: int, other: int) -> np.ndarray:
        """``E[p^power (1 - p)^other]``; for a negative power, the squared mean of its root."""
        share = 1.0 if power >= 0 else 0.5
        alpha = self.alpha if power >= 0 else np.maximum(self.alpha, 1.0)
        log = special.betaln(alpha + share * power, self.beta + share * other)
        return np.exp((log - special.betaln(alpha, self.beta)) / share)


def fit_posterior(stats: PromptStats) -> Posterior:
    """The posterior of every prompt, under priors fitted across the prompts of the batch.

    The accept rate has a Beta prior whose concentration, and whose mean as a function of the prompt's
    log-probabilities where they are known, are fitted by maximum likelihood (beta-binomial regression).
    The logarithm of a class's second moment has a normal prior fitted by restricted likelihood; each
    prompt's own mean pulls it as far as the class's spread within prompts allows. A prompt without an
    accepted completion keeps a small accept rate, never 0.
    """
    alpha, beta = _accept_rates(stats)
    accepted = _class_of(stats, stats.accepted, stats.grad_norm, stats.successes)
    rejections = np.asarray(stats.trials) - np.asarray(stats.successes)
    rejected = _class_of(stats, stats.rejected, stats.grad_norm_rejected, rejections)
    # A class of which no prompt of the batch has a completion is taken to be like the other.
    fallback = next((c for c in (accepted, rejected) if (c.count > 0).any()), None)
    if fallback is None:
        zero = np.zeros(len(stats))
        return Posterior(alpha, beta, zero, zero, zero, zero)
    levels = [_log_squares(c if (c.count > 0).any() else fallback) for c in (accepted, rejected)]
    rewards = None
    if accepted.rewards is not None and rejected.rewards is not None:
        counts = (np.asarray(stats.successes), rejections)
        rewards = (
            _shrunken(accepted.rewards, counts[0], otherwise=1.0),
            _shrunken(rejected.rewards, counts[1], otherwise=0.0),
        )
    return Posterior(alpha, beta, *levels[0], *levels[1], rewards)


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


def _accept_rates(stats: PromptStats) -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta of the posterior accept rates."""
    successes = np.asarray(stats.successes, dtype=np.float64)
    failures = np.asarray(stats.trials) - successes
    covariate = _likelihood_covariate(stats)
    # Without a covariate equal prompts are one row with a multiplicity.
    rows = successes + 1j * failures if not covariate.any() else np.arange(len(stats))
    _, first, multiplicity = np.unique(rows, return_index=True, return_counts=True)

    def prior(
        parameters: np.ndarray, covariate: np.ndarray = covariate
    ) -> tuple[np.ndarray, np.ndarray]:
        level, slope, log_concentration = parameters
        mean = special.expit(level + slope * covariate).clip(1e-6, 1 - 1e-6)
        concentration = np.exp(log_concentration)
        return mean * concentration, (1 - mean) * concentration

    def loss(parameters: np.ndarray) -> float:
        a, b = prior(parameters, covariate[first])
        evidence = special.betaln(a + successes[first], b + failures[first])
        likelihood = multiplicity @ (evidence - special.betaln(a, b))
        # Weak priors keep a few prompts from claiming certainty.
        doubt = 0.5 * ((parameters[2] - np.log(8.0)) / 1.5) ** 2 + 0.01 * parameters[1] ** 2
        return doubt - float(likelihood)

    overall = (successes.sum() + 1) / (successes.sum() + failures.sum() + 2)
    start = np.array([special.logit(overall), 0.0, np.log(5.0)])
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=[(-14, 14), (-5, 5), (-3, 7)])
    a, b = prior(found.x)
    return a + successes, b + failures


def _likelihood_covariate(stats: PromptStats) -> np.ndarray:
    """A standardized covariate of the accept rate, [m]: how likely the prompt's completions were.

    Accepted completions are the likelier ones, so a plain mean over the pilots would count their
    successes a second time and overstate the fit of the regression. The usual difference between the
    classes is therefore subtracted first. Ranks then limit outliers. The covariate is all zeros where
    log-probabilities are not known.
    """
    m = len(stats)
    if stats.accepted is None or stats.rejected is None:
        return np.zeros(m)
    yes, no = stats.accepted, stats.rejected
    both = (yes.count > 0) & (no.count > 0)
    weight = (yes.count * no.count / (yes.count + no.count).clip(min=1e-9))[both]
    difference = (yes.logprob - no.logprob)[both]
    gap = float((weight * difference).sum() / weight.sum()) if weight.sum() > 0 else 0.0
    total = yes.count + no.count
    known = total > 0
    sums = np.nan_to_num(yes.logprob - gap) * yes.count + np.nan_to_num(no.logprob) * no.count
    result = np.zeros(m)
    ranks = distributions.rankdata(sums[known] / total[known])
    result[known] = special.ndtri((ranks - 0.5) / max(int(known.sum()), 1))
    return result


def _log_squares(moments: CompletionMoments) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the posterior of ``ln E[||s||^2]`` in a class, [m] each.

    With ``y`` a prompt's mean of ``ln ||s||^2`` over n completions: ``y ~ N(u, w / n)``,
    ``u ~ N(level, t)``, and ``ln E[||s||^2] = u + w / 2``. w is pooled over prompts; its prior guess of
    1/2 counts as one degree of freedom. t maximizes the restricted likelihood, approximately (the
    iteration of random-effects meta-analysis).

    Where completions are discounted, priors are fitted with the noise that the means have. Because the
    policy has moved, a prompt's own mean still counts as that of ``count`` completions only.
    """
    has = moments.count > 0
    count, effective = moments.count[has], moments.effective_count[has]
    own = 2 * moments.log_norm[has]
    scatter = 4 * moments.log_norm_scatter[has]
    freedom = np.where(np.isnan(scatter), 0.0, count * (1 - 1 / effective))
    within = float((np.nansum(scatter) + 0.5) / (freedom.sum() + 1))
    noise = within / effective
    between = max(float(own.var()) - float(noise.mean()), 0.05)
    for _ in range(50):
        weight = 1 / (between + noise)
        level = float((weight * own).sum() / weight.sum())
        excess = (weight**2 * ((own - level) ** 2 * len(own) / max(len(own) - 1, 1) - noise)).sum()
        updated = max(float(excess / (weight**2).sum()), 1e-3)
        settled = abs(updated - between) < 1e-6
        between = updated
        if settled:
            break
    pull = np.zeros(len(has))
    pull[has] = between / (between + within / count)
    mean = np.full(len(has), level)
    mean[has] += pull[has] * (own - level)
    return mean + within / 2, np.sqrt(between * (1 - pull))
