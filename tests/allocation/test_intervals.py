"""The parts that all intervals share: ratios, and how an interval is printed."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.intervals import (
    Interval,
    effective_number,
    interval_text,
    number_text,
    on_log_scale,
    paired_interval,
)


def test_intervals_on_the_log_scale_by_hand():
    """t of 1 degree of freedom at .975 is 12.706, so an error of ln 2 / 12.706 is a factor of 2."""
    found = on_log_scale(3.0, np.log(2) / 12.7062, 1)
    assert (found.value, found.low, found.high) == pytest.approx((3, 1.5, 6), rel=1e-4)
    assert on_log_scale(3.0, 0.0, 5) == Interval(3, 3, 3)
    assert on_log_scale(3.0, np.nan, 5) == Interval(3, None, None)
    assert on_log_scale(np.inf, 0.1, 5) == Interval(None, None, None)


def test_effective_numbers_by_hand():
    assert effective_number(np.array([1.0, -1, 1, -1])) == 4
    assert effective_number(np.array([5.0, 0, 0])) == 1
    assert effective_number(np.zeros(7)) == 7


def test_what_is_unknown_stays_unknown():
    assert Interval(None, 2.0, None).map(lambda end: 3 * end) == Interval(None, 6, None)


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ((1.0, 0.5, 150.0), {}, "1.00 (0.50-150)"),
        ((1.0, 0.5, None), {}, "1.00"),
        ((1.0, 0.5, None), {"unknown_end": "?"}, "1.00 (0.50-?)"),
        ((None, 0.5, 2.0), {}, "-"),
        ((None, 0.5, 2.0), {"unknown_value": "not reached"}, "not reached (0.50-2.00)"),
        ((None, None, None), {"unknown_value": "not reached"}, "-"),
        ((0.5, 0.25, 0.75), {"number": "{:.0%}".format}, "50% (25%-75%)"),
    ],
)
def test_how_an_interval_is_printed(values, options, text):
    assert interval_text(Interval(*values), **options) == text


def test_numbers_from_100_up_have_no_decimals():
    assert [number_text(value) for value in (0.004, 99.99, 100.4, 12345.0)] == [
        "0.00",
        "99.99",
        "100",
        "12,345",
    ]


def test_paired_intervals_by_hand():
    """z^2 = 3.8415. Of [1, 0, 0, -1], gains and losses have mean 1/4, effective size 3 and correlation
    -1/3; Wilson's ends are .036842 and .743908."""
    one, other = 0.25 - 0.036842, 0.743908 - 0.25
    half = np.sqrt(one**2 + other**2 + 2 / 3 * one * other)
    found = paired_interval(np.array([1.0, 0, 0, -1]))
    assert found == pytest.approx((-half, half), abs=2e-6)


@pytest.mark.parametrize("m", [1, 2, 100])
def test_paired_intervals_where_all_prompts_agree(m):
    edge = 3.8415 / (m + 3.8415)
    assert paired_interval(np.zeros(m)) == pytest.approx((-edge, edge), rel=1e-4)
    low, high = paired_interval(np.ones(m))
    assert (low, high) == pytest.approx((1 - np.sqrt(2) * edge, 1), rel=1e-4)
    assert paired_interval(-np.ones(m)) == (-high, -low)


def test_paired_intervals_mirror_and_become_those_of_a_mean():
    rng = np.random.default_rng(0)
    d = rng.binomial(4, 0.5, 20_000) / 4 - rng.binomial(4, 0.4, 20_000) / 4
    low, high = paired_interval(d)
    assert paired_interval(-d) == pytest.approx((-high, -low))
    error = 1.959964 * d.std() / np.sqrt(len(d))
    assert (low, high) == pytest.approx((d.mean() - error, d.mean() + error), abs=1e-4)
    assert paired_interval(np.repeat([0.5, -0.5], 1000))[1] < 0.03


def test_paired_intervals_hold_a_rare_difference():
    """A prompt in 30 differs; Student's t has no width when none of 30 drawn ones does."""
    rng = np.random.default_rng(1)
    ends = [paired_interval((rng.random(30) < 1 / 30).astype(float)) for _ in range(1000)]
    assert np.mean([low <= 1 / 30 <= high for low, high in ends]) > 0.94
