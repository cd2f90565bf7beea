"""Second moments of gradient norms, of the accepted and of the rejected completions of each prompt.

A prompt without an accepted completion has an accepted norm all the same, and it is not that of easy
prompts. On policy a rare outcome is a surprising one, and the gradient of a surprising completion is
large: ``ln ||s||^2`` is nearly a line in the logarithm of the surprisal ``-ln pi(y|x)``, the same line
for both classes. (For a single softmax choice of probability p, ``||s||`` is about ``1 - p``, so about
its surprisal.) docs/lab-notes.md has the lines of several policies.

Which line holds, and how far prompts are from it, is inferred from the batch. Three descriptions compete
(:func:`_designs`), each with a grid of spreads between prompts; predictions are averages over all, with
their posterior probabilities as weights. So the spread of a prediction is honest about what is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dibs.types import CompletionMoments

_SPREADS = np.geomspace(0.03, 10, 9)
"""Variances between prompts about the line that are tried; their logarithm is N(ln .3, 1.2^2)."""
_SLOPE, _SLOPE_VARIANCE = 1.2, 0.5
"""Prior of the slope in ln surprisal."""
_OFFSET_VARIANCE = 0.5
"""Of what a class is above or below the line that both share."""
_LEVEL_VARIANCE = 100.0
_EXTRA = 0.3
"""Surprisal, in nats, of a completion of mean length beyond that of its class, before any was seen."""
_LEAST_SURPRISAL = 1e-4
_FITTED = 4096
"""Prompts that decide on a line; of more, an even choice."""
_MOST_VARIANCE = 4.0
"""Of ``ln E[||s||^2]`` of a class of a prompt."""
_NEGLIGIBLE = 1e-3
"""Descriptions of less posterior probability are left out."""


@dataclass(frozen=True)
class _Classes:
    """Both classes of m prompts: row 0 accepted, row 1 rejected; float64 [2, m].

    ``own``: mean of ``ln ||s||^2``, 0 where ``count`` is 0. ``noise``: variance of that mean.
    ``written``: completions with a gradient; ``count``: those of them whose norm was measured.
    ``within``: variance of ``ln ||s||^2`` inside a class of a prompt, [2, 1]. ``surprisal``: of a
    completion in nats, None where log-probabilities are not known. ``rarity``: ``-ln P(class)``.
    ``beyond``: surprisal that completions usually have beyond the rarity of their class; 0 where
    log-probabilities are not known.
    """

    own: np.ndarray
    count: np.ndarray
    written: np.ndarray
    noise: np.ndarray
    within: np.ndarray
    surprisal: np.ndarray | None
    rarity: np.ndarray
    beyond: np.ndarray


@dataclass(frozen=True)
class _Line:
    """A description with its posterior: weight, coefficients [k], their covariance, spread."""

    kind: str
    weight: float
    coefficients: np.ndarray
    covariance: np.ndarray
    spread: float
    design: np.ndarray


@dataclass(frozen=True)
class ClassNorms:
    """The posterior of ``E[||s||^2]`` in each class of each prompt, which is log-normal.

    All arrays are [2, m] or broadcast to it; row 0 is of accepted completions, row 1 of rejected ones.
    ``log_square``, ``deviation``: mean and standard deviation of ``ln E[||s||^2]`` at the expected
    accept rate. ``slope``, ``beyond``: at another accept rate ``E[||s||^2]`` is proportional to
    ``(beyond - ln P(class))^slope``. ``inferred``: how far a norm is that of the line and not the
    prompt's own, from 0 to 1.
    """

    log_square: np.ndarray
    deviation: np.ndarray
    slope: np.ndarray
    beyond: np.ndarray
    inferred: np.ndarray

    @property
    def squares(self) -> np.ndarray:
        """``E[||s||^2]`` at the expected accept rate: the means of the log-normal ones, [2, m]."""
        found: np.ndarray = np.exp(np.clip(self.log_square + self.deviation**2 / 2, -600, 600))
        return found

    def take(self, rows: np.ndarray, m: int) -> ClassNorms:
        """The same of some of the m prompts, by their positions."""
        arrays = (self.log_square, self.deviation, self.slope, self.beyond, self.inferred)
        return ClassNorms(*(np.broadcast_to(each, (2, m))[:, rows] for each in arrays))

    @classmethod
    def unknown(cls, m: int) -> ClassNorms:
        """Norms of 1, where none was measured."""
        zero = np.zeros((2, m))
        return cls(zero, zero, zero, zero, np.ones((2, m)))


def class_norms(
    accepted: CompletionMoments,
    rejected: CompletionMoments,
    rate: np.ndarray,
    tokens: np.ndarray,
    likelihood: bool,
) -> ClassNorms:
    """What is known of the gradient norms of both classes of m prompts.

    A prompt's own mean counts against the line as far as its noise allows. Where completions are
    discounted, the line is fitted with the noise that the means have; because the policy has moved, a
    prompt's own mean still counts as that of ``count`` completions only.

    Args:
        accepted, rejected: moments of m prompts; at least one class of one prompt has completions.
        rate: expected accept rate of each prompt, in (0, 1), [m].
        tokens: expected length of a completion of each prompt, above 0, [m].
        likelihood: whether the moments' log-probabilities are known.
    """
    classes = _gathered((accepted, rejected), rate, tokens / tokens.mean(), likelihood)
    mean, square, slope, inferred = np.zeros((4, *classes.own.shape))
    for line in _lines(classes):
        expected = line.design @ line.coefficients
        doubt = np.einsum("cmk,kl,cml->cm", line.design, line.covariance, line.design)
        pull = np.where(
            classes.count > 0,
            line.spread / (line.spread + classes.within / classes.count.clip(min=1e-9)),
            0.0,
        )
        center = expected + pull * (classes.own - expected)
        spread = line.spread * (1 - pull) + (1 - pull) ** 2 * doubt
        mean += line.weight * center
        inferred += line.weight * (1 - pull)
        slope += line.weight * (1 - pull) * _slope(line, classes)
        square += line.weight * (spread + center**2)
    variance = (square - mean**2).clip(min=0, max=_MOST_VARIANCE)
    return ClassNorms(mean + classes.within / 2, np.sqrt(variance), slope, classes.beyond, inferred)


def _slope(line: _Line, classes: _Classes) -> np.ndarray:
    """Growth of ``ln ||s||^2`` with ln surprisal, where a class's rarity changes; [2, m]."""
    if line.kind == "surprisal":
        return np.where(classes.written > 0, 0.0, line.coefficients[2])
    slopes = line.coefficients[2:] if line.kind == "rarity" else np.zeros(2)
    return np.broadcast_to(slopes[:, None], classes.own.shape)


def _gathered(
    moments: tuple[CompletionMoments, CompletionMoments],
    rate: np.ndarray,
    length: np.ndarray,
    likelihood: bool,
) -> _Classes:
    count = np.array([each.count for each in moments])
    effective = np.array([each.effective_count for each in moments])
    own = 2 * np.nan_to_num(np.array([each.log_norm for each in moments]))
    scatter = 4 * np.array([each.log_norm_scatter for each in moments])
    has = count > 0
    # Its prior guess of 1/2 counts as one degree of freedom.
    freedom = np.where(has & ~np.isnan(scatter), count * (1 - 1 / effective.clip(min=1)), 0.0)
    within = (np.where(has, np.nan_to_num(scatter), 0).sum(1) + 0.5) / (freedom.sum(1) + 1)
    rarity = -np.log(np.array([rate, 1 - rate]).clip(1e-12, 1))
    surprisal, beyond = None, np.zeros(count.shape)
    written = np.array([each.likelihoods for each in moments])
    if likelihood:
        logprob = np.array([each.logprob for each in moments])
        surprisal, beyond = _surprisal(logprob, written, rarity, length)
    within = within[:, None]
    noise = np.where(has, within / effective.clip(min=1e-9), np.inf)
    return _Classes(own, count, written, noise, within, surprisal, rarity, beyond)


def _surprisal(
    logprob: np.ndarray, count: np.ndarray, rarity: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean surprisal of each class, and what is usual beyond the class's rarity; [2, m] each.

    A class without completions has the rarity of the class and what is usual beyond it. That is in
    proportion to the prompt's ``length`` [m], relative to the others: each token has its surprisal.
    """
    has = count > 0
    own = np.where(has, -np.nan_to_num(logprob), 0.0)
    beyond = (np.where(has, own - rarity, 0.0).clip(min=0) * count).sum(1, keepdims=True)
    usual = (beyond + _EXTRA) / ((count * length).sum(1, keepdims=True) + 1) * length
    return np.where(has, own, rarity + usual).clip(min=_LEAST_SURPRISAL), usual


def _designs(classes: _Classes) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """The descriptions: name, regressors [2, m, k], mean and variance of the prior [k].

    One line in ln surprisal for both classes; a line of its own for each class in ``ln -ln P(class)``,
    for which log-probabilities need not be known; no line, that is one level for each class.
    """
    shape = classes.own.shape
    one, rejected = np.ones(shape), np.broadcast_to([[0.0], [1.0]], shape)
    level, offset = _LEVEL_VARIANCE, _OFFSET_VARIANCE
    yield (
        "level",
        np.stack([one, rejected], axis=2),
        np.zeros(2),
        np.array([level, level]),
    )
    rarity = np.log(classes.rarity.clip(min=_LEAST_SURPRISAL))
    yield (
        "rarity",
        np.stack([one, rejected, rarity * (1 - rejected), rarity * rejected], axis=2),
        np.array([0, 0, _SLOPE, _SLOPE / 2]),
        np.array([level, 4 * offset, _SLOPE_VARIANCE, _SLOPE_VARIANCE]),
    )
    if classes.surprisal is not None:
        yield (
            "surprisal",
            np.stack([one, rejected, np.log(classes.surprisal)], axis=2),
            np.array([0, 0, _SLOPE]),
            np.array([level, offset, _SLOPE_VARIANCE]),
        )


def _lines(classes: _Classes) -> list[_Line]:
    """All descriptions of weight, with their posteriors."""
    known = np.flatnonzero((classes.count > 0).any(0))
    chosen = known[:: max(len(known) // _FITTED, 1)]
    has = classes.count[:, chosen] > 0
    y, noise = classes.own[:, chosen][has], classes.noise[:, chosen][has]
    center = float(y.mean())
    found: list[tuple[float, _Line]] = []
    for kind, design, usual, variance in _designs(classes):
        x = design[:, chosen][has]
        prior = usual.copy()
        prior[0] = center - (x[:, 1:] @ prior[1:]).mean()
        rest = y - x @ prior
        for spread in _SPREADS:
            precision = 1 / (spread + noise)
            weighed = x * precision[:, None]
            information = np.diag(1 / variance) + x.T @ weighed
            score = weighed.T @ rest
            covariance = np.linalg.inv(information)
            logdet = np.linalg.slogdet(information)[1] + np.log(variance).sum()
            fit = np.log(precision).sum() - precision @ rest**2 + score @ covariance @ score
            log_weight = (fit - logdet) / 2 - 0.5 * (np.log(spread / 0.3) / 1.2) ** 2
            line = _Line(kind, 0.0, prior + covariance @ score, covariance, float(spread), design)
            found.append((float(log_weight), line))
    weights = np.exp(np.array([w for w, _ in found]) - max(w for w, _ in found))
    weights = np.where(weights < _NEGLIGIBLE * weights.max(), 0, weights)
    weights /= weights.sum()
    return [
        replace(line, weight=float(w)) for w, (_, line) in zip(weights, found, strict=True) if w > 0
    ]
