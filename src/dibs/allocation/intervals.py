"""Intervals of 95%: bootstrap over prompts or seeds, and how an interval is printed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A number with a 95% bootstrap interval; None where it cannot be told, or is infinite."""

    value: float | None
    low: float | None
    high: float | None


def bootstrap(statistic: Callable[[np.ndarray], float], m: int, seed: int = 0) -> Interval:
    """A statistic of weighted prompts with its percentile interval.

    Args:
        statistic: its value where prompt i counts ``weights[i]`` times, float64 [m].
        m: number of prompts.
    """
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(m, np.full(m, 1 / m), size=RESAMPLES).astype(np.float64)
    with np.errstate(all="ignore"):
        value = float(statistic(np.ones(m)))
        values = np.array([statistic(weights) for weights in draws])
    known = values[~np.isnan(values)]
    low, high = (
        np.quantile(known, (0.025, 0.975), method="nearest") if len(known) else (np.nan, np.nan)
    )
    return Interval(*(float(v) if np.isfinite(v) else None for v in (value, low, high)))


_Z95 = 1.959964


def mean_with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over prompts [m] in [0, 1] with its 95% bootstrap interval.

    Where all prompts agree there is nothing to resample, and the interval is :func:`clustered_interval`.
    """
    if np.ptp(values) == 0:
        return (float(values[0]), *clustered_interval(values))
    told = bootstrap(lambda w: float(w @ values / w.sum()), len(values))
    assert told.low is not None
    assert told.high is not None
    mean = float(values.mean())
    return mean, max(told.low, 0.0), min(told.high, 1.0)


def clustered_interval(rates: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of per-prompt accept rates, [m] in [0, 1].

    Completions of one prompt are not independent, so the spread between prompts counts, not the
    number of completions: a Wilson interval at the effective sample size ``mean (1 - mean) / SE^2``.
    Where all prompts agree, each counts as one draw.
    """
    m, mean = len(rates), float(np.mean(rates))
    error = float(np.var(rates, ddof=1)) / m if m > 1 else 0.0
    size = mean * (1 - mean) / error if error > 0 else float(m)
    center = (mean + _Z95**2 / (2 * size)) / (1 + _Z95**2 / size)
    half = (
        _Z95 / (1 + _Z95**2 / size) * math.sqrt(mean * (1 - mean) / size + (_Z95 / (2 * size)) ** 2)
    )
    return max(center - half, 0.0), min(center + half, 1.0)
