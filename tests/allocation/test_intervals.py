"""The parts that all intervals share: resamples, percentiles and how an interval is printed."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.intervals import (
    Interval,
    interval_text,
    number_text,
    percentile_ends,
    resampled_weights,
)


def test_a_resample_counts_as_many_items_as_there_are():
    weights = resampled_weights(5, 200, seed=3)
    assert weights.shape == (200, 5)
    assert (weights.sum(axis=1) == 5).all()
    assert (resampled_weights(1, 4) == 1).all()
    np.testing.assert_array_equal(weights, resampled_weights(5, 200, seed=3))


def test_percentile_ends_are_among_the_values():
    assert percentile_ends(np.arange(101.0)) == (2.0, 98.0)  # places 2.5 and 97.5: nearest, even
    assert percentile_ends(np.array([7.0])) == (7.0, 7.0)
    assert np.isnan(percentile_ends(np.zeros(0))).all()


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
