"""The variance of a step by its shape: how many prompts, and how many completions of each. numpy only.

A step of m prompts, drawn from many, with n completions each has the variance ::

    (B + W_n) / m        B = mean_i ||mu_i||^2 - ||mean_i mu_i||^2        W_n = mean_i Var(group of n)

Where prompts are drawn with chances in proportion to ``r_i`` (mean 1) and weighed by ``1 / r_i``, it is
``(mean_i (||mu_i||^2 + W_ni) / r_i - ||mean_i mu_i||^2) / m``. All means are over prompts that were
measured, which stand for those that were not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dibs.allocation.intervals import Interval, effective_number, jackknife_error, on_log_scale


@dataclass(frozen=True)
class ShapeNoise:
    """The noise of one way to make a step, and the same without any one of the prompts; [1 + m] each.

    ``variance``: of the step's gradient. ``within``: its part that comes from completions. ``length``:
    what the estimator keeps of its target, on any scale that shapes share.
    """

    variance: np.ndarray
    within: np.ndarray
    length: np.ndarray

    @property
    def at_one_length(self) -> np.ndarray:
        """The variance where the expected gradient has the length 1, [1 + m]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled: np.ndarray = self.variance / self.length**2
        return scaled


def shape_noise(
    within: np.ndarray,
    own: np.ndarray,
    products: np.ndarray,
    kept: np.ndarray,
    prompts: float,
    rates: np.ndarray | None = None,
) -> ShapeNoise:
    """The noise of steps of some number of prompts.

    Args:
        within: variance of a group's gradient, [m].
        own: ``||mu_i||^2`` of what the estimator keeps, estimated without bias, [m].
        products: inner products of the same mean gradients, [m, m]; the diagonal is not used.
        kept: what the estimator keeps of each prompt's gradient, on a common scale, [m].
        prompts: of a step, on average.
        rates: how often each prompt is drawn, on any scale, above 0, [m]; None: all alike.
    """
    m = len(own)
    rates = np.ones(m) if rates is None else rates
    off = products - np.diag(np.diag(products))

    def without(values: np.ndarray) -> np.ndarray:
        return np.append(values.mean(), (values.sum() - values) / (m - 1))

    pairs = np.append(off.sum(), off.sum() - off.sum(0) - off.sum(1))
    square = pairs / np.append(m * (m - 1), np.full(m, max((m - 1) * (m - 2), 1)))
    scale = without(rates) / prompts
    drawn = without(within / rates) * scale
    return ShapeNoise(drawn + without(own / rates) * scale - square / prompts, drawn, without(kept))


def noise_ratio(above: ShapeNoise, below: ShapeNoise) -> Interval:
    """The variance of one way over that of another, both at one length, with a 95% interval.

    By the jackknife over prompts on the log scale. Degrees of freedom are half the effective number of
    prompts, as for the noise scale (:mod:`.variance`). Unknown where a variance may not be above 0.
    """
    ratio = above.at_one_length / below.at_one_length
    if not (np.isfinite(ratio) & (ratio > 0)).all() or len(ratio) < 4:
        value = float(ratio[0])
        return Interval(value if np.isfinite(value) and value > 0 else None, None, None)
    logs = np.log(ratio)
    z = (logs[1:] - logs[1:].mean()).round(12)  # equal logarithms differ by rounding alone
    freedom = max(effective_number(z) / 2, 2.0)
    return on_log_scale(float(ratio[0]), jackknife_error(z), freedom)
