"""Measured variances pooled over steps and seeds, from run folders and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dibs.allocation.variance import pooled_gain
from dibs.report.measured_gain import measured_steps, measured_variance
from run_folders import make_run, reported_run


def line(step, uniform, chosen):
    return {
        "step": step,
        "measured_gain": 9.0,
        "measured_variance_uniform": uniform,
        "measured_variance": chosen,
    }


@pytest.fixture
def run(tmp_path):
    return reported_run(make_run(tmp_path / "run", steps=4))


def test_steps_of_a_run_that_has_them():
    lines = [{"step": 1}, line(2, 3.0, 2.0), line(4, None, None), {"step": 6, "measured_gain": 2.0}]
    found = measured_steps(lines)
    np.testing.assert_array_equal(found, [[2, 3, 2], [4, np.nan, np.nan]])
    assert measured_steps([]).shape == (0, 3)


def test_seeds_and_the_latest_steps_are_pooled(run):
    config = {**run.config, "variance": {"window": 2}}
    one = replace(run, config=config, metrics=[line(1, 9, 1), line(2, 3, 2), line(3, 5, 4)])
    two = replace(run, config=config, metrics=[line(1, 4, 4), line(2, 1, 2), line(3, 2, 1)])
    steps, mean, low, high = measured_variance([one, two])
    assert steps.tolist() == [1, 2, 3]
    assert mean == pytest.approx([5 / 13, 9 / 17, 9 / 11])
    expected = pooled_gain(np.array([3.0, 5, 1, 2]), np.array([2.0, 4, 2, 1]))
    assert expected.low
    assert expected.high
    assert (low[2], high[2]) == pytest.approx((1 / expected.high, 1 / expected.low))


def test_a_window_with_a_prompt_left_out_and_a_run_of_before_have_no_point(run):
    config = {**run.config, "variance": {"window": 2}}
    lines = [line(1, None, None), line(2, 3, 2), line(3, 5, 4)]
    steps, mean, low, high = measured_variance([replace(run, config=config, metrics=lines)])
    assert steps.tolist() == [3]
    assert mean == pytest.approx([6 / 8])
    before = replace(run, metrics=[{"step": 1, "measured_gain": 2.0, "measured_gain_low": 1.0}])
    assert [len(each) for each in measured_variance([before])] == [0, 0, 0, 0]
    one = replace(run, config={}, metrics=[line(1, 3, 2)])
    _, mean, low, high = measured_variance([one])
    assert mean == pytest.approx([2 / 3])
    assert np.isnan([*low, *high]).all()
