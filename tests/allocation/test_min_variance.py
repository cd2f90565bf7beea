"""Counts for a target gradient: gains by hand, nobody starved, extreme statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dibs import allocate
from dibs.allocation.allocators import describe, expected_gain, solve
from dibs.allocation.problem import Bounds, pose
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.types import Allocation, PromptStats
from tiny_groups import make_group, make_prompt

NAN = float("nan")


def test_min_variance_stays_uniform_where_there_is_nothing_to_gain():
    counts = allocate([8] * 4, [4] * 4, [1.0, 1.01, 0.99, 1.0], budget=32)
    assert counts.tolist() == [8, 8, 8, 8]


def test_min_variance_never_starves_and_learns_from_the_batch():
    trials, successes = [8] * 6, [8, 8, 7, 4, 2, 0]
    norms = [0.1, 0.1, 0.3, 1.0, 2.0, NAN]
    counts = allocate(trials, successes, norms, budget=48)
    assert counts.min() >= 1
    assert counts[5] > counts[3] > counts[0]
    assert allocate([0] * 3, [0] * 3, [NAN] * 3, budget=9).tolist() == [3, 3, 3]
    assert allocate([8] * 3, [0] * 3, [NAN] * 3, budget=9).tolist() == [3, 3, 3]
    assert allocate([8, 8], [8, 1], [1e-3, 5.0], budget=1).sum() == 1


def test_min_variance_allocates_for_its_objective():
    """Rare outcomes have large norms: what GVM gives hard prompts, GRPO should not."""
    statistics: dict[str, Any] = {
        "trials": [64] * 4,
        "successes": [60, 32, 16, 4],
        "grad_norm": [1.0, 4.0, 6.0, 8.0],
        "grad_norm_rejected": [8.0, 4.0, 2.0, 1.0],
        "budget": 400,
    }
    likelihood = allocate(**statistics)
    grpo = allocate(**statistics, objective="grpo", baseline="mean")
    assert likelihood[3] / likelihood[0] > 10
    # sigma^2 = (1 - p) Q1 + p Q0: 60, 16, 28, 60.
    assert grpo[0] > grpo[1]
    assert grpo[3] > grpo[1]
    damped = allocate(**statistics, accept_rate_penalty=0.1)
    assert damped[3] < likelihood[3]


def test_gains_by_hand():
    stats = PromptStats(["a", "b"], np.full(2, 10**6), np.full(2, 500_000), np.array([1.0, 3.0]))
    problem = pose(stats, 16)
    # sigma 1 : 3, so counts 4 and 12: 1/4 + 9/12 = 1 against (1 + 9) / 8.
    assert solve(problem, "min_variance").counts.tolist() == [4, 12]
    told = describe([problem], [solve(problem, "min_variance")])
    assert told["expected_gain"] == pytest.approx(1.25, rel=1e-3)
    assert told["achievable_gain"] == pytest.approx(1.25, rel=1e-3)
    assert told["allocation_note"] is None
    assert describe([problem], [solve(problem, "uniform")])["expected_gain"] == 1
    fuller = pose(stats, 1)
    assert expected_gain(fuller, np.array([0, 1])) == np.inf  # uniform leaves out the larger sigma
    assert expected_gain(fuller, np.array([1, 0])) == 1
    starving = Allocation(["a", "b"], np.array([0, 16]), "gvm")
    assert describe([problem], [starving])["expected_gain"] == 0
    flat = pose(PromptStats(["a", "b"], np.ones(2), np.ones(2), np.ones(2)), 16)
    note = describe([flat], [solve(flat, "min_variance")])["allocation_note"]
    assert isinstance(note, str)
    assert note.startswith("uniform: ")
    unknown = pose(PromptStats(["a"], np.zeros(1), np.zeros(1), np.array([NAN])), 4)
    assert describe([unknown], [solve(unknown, "uniform")])["expected_gain"] is None


def test_bounds_do_not_turn_min_variance_off():
    free = allocate([800] * 4, [400] * 4, [1, 10, 1, 1], budget=32)
    without_first = allocate([800] * 4, [400] * 4, [1, 10, 1, 1], budget=32, upper=[0, 32, 32, 32])
    assert without_first[0] == 0
    assert without_first[1] >= free[1] > 20
    # A budget below one completion a prompt goes where the variance is.
    assert allocate([800] * 4, [400] * 4, [1, 1, 1, 9], budget=1).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("norms", [[1e160, 1, 1, 1], [1e-200, 1, 1, 1], [1e-300, 1e300, 1, 1]])
def test_extreme_norms(norms):
    counts = allocate([8] * 4, [4] * 4, norms, budget=32)
    assert counts.sum() == 32
    assert counts.min() >= 1


def test_extreme_penalties_starve_nobody():
    counts = allocate(
        [8] * 3, [8, 4, 1], [1, 2, 3], budget=30, accept_rate_penalty=1, accept_rate_power=5000
    )
    assert counts.sum() == 30
    assert counts.min() >= 1


def test_huge_budgets():
    counts = allocate([8] * 4, [8, 4, 2, 0], [1, 2, 3, NAN], budget=2**52)
    assert counts.sum() == 2**52
    assert allocate([8] * 7, [4] * 7, [1] * 7, budget=2**52 - 1).sum() == 2**52 - 1
    many = allocate([8] * 2000, [4] * 2000, [1] * 2000, budget=16000, upper=2**52)
    assert many.tolist() == [8] * 2000


def test_the_default_baseline_is_the_objectives_first():
    counts = allocate([8] * 2, [4] * 2, [1, 3], budget=8, objective="grpo")
    assert counts.sum() == 8


def test_hopeless_prompts_do_not_take_the_budget():
    """After 500 failures a prompt gets little more than one that is right half the time."""
    trials, successes = [8] * 20 + [500], [4] * 20 + [0]
    norms = [1.0] * 20 + [NAN]
    counts = allocate(trials, successes, norms, budget=8 * 21)
    assert counts[20] <= 1.5 * counts[:20].max()
    unweighed = allocate(trials, successes, norms, budget=8 * 21, accept_rate_penalty=0)
    assert unweighed[20] > 2 * unweighed[0]


def test_real_rewards_are_allocated_for():
    """Equal accept rates and norms; the second prompt's rewards vary ten times as much."""
    groups = [make_group([1, 1.1, 0.9, 1.0] * 4), make_group([10, 1, 20, 5] * 4, make_prompt("01"))]
    norms = [np.ones(16), np.ones(16)]
    stats = pilot_statistics(groups, norms)
    counts = solve(pose(stats, 20, Target("expected_reward", "mean")), "min_variance").counts
    assert counts[1] > 3 * counts[0]
    blind = solve(pose(stats, 20), "min_variance").counts
    assert abs(blind[0] - 10) <= 1


def test_a_group_baseline_gets_pairs():
    """A group of one has advantage 0, which its variance does not show."""
    arguments = ([8] * 4, [4] * 4, [9.0, 1.0, 1.0, 1.0])
    rejected = {"grad_norm_rejected": [9.0, 1.0, 1.0, 1.0]}
    options: dict[str, Any] = {"objective": "expected_reward", "budget": 12, **rejected}
    alone = allocate(*arguments, **options)
    assert alone.min() == 1
    assert allocate(*arguments, **options, baseline="leave_one_out").min() == 2
    few = options | {"budget": 6, "baseline": "leave_one_out"}
    assert allocate(*arguments, **few).sum() == 6
    assert allocate(*arguments, **options, baseline="leave_one_out", upper=[9, 1, 9, 9])[1] == 1


def test_counts_that_depend_on_a_belief_give_way_to_uniform_ones():
    """Two pilots each, of which some failed: for GRPO all depends on norms that nobody has seen."""
    statistics: dict[str, Any] = {
        "trials": [2] * 8,
        "successes": [2, 2, 2, 2, 0, 0, 0, 0],
        "grad_norm": [1.0, 1.2, 0.9, 1.1, NAN, NAN, NAN, NAN],
        "grad_norm_rejected": [NAN, NAN, NAN, NAN, 1.0, 0.8, 1.1, 1.0],
        "budget": 64,
    }
    assert allocate(**statistics, objective="grpo").tolist() == [8] * 8


@pytest.mark.parametrize("objective", ["log_likelihood", "expected_reward", "grpo"])
@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_counts_from_two_pilots_are_not_worse_than_uniform_ones(objective, slope):
    """60 steps of 16 prompts in worlds whose norms grow with rarity, or do not."""
    rng = np.random.default_rng(0)
    baseline = {"grpo": "mean"}.get(objective, "none")
    target, even, chosen = Target(objective, baseline), 0.0, 0.0
    for _ in range(60):
        p = rng.beta(0.3, 0.6, 16).clip(0.01, 0.99)
        own = rng.normal(0, 0.4, (2, 16))
        squares = np.exp(slope * np.log(-np.log([p, 1 - p])) + own)
        groups, norms = [], []
        for i in range(16):
            accepted = rng.random(2) < p[i]
            groups.append(make_group([float(x) for x in accepted], make_prompt(str(i))))
            norms.append(np.sqrt(np.where(accepted, *squares[:, i])) * rng.lognormal(0, 0.25, 2))
        problem = pose(pilot_statistics(groups, norms), 64, target, bounds=Bounds(2))
        sigma = target.variance(p, *squares)
        even += (sigma / 4).sum()
        chosen += (sigma / solve(problem, "min_variance").counts).sum()
    assert even / chosen >= 0.97
