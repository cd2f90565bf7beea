"""The gain of several steps: a ratio of sums, with an interval that covers heavy tails."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.variance import pooled_gain

NONE = (None, None, None)


def ends(uniform: list[float], chosen: list[float]) -> tuple[float | None, ...]:
    found = pooled_gain(np.array(uniform), np.array(chosen))
    return found.value, found.low, found.high


def test_sums_by_hand():
    """(4 + 2) / (2 + 2); without a step the logarithms are 0 and ln 2. t (1) at .975 is 12.706."""
    value, low, high = ends([4.0, 2.0], [2.0, 2.0])
    margin = np.exp(12.7062 * np.log(2) / 2)
    assert value == 1.5
    assert (low, high) == (
        pytest.approx(1.5 / margin, rel=1e-4),
        pytest.approx(1.5 * margin, rel=1e-4),
    )
    assert ends([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("uniform", "chosen", "expected"),
    [
        ([], [], NONE),
        ([0.0, 0.0], [0.0, 0.0], NONE),
        ([1.0, np.nan], [1.0, np.nan], NONE),
        ([3.0], [2.0], (1.5, None, None)),
        ([3.0, 0.0], [2.0, 0.0], (1.5, None, None)),  # one step holds all
    ],
)
def test_what_has_no_gain_or_no_interval(uniform, chosen, expected):
    assert ends(uniform, chosen) == expected


@pytest.mark.parametrize("steps", [4, 16])
def test_intervals_cover_heavy_tails(steps):
    """Variances of a step share a log-normal factor of deviation 1; 1,000 windows."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        shared = np.exp(rng.normal(0, 1.0, steps))
        uniform, chosen = (shared * np.exp(rng.normal(0, 0.5, steps)) for _ in range(2))
        _, low, high = ends((2 * uniform).tolist(), chosen.tolist())
        assert low is not None
        assert high is not None
        inside += low <= 2 <= high
    assert 0.89 <= inside / 1000 <= 0.98
