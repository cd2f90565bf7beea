"""The noise of shapes: by hand, by repetition, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.shapes import noise_ratio, shape_noise

MEANS = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, -1.0]])
SPREAD = np.array([1.0, 4.0, 2.0, 0.5])
"""Mean gradients of four prompts, and the variance of one completion of each."""
OWN, PRODUCTS = (MEANS**2).sum(1), MEANS @ MEANS.T


def test_a_shape_by_hand():
    """Two prompts with two completions: (W / 2 + B) / 2, B without the bias of four prompts."""
    found = shape_noise(SPREAD / 2, OWN, PRODUCTS, np.ones(4), 2)
    off = (PRODUCTS.sum() - np.trace(PRODUCTS)) / 12
    assert found.within[0] == pytest.approx(SPREAD.mean() / 4)
    assert found.variance[0] == pytest.approx((SPREAD.mean() / 2 + OWN.mean() - off) / 2)
    assert found.length.tolist() == [1] * 5
    # Without the last prompt.
    three = shape_noise(SPREAD[:3] / 2, OWN[:3], PRODUCTS[:3, :3], np.ones(3), 2)
    assert found.variance[4] == pytest.approx(three.variance[0])
    assert found.within[4] == pytest.approx(three.within[0])


def test_half_the_prompts_and_twice_the_completions_are_noisier():
    shapes = [shape_noise(SPREAD / n, OWN, PRODUCTS, np.ones(4), 8 / n) for n in (1, 2, 4)]
    noise = [each.variance[0] for each in shapes]
    assert noise == sorted(noise)
    assert shapes[0].within[0] == pytest.approx(shapes[2].within[0])


def test_drawing_by_rates_against_repetition():
    """Prompts drawn with chances r_i / m and weighed by 1 / r_i, one completion each."""
    rng = np.random.default_rng(3)
    count, times = 4000, 4000
    mean = rng.normal(0.2, 1, (count, 1)) * np.exp(rng.normal(0, 0.5, (count, 1)))
    spread = np.exp(rng.normal(0, 0.5, count))
    rates = np.sqrt(mean[:, 0] ** 2 + spread)
    rates /= rates.mean()
    for chosen in (None, rates):
        r = np.ones(count) if chosen is None else chosen
        found = shape_noise(spread, mean[:, 0] ** 2, mean @ mean.T, np.ones(count), 10, chosen)
        drawn = rng.choice(count, (times, 10), p=r / count)
        noise = np.sqrt(spread[drawn]) * rng.normal(size=drawn.shape)
        steps = ((mean[drawn, 0] + noise) / r[drawn]).mean(1)
        assert steps.var() == pytest.approx(found.variance[0], rel=0.1)
        assert steps.mean() == pytest.approx(mean.mean(), abs=5 * steps.std() / np.sqrt(times))


def test_ratios_and_their_intervals():
    one = shape_noise(SPREAD, OWN, PRODUCTS, np.ones(4), 8)
    other = shape_noise(SPREAD, OWN, PRODUCTS, np.full(4, 0.5), 8)
    same = noise_ratio(one, one)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    # A gradient of half the length is four times as noisy at one length.
    assert noise_ratio(one, other).value == pytest.approx(0.25)
    halved = shape_noise(SPREAD, OWN, PRODUCTS, np.ones(4), 16)
    assert noise_ratio(one, halved).value == pytest.approx(2)
    uneven = shape_noise(SPREAD / 8, OWN, PRODUCTS, np.ones(4), 1)
    found = noise_ratio(one, uneven)
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert found.low < found.value < found.high
    nothing = shape_noise(np.zeros(4), np.zeros(4), np.zeros((4, 4)), np.zeros(4), 8)
    assert noise_ratio(one, nothing).value is None
    assert noise_ratio(nothing, one).low is None


def test_intervals_hold_the_truth():
    """Forty of many prompts stand for all; 64 x 2 against 16 x 8."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        mean = rng.normal(0.3, 1, (40, 3))
        spread = np.exp(rng.normal(1, 0.7, 40))
        own, products, ones = (mean**2).sum(1), mean @ mean.T, np.ones(40)
        shapes = [shape_noise(spread / n, own, products, ones, 128 / n) for n in (8, 2)]
        found = noise_ratio(*shapes)
        between, within = 3.0, np.exp(1 + 0.49 / 2)
        truth = (between + within / 8) / 16 / ((between + within / 2) / 64)
        assert found.low is not None
        assert found.high is not None
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) > 0.9
