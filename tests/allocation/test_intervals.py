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
