"""What the gradient's variance would be under some counts, and what that means. numpy only.

For given prompts the variance of the step's gradient is ``(1/m^2) sum_i sigma_i^2 / n_i``. A prompt's
share of it is linear in ``1 / n_i``, so the functions here work on shares [m]. They return ratios of
sums of shares, with intervals from resampled prompts (a cluster bootstrap; a prompt's own noise is part
of its share).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dibs.allocation.intervals import Interval, bootstrap


def ratio_of_sums(above: np.ndarray, below: np.ndarray) -> Interval:
    """``sum above / sum below`` over prompts [m]; unknown where a share below is infinite."""
    below = _finite(below)
    return bootstrap(lambda w: (w @ above) / (w @ below), len(above))


def _finite(values: np.ndarray) -> np.ndarray:
    """The values, or all NaN where one is infinite: no resample may leave it out."""
    return np.where(np.isfinite(values).all(), values, np.nan)


def variance_shares(sigma_squared: np.ndarray, counts: Sequence[np.ndarray]) -> np.ndarray:
    """``sigma_i^2 / n_i`` of a gradient that is the mean of its parts, [m].

    ``counts``: of each part, [m]. Infinite where a prompt whose gradient varies has no completion.
    """
    total = np.zeros(len(sigma_squared))
    for each in counts:
        share = np.where(sigma_squared > 0, np.inf, 0.0)
        total += np.divide(sigma_squared, each, out=share, where=each > 0)
    return total / len(counts) ** 2


def gain(above: np.ndarray, below: np.ndarray, factor: float = 1.0) -> Interval:
    """``factor sum above / sum below`` over prompts [m]."""
    return bootstrap(lambda w: factor * (w @ above) / (w @ below), len(above))


def shrunken_gain(
    uniform: np.ndarray, chosen: np.ndarray, kept: np.ndarray, uniform_kept: np.ndarray
) -> Interval:
    """The gain where both gradients are scaled to one length: times the square of ``kept`` over uniform's.

    All are [m].
    """
    return bootstrap(
        lambda w: (w @ uniform) / (w @ chosen) * ((w @ kept) / (w @ uniform_kept)) ** 2, len(chosen)
    )


@dataclass(frozen=True)
class NoiseScale:
    """How a step's gradient compares with its noise.

    ``square``: ``||g||^2``. ``rollouts``: the gradient noise scale, completions of uniform counts at
    which their noise equals the gradient (trace Cov / ||g||^2). ``completions``, ``prompts``: variance
    of the step's gradient over ``||g||^2``, by completions and by which prompts were drawn.
    ``completion_share``: the first over their sum, all that counts can change.
    """

    square: Interval
    rollouts: Interval
    completions: Interval
    prompts: Interval
    completion_share: Interval


def noise_scale(
    uniform: np.ndarray, products: np.ndarray, own: np.ndarray, rollouts: float, step_prompts: int
) -> NoiseScale:
    """The noise of a step, from prompts that stand for all.

    Args:
        uniform: ``sigma_i^2 / n_i`` under uniform counts, [m].
        products: inner products of the prompts' mean gradients, [m, m]; the diagonal is not used.
        own: ``||E[a s]||^2`` of each prompt, estimated without bias, [m].
        rollouts: training completions of a step of m prompts.
        step_prompts: prompts of a step of training.
    """
    m = len(own)
    off = products - np.diag(np.diag(products))

    def square(w: np.ndarray) -> float:
        return float(w @ off @ w / (w.sum() ** 2 - w @ w))

    def signal(w: np.ndarray) -> float:
        found = square(w)
        return found if found > 0 else 0.0

    def by_prompts(w: np.ndarray) -> float:
        return max(float(w @ own / w.sum()) - square(w), 0.0) / step_prompts

    def by_completions(w: np.ndarray) -> float:
        return float(w @ uniform / w.sum()) / step_prompts

    per_step = rollouts * step_prompts / m
    return NoiseScale(
        square=bootstrap(square, m),
        rollouts=bootstrap(lambda w: per_step * np.divide(by_completions(w), signal(w)), m),
        completions=bootstrap(lambda w: np.divide(by_completions(w), signal(w)), m),
        prompts=bootstrap(lambda w: np.divide(by_prompts(w), signal(w)), m),
        completion_share=bootstrap(
            lambda w: np.divide(by_completions(w), by_completions(w) + by_prompts(w)), m
        ),
    )
