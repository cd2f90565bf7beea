"""Intervals of 95%, and how an interval is printed.

Wilson's interval covers scores of prompts, which are between 0 and 1. Student's t covers seeds, and on
the log scale ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

_Z95 = 1.959964


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its 95% interval; None where one is unknown or infinite."""

    value: float | None
    low: float | None
    high: float | None

    def map(self, rising: Callable[[float], float]) -> Interval:
        """Apply a rising function to all that is known."""
        ends = (self.value, self.low, self.high)
        return Interval(*(None if end is None else rising(end) for end in ends))


def clustered_interval(rates: np.ndarray) -> tuple[float, float]:
    """Compute the 95% interval of the mean of accept rates, or of other scores, of prompts.

    Completions of one prompt are not independent. So the spread between prompts decides the width, and
    the number of completions does not: this is Wilson's interval at the effective sample size
    ``mean (1 - mean) / SE^2``. If all prompts agree, each counts as one draw.

    Args:
        rates: [m], between 0 and 1.
    """
    m, mean = len(rates), float(np.mean(rates))
    error = float(np.var(rates, ddof=1)) / m if m > 1 else 0.0
    size = mean * (1 - mean) / error if error > 0 else float(m)
    center = (mean + _Z95**2 / (2 * size)) / (1 + _Z95**2 / size)
    half = (
        _Z95 / (1 + _Z95**2 / size) * math.sqrt(mean * (1 - mean) / size + (_Z95 / (2 * size)) ** 2)
    )
    return max(center - half, 0.0), min(center + half, 1.0)


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """Compute the 95% interval of the mean difference between two scores of the same prompts.

    The mean difference is the mean gain, max(d, 0), minus the mean loss, max(-d, 0). Each of the two has
    the interval of :func:`clustered_interval`. Their distances to its ends stand for standard errors in
    the formula for the variance of a difference, at the correlation of gains and losses (the method of
    variance estimates recovery, Zou and Donner 2008). Two scores that agree on all m prompts so get an
    interval of a width above 0, about ``4 / m`` to each side. Exchanging the scores mirrors it.

    Args:
        differences: d, [m], between -1 and 1.
    """
    gains, losses = np.maximum(differences, 0.0), np.maximum(-differences, 0.0)
    gain, loss = float(gains.mean()), float(losses.mean())
    gain_low, gain_high = clustered_interval(gains)
    loss_low, loss_high = clustered_interval(losses)
    spread = float(gains.std() * losses.std())
    together = float(np.mean((gains - gain) * (losses - loss))) / spread if spread > 0 else 0.0

    def apart(one: float, other: float) -> float:
        return math.sqrt(max(one**2 + other**2 - 2 * together * one * other, 0.0))

    low = gain - loss - apart(gain - gain_low, loss_high - loss)
    high = gain - loss + apart(gain_high - gain, loss - loss_low)
    return max(low, -1.0), min(high, 1.0)


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean over seeds and the ends of its 95% interval by Student's t.

    Args:
        values: [seeds, ...]; the results have the other axes. Of one seed, the ends are NaN.
    """
    seeds = len(values)
    mean = values.mean(axis=0)
    if seeds == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    margin = stdtrit(seeds - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return mean, mean - margin, mean + margin


def jackknife_error(without: np.ndarray) -> float:
    """Standard error of a statistic, from its values without any one of the k parts, [k]; NaN of one.

    It is ``sqrt((k - 1) / k sum_i (v_i - mean v)^2)`` (Efron and Stein 1981).
    """
    k = len(without)
    return float(np.sqrt((k - 1) * np.var(without))) if k > 1 else np.nan


def on_log_scale(value: float, error: float, freedom: float) -> Interval:
    """Return a ratio with the interval of Student's t about its logarithm; None for what is not finite.

    Args:
        value: above 0.
        error: standard error of its logarithm.
        freedom: degrees of freedom, above 0.
    """
    with np.errstate(all="ignore"):
        factor = np.exp(stdtrit(freedom, 0.975) * error)
        ends = (value, value / factor, value * factor)
    return Interval(*(float(each) if np.isfinite(each) else None for each in ends))


def effective_number(z: np.ndarray) -> float:
    """How many of m deviations make up their spread: ``(sum z^2)^2 / sum z^4``; m if all are 0."""
    fourth = float((z**4).sum())
    return float((z**2).sum()) ** 2 / fourth if fourth > 0 else float(len(z))


def number_text(value: float) -> str:
    """Print a number: without decimals from 100 up, with two below."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def interval_text(
    found: Interval,
    number: Callable[[float], str] = number_text,
    *,
    unknown_value: str | None = None,
    unknown_end: str | None = None,
) -> str:
    """Print an interval as ``value (low-high)``.

    Args:
        found: printed as ``-`` if it has neither a value nor an end.
        number: prints a number.
        unknown_value: printed for a value of None that has ends; the default prints ``-`` alone.
        unknown_end: printed for an end of None; the default leaves out both ends if one is unknown.
    """
    ends = (found.low, found.high)
    if found.value is None and (unknown_value is None or ends == (None, None)):
        return "-"
    value = str(unknown_value) if found.value is None else number(found.value)
    if unknown_end is None and None in ends:
        return value
    low, high = (str(unknown_end) if end is None else number(end) for end in ends)
    return f"{value} ({low}-{high})"
