"""Second moments expected under a posterior, against integrals over a fine grid."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from dibs.allocation.class_norms import ClassNorms
from dibs.allocation.posterior import Posterior
from dibs.allocation.problem import Penalty
from dibs.allocation.target import BASELINES, Target

TARGETS = [
    Target(objective, baseline) for objective in BASELINES for baseline in BASELINES[objective]
]
SHAPES = [(1.0, 1.0), (0.5, 8.0), (8.0, 0.5), (30.0, 50.0), (0.2, 3.0)]
LEAST = 1e-3
"""The accept rate that lower ones count as."""


def posterior(alpha: float, beta: float, slope: float) -> Posterior:
    row = np.ones((2, 1))
    norms = ClassNorms(0.7 * row, 0.4 * row, slope * row, 0.3 * row, row)
    return Posterior(np.array([alpha]), np.array([beta]), norms)


def integral(found: Posterior, target: Target, penalty: Penalty | None = None) -> float:
    """Mean of ``a^2 ||s||^2`` over the Beta distribution, within 3.5 deviations of its logit."""
    alpha, beta = found.alpha[0], found.beta[0]
    center = special.digamma(alpha) - special.digamma(beta)
    spread = np.sqrt(special.polygamma(1, alpha) + special.polygamma(1, beta))
    rates = special.expit(center + spread * np.linspace(-3.5, 3.5, 20_001))
    # The density of the logit is that of the rate times p (1 - p).
    density = rates**alpha * (1 - rates) ** beta
    usual = found.accept_rate[0]
    slope = found.norms.slope[0, 0]
    total = np.zeros(len(rates))
    clipped = rates.clip(LEAST, 1 - LEAST)
    for powers, share, middle in zip(
        target.square_powers, (rates, 1 - rates), (usual, 1 - usual), strict=True
    ):
        if powers is not None:
            grown = (0.3 - np.log(share.clip(1e-9))) / (0.3 - np.log(middle))
            total += clipped ** powers[0] * (1 - clipped) ** powers[1] * grown**slope
    if penalty is not None:
        total *= penalty.factor(clipped)
    return float(total @ density / density.sum() * np.exp(0.7 + 0.4**2 / 2))


@pytest.mark.parametrize("slope", [0.0, 1.2])
@pytest.mark.parametrize(("alpha", "beta"), SHAPES)
def test_second_moments_are_integrals_over_the_accept_rate(alpha, beta, slope):
    """15 nodes are within 2% of 20,001, and within 20% where a rate near 0 is divided by."""
    found = posterior(alpha, beta, slope)
    for target in TARGETS:
        expected = integral(found, target)
        tolerance = 0.02 if min(alpha, beta) >= 1 and not target.fits_accepted else 0.2
        assert found.second_moment(target)[0] == pytest.approx(expected, rel=tolerance), target


@pytest.mark.parametrize(("alpha", "beta"), SHAPES)
def test_a_penalty_is_taken_inside_the_expectation(alpha, beta):
    found, target, penalty = (
        posterior(alpha, beta, 0.0),
        Target("log_likelihood", "none"),
        Penalty(),
    )
    expected = integral(found, target, penalty)
    assert found.second_moment(target, penalty.factor)[0] == pytest.approx(expected, rel=0.2)


def test_classes_add_up():
    found = posterior(2.0, 5.0, 1.2)
    for target in TARGETS:
        parts = found.class_moments(target)
        assert parts.shape == (2, 1)
        assert parts.sum() == pytest.approx(found.second_moment(target)[0])
