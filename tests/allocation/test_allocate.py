"""Allocation: GVM's rule by hand, exact sums, bounds, degenerate statistics."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dibs import allocate
from dibs.allocation.allocators import ALLOCATORS, allocator, describe, expected_gain, solve
from dibs.allocation.least_variance import least_variance
from dibs.allocation.problem import Bounds, Tokens, pose
from dibs.allocation.proportional import proportional
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.types import Allocation, InputError, PromptStats
from tiny_groups import make_group, make_prompt

gvm = partial(allocate, allocator="gvm")
NAN = float("nan")


def test_theorem_3_by_hand():
    # alpha 0: w = G / sqrt(p) = 1/sqrt(1/4), 3/sqrt(9/16), 2/sqrt(1) = 2, 4, 2.
    counts = allocate(
        [16, 16, 16], [4, 9, 16], [1, 3, 2], budget=16, accept_rate_penalty=0, allocator="gvm"
    )
    assert counts.tolist() == [4, 8, 4]
    assert counts.dtype == np.int64


def test_theorem_3_with_penalty_by_hand():
    # alpha 3, beta 2: p + alpha/p = 1/2 + 6 = 6.5 and 1 + 3 = 4; w = sqrt(26), 2*sqrt(4) = 5.099, 4.
    counts = gvm(
        [2, 2],
        [1, 2],
        [np.sqrt(26 * 6.5), 8],
        budget=91,
        accept_rate_penalty=3,
        accept_rate_power=2,
    )
    # shares 51.0 (91 * 5.099 / 9.099 = 50.996) and 40.0 (40.004)
    assert counts.tolist() == [51, 40]


def test_beta_three_by_hand():
    # alpha 1, beta 3: p + 1/p^2 = 0.5 + 4 = 4.5 and 2; w = 1 and 1.
    counts = gvm(
        [2, 2],
        [1, 2],
        [np.sqrt(4.5), np.sqrt(2)],
        budget=10,
        accept_rate_penalty=1,
        accept_rate_power=3,
    )
    assert counts.tolist() == [5, 5]


def test_a_penalty_beyond_floating_point_is_a_weight_of_nothing():
    counts = gvm([2, 2], [1, 2], [1, 1], budget=5, accept_rate_power=5000)
    assert counts.tolist() == [0, 5]


def test_prompt_ids_may_be_an_array():
    ids = np.array(["a", "b"])
    assert gvm([1, 1], [1, 1], [1, 1], budget=2, prompt_ids=ids).tolist() == [1, 1]


def test_gvm_starves_a_prompt_without_an_accepted_pilot():
    assert gvm([8, 8], [0, 1], [NAN, 1.0], budget=7).tolist() == [0, 7]
    assert gvm([8, 8], [0, 1], [NAN, 1.0], budget=7, lower=2).tolist() == [2, 5]


def test_gvm_spends_uniformly_when_nothing_was_accepted():
    assert gvm([8] * 3, [0] * 3, [NAN] * 3, budget=7).tolist() == [3, 2, 2]


def test_ties_and_remainders_go_to_the_first_prompts():
    assert allocate([1] * 4, [1] * 4, [1] * 4, budget=6, allocator="uniform").tolist() == [
        2,
        2,
        1,
        1,
    ]
    assert allocate([1] * 3, [1] * 3, [1] * 3, budget=4, allocator="gvm").tolist() == [2, 1, 1]


def test_one_prompt_gets_everything_and_a_budget_of_nothing_is_legal():
    assert gvm([8], [3], [1.0], budget=11).tolist() == [11]
    assert gvm([8, 8], [3, 3], [1.0, 1.0], budget=0).tolist() == [0, 0]


def test_surplus_beyond_the_upper_bounds_goes_to_prompts_without_weight():
    counts = gvm([4, 4, 4], [4, 0, 0], [1, NAN, NAN], budget=9, upper=4)
    assert counts.tolist() == [4, 3, 2]


def test_upper_and_lower_bounds_a_prompt():
    counts = gvm([4] * 3, [4] * 3, [100, 1, 1], budget=12, lower=[0, 1, 3], upper=[5, 9, 9])
    # The first is capped at 5; 7 are left, 3.5 each, and the half goes to the earlier prompt.
    assert counts.tolist() == [5, 4, 3]


@st.composite
def problems(draw):
    m = draw(st.integers(1, 8))

    def integers(low, high):
        return draw(st.lists(st.integers(low, high), min_size=m, max_size=m))

    trials = np.array(integers(1, 16))
    successes = np.minimum(np.array(integers(0, 16)), trials)
    norms = np.array(
        draw(st.lists(st.floats(0, 1e12, allow_subnormal=False), min_size=m, max_size=m))
    )
    lower = np.array(integers(0, 5))
    upper = lower + np.array(integers(0, 30))
    budget = draw(st.integers(int(lower.sum()), int(upper.sum())))
    return trials, successes, norms, budget, lower, upper


@settings(max_examples=200, deadline=None)
@given(problems(), st.sampled_from(["uniform", "gvm"]))
def test_counts_sum_to_the_budget_within_bounds(problem, name):
    trials, successes, norms, budget, lower, upper = problem
    counts = allocate(
        trials, successes, norms, budget=budget, lower=lower, upper=upper, allocator=name
    )
    assert counts.sum() == budget
    assert (counts >= lower).all()
    assert (counts <= upper).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), st.integers(0, 200))
def test_unbounded_counts_are_within_one_of_the_real_shares(norms, budget):
    m = len(norms)
    counts = gvm([1] * m, [1] * m, norms, budget=budget)
    shares = budget * np.array(norms) / np.sum(norms)
    assert (np.abs(counts - shares) < 1 + 1e-9).all()
    order = np.argsort(norms, kind="stable")
    assert (np.diff(counts[order]) >= -1).all()
    for i, j in product(range(m), range(m)):
        if norms[i] > norms[j] * (1 + 1e-9):
            assert counts[i] >= counts[j]


def test_permuting_prompts_permutes_counts():
    rng = np.random.default_rng(0)
    successes, norms = rng.integers(0, 9, 50), rng.random(50)
    order = rng.permutation(50)
    counts = gvm([8] * 50, successes, norms, budget=400, upper=30)
    shuffled = gvm([8] * 50, successes[order], norms[order], budget=400, upper=30)
    assert shuffled.tolist() == counts[order].tolist()


@pytest.mark.parametrize("seed", range(50))
def test_bounded_shares_match_brute_force(seed):
    """Of all count vectors within bounds, none is nearer to the clipped real shares."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(2, 5))
    weights = rng.random(m) + 0.01
    lower = rng.integers(0, 3, m)
    upper = lower + rng.integers(0, 5, m)
    budget = int(rng.integers(lower.sum(), upper.sum() + 1))
    counts = proportional(weights, budget, lower, upper)
    low, high = 0.0, 1e9
    for _ in range(200):
        scale = (low + high) / 2
        small = np.clip(scale * weights, lower, upper).sum() < budget
        low, high = (scale, high) if small else (low, scale)
    shares = np.clip(high * weights, lower, upper)
    ranges = [range(a, b + 1) for a, b in zip(lower, upper, strict=True)]
    best = min(np.sum((np.array(c) - shares) ** 2) for c in product(*ranges) if sum(c) == budget)
    assert np.sum((counts - shares) ** 2) <= best + 1e-6


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1], [2], [1.0]), {}, "prompt '0': successes = 2.0 exceeds trials"),
        (([1], [1], [-1.0]), {}, "grad_norm = -1.0 is negative"),
        (([1], [1], [NAN]), {}, "grad_norm = nan is missing though completions were accepted"),
        (([1], [1], [np.inf]), {}, "grad_norm = inf is infinite"),
        (([NAN], [1], [1.0]), {}, "trials = nan is missing"),
        (([0], [0], [NAN]), {"allocator": "gvm"}, "prompt '0' has 0 trials; gvm needs"),
        (([], [], []), {}, "no prompts"),
        (([1, 1], [1, 1], [1.0]), {}, r"grad_norm has shape \(1,\), but there are 2 prompts"),
        (([1], [1], [1.0]), {"budget": -1}, "budget -1 is not a whole number"),
        (([1, 1], [1, 1], [1, 1]), {"lower": 6}, "budget 10 is smaller than .* lower bounds, 12"),
        (([1, 1], [1, 1], [1, 1]), {"upper": 4}, "budget 10 is larger than .* upper bounds, 8"),
        (([1], [1], [1.0]), {"lower": 3, "upper": 2}, "lower bound 3 exceeds upper bound 2"),
        (([1], [1], [1.0]), {"lower": 0.5}, "whole numbers"),
        (([1], [1], [1.0]), {"lower": [0, 0]}, "lower has shape"),
        (([1], [1], [1.0]), {"allocator": "best"}, "'best'; known: gvm, min_variance, uniform"),
        (([1], [1], [1.0]), {"objective": "wealth"}, "unknown objective 'wealth'"),
        (([1], [1], [1.0]), {"baseline": "median"}, "log_likelihood has no baseline median"),
        (([1], [1], [1.0]), {"accept_rate_penalty": -1}, "at least 0"),
        (([1], [1], [1.0]), {"accept_rate_penalty": NAN}, "at least 0"),
        (([1], [1], [1.0]), {"accept_rate_power": NAN}, "at least 1"),
        (([1], [1], [1.0]), {"budget": 10**23}, "not a whole number from 0 to"),
        (([1, 1], [1, 1], [1, 1]), {"prompt_ids": ["a", "a"]}, "'a' occurs twice"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, options, message):
    with pytest.raises(InputError, match=message) as caught:
        allocate(*arguments, **{"budget": 10, **options})
    assert "\n" not in str(caught.value)


def test_an_allocator_can_be_added_and_is_held_to_its_contract():
    @allocator("everything_to_the_last")
    def last(problem):
        counts = problem.lower.copy()
        counts[-1] += problem.budget - counts.sum()
        return counts

    @allocator("spendthrift")
    def too_much(problem):
        return problem.upper + 1

    try:
        counts = allocate([1] * 3, [1] * 3, [1] * 3, budget=9, allocator="everything_to_the_last")
        assert counts.tolist() == [0, 0, 9]
        with pytest.raises(RuntimeError, match="spendthrift"):
            allocate([1], [1], [1], budget=9, allocator="spendthrift")
    finally:
        del ALLOCATORS["everything_to_the_last"], ALLOCATORS["spendthrift"]


def greedy(sigma, budget, lower, upper):
    """One completion after another where it helps most; the first of a prompt before any second."""
    counts = lower.copy()
    for _ in range(budget - int(lower.sum())):
        gains = [
            (-1.0, 0.0)
            if n >= high
            else (1.0, s)
            if n == 0 and s > 0
            else (0.0, s**2 / (n * (n + 1)) if n else 0.0)
            for s, n, high in zip(sigma, counts, upper, strict=True)
        ]
        counts[gains.index(max(gains))] += 1
    return counts


def cost(sigma, counts):
    """What is left out comes first, then the variance of the rest."""
    varies = sigma > 0
    left_out = varies & (counts == 0)
    kept = varies & ~left_out
    return left_out.sum(), (sigma[left_out] ** 2).sum(), (sigma[kept] ** 2 / counts[kept]).sum()


@pytest.mark.parametrize("seed", range(20))
def test_least_variance_matches_brute_force(seed):
    """1,000 small cases in all: no count vector within the bounds does better."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        m = int(rng.integers(1, 5))
        sigma = np.exp(rng.normal(0, rng.choice([0.0, 0.5, 3.0, 20.0]), m))
        sigma[rng.random(m) < 0.15] = 0
        lower = rng.integers(0, 3, m)
        upper = lower + rng.integers(0, 6, m)
        budget = int(rng.integers(lower.sum(), upper.sum() + 1))
        counts = least_variance(sigma, budget, lower, upper)
        assert counts.sum() == budget
        assert (lower <= counts).all()
        assert (counts <= upper).all()
        ranges = [range(a, b + 1) for a, b in zip(lower, upper, strict=True)]
        every = (np.array(c) for c in product(*ranges) if sum(c) == budget)
        best = min(cost(sigma, counts) for counts in every)
        got = cost(sigma, counts)
        assert got[:2] == best[:2]
        assert got[2] <= best[2] * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_least_variance_matches_greedy_on_larger_problems(seed):
    rng = np.random.default_rng(seed)
    m = 200
    sigma = np.exp(rng.normal(0, 2, m))
    lower = rng.integers(0, 3, m)
    upper = lower + rng.integers(0, 60, m)
    budget = int(rng.integers(lower.sum(), upper.sum() + 1))
    counts = least_variance(sigma, budget, lower, upper)
    assert cost(sigma, counts) == pytest.approx(cost(sigma, greedy(sigma, budget, lower, upper)))


def test_least_variance_by_hand():
    def solve(sigma, budget, lower=0, upper=99):
        m = len(sigma)
        return least_variance(
            np.array(sigma, dtype=float), budget, np.full(m, lower), np.full(m, upper)
        ).tolist()

    # Second completions gain 9/2 and 1/2, third 9/6, fourth 9/12, fifth 9/20 < 1/2.
    assert solve([3, 1], 5) == [4, 1]
    assert solve([3, 1], 6) == [4, 2]
    assert solve([1, 1, 1], 7) == [3, 2, 2]
    assert solve([1, 3, 2], 2) == [0, 1, 1]  # too few for all: the largest sigma first
    assert solve([0, 0, 0], 4) == [2, 1, 1]
    assert solve([5, 0, 0], 9, upper=4) == [4, 3, 2]
    assert solve([5, 0, 0], 9) == [9, 0, 0]
    assert solve([2], 7) == [7]
    assert solve([1, 1e-200, 1e200], 12) == [1, 1, 10]
    assert solve([1, 2], 0) == [0, 0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.integers(0, 100), st.randoms())
def test_least_variance_is_monotone_and_blind_to_order(sigma, budget, random):
    sigma = np.array(sigma)
    m = len(sigma)
    bounds = np.zeros(m, dtype=np.int64), np.full(m, 100)
    counts = least_variance(sigma, budget, *bounds)
    for i, j in product(range(m), range(m)):
        if sigma[i] > sigma[j] * (1 + 1e-9):
            assert counts[i] >= counts[j]
    order = np.array(random.sample(range(m), m))
    shuffled = least_variance(sigma[order], budget, *bounds)
    assert sorted(shuffled) == sorted(counts)
    for value in np.unique(sigma):
        assert sorted(shuffled[sigma[order] == value]) == sorted(counts[sigma == value])


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
    statistics = {
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
    assert describe([flat], [solve(flat, "min_variance")])["allocation_note"].startswith(
        "uniform: "
    )
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


@pytest.mark.parametrize(
    ("sigma", "budget", "lower", "upper", "expected"),
    [
        ([1, 1e-35], 150, [0, 0], [100, 150], [100, 50]),
        ([1, 1e-140], 1500, [0, 0], [100, 1500], [100, 1400]),
        ([3, 1e-110, 1e110], 18, [3, 3, 0], [17, 8, 0], [15, 3, 0]),
    ],
)
def test_sigmas_of_very_different_size(sigma, budget, lower, upper, expected):
    counts = least_variance(np.array(sigma), budget, np.array(lower), np.array(upper))
    assert counts.tolist() == expected


def test_the_default_baseline_is_the_objectives_first():
    counts = allocate([8] * 2, [4] * 2, [1, 3], budget=8, objective="grpo")
    assert counts.sum() == 8


def test_hopeless_prompts_do_not_take_the_budget():
    """After 500 failures a prompt gets less than one that is right half the time."""
    trials, successes = [8] * 20 + [500], [4] * 20 + [0]
    norms = [1.0] * 20 + [NAN]
    counts = allocate(trials, successes, norms, budget=8 * 21)
    assert counts[20] <= counts[:20].max()
    unweighed = allocate(trials, successes, norms, budget=8 * 21, accept_rate_penalty=0)
    assert unweighed[20] > 2 * unweighed[0]


def cheapest_variance(sigma, budget, lower, upper, cost):
    """By trying every vector of counts that the budget can pay for."""
    best = np.inf
    for counts in product(*(range(lo, hi + 1) for lo, hi in zip(lower, upper, strict=True))):
        if np.dot(counts, cost) <= budget:
            best = min(best, sum(s**2 / n for s, n in zip(sigma, counts, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(200))
def test_counts_of_unequal_cost_are_near_the_best(seed):
    """A knapsack: nothing affordable is left, and the variance is the best's but for one completion."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(1, 4))
    sigma, cost = rng.lognormal(0, 1.5, m), rng.integers(1, 20, m).astype(float)
    lower = rng.integers(1, 3, m)
    upper = lower + rng.integers(0, 9, m)
    budget = float(lower @ cost + rng.integers(0, 100))
    counts = least_variance(sigma, budget, lower, upper, cost)
    assert ((lower <= counts) & (counts <= upper)).all()
    left = budget - counts @ cost
    assert left >= 0
    assert (cost[counts < upper] > left).all()
    achieved = (sigma**2 / counts).sum()
    assert achieved >= cheapest_variance(sigma, budget, lower, upper, cost) * (1 - 1e-12)
    richer = cheapest_variance(sigma, budget - cost.max(), lower, upper, cost)
    assert achieved <= richer * (1 + 1e-12)


def test_equal_costs_change_nothing():
    rng = np.random.default_rng(0)
    sigma = rng.lognormal(0, 1, 1000)
    bounds = np.ones(1000, dtype=np.int64), np.full(1000, 50)
    plain = least_variance(sigma, 8000, *bounds)
    assert least_variance(sigma, 8000 * 7.0, *bounds, np.full(1000, 7.0)).tolist() == plain.tolist()


def test_counts_follow_sigma_over_the_root_of_the_cost():
    sigma, cost = np.array([1.0, 1.0, 2.0]), np.array([100.0, 400.0, 100.0])
    bounds = np.zeros(3, dtype=np.int64), np.full(3, 10**6)
    counts = least_variance(sigma, 1e6, *bounds, cost)
    # n ~ 1, 1/2, 2 and 100 + 200 + 200 = 500 tokens a unit: 2000, 1000, 4000
    assert np.abs(counts - [2000, 1000, 4000]).max() <= 1


def test_a_budget_of_tokens():
    statistics = {"trials": [8] * 4, "successes": [4] * 4, "grad_norm": [1.0] * 4}
    lengths = [100.0, 100.0, 400.0, 400.0]
    even = allocate(**statistics, mean_tokens=lengths, token_budget=8000, allocator="uniform")
    assert even.tolist() == [8, 8, 8, 8]  # 100 + 100 + 400 + 400 tokens a round
    best = allocate(**statistics, mean_tokens=lengths, token_budget=8000)
    assert best[:2].min() > 1.5 * best[2:].max()
    assert best @ np.array(lengths) <= 8000 * 1.02  # expected lengths are shrunk a little
    with pytest.raises(InputError, match="a budget of tokens needs mean_tokens"):
        allocate(**statistics, token_budget=8000)
    with pytest.raises(InputError, match="one of tokens, and not both"):
        allocate(**statistics, mean_tokens=lengths, token_budget=8000, budget=3)
    with pytest.raises(InputError, match="budget 300 is smaller than the cost of the lower bounds"):
        allocate(**statistics, mean_tokens=lengths, token_budget=300, lower=1)


def test_all_allocators_keep_to_a_budget_of_tokens():
    rng = np.random.default_rng(0)
    for _ in range(50):
        m = int(rng.integers(1, 30))
        trials = rng.integers(1, 9, m)
        successes = rng.binomial(trials, rng.random(m))
        stats = PromptStats(
            [str(i) for i in range(m)],
            trials,
            successes,
            np.where(successes > 0, rng.lognormal(0, 1, m), NAN),
        )
        cost = rng.lognormal(4, 1, m)
        lower = rng.integers(0, 2, m)
        budget = float(lower @ cost + rng.random() * 8 * cost.sum())
        problem = pose(stats, Tokens(budget, cost), bounds=Bounds(lower, 40))
        for name in ("uniform", "gvm", "min_variance"):
            counts = solve(problem, name).counts
            left = budget - counts @ cost
            assert left >= -1e-6
            starved = (counts == lower) & (successes == 0) & (name == "gvm")
            assert not ((cost <= left) & (counts < 40) & ~starved).any()


def test_an_allocator_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\n"
        "def first(problem):\n"
        "    counts = np.zeros(len(problem.stats), dtype=np.int64)\n"
        "    counts[0] = problem.budget\n"
        "    return counts\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ALLOCATORS, "mine:first", None)  # forgotten at the end
    del ALLOCATORS["mine:first"]
    assert allocate([1, 1], [1, 1], [1, 1], budget=5, allocator="mine:first").tolist() == [5, 0]
    with pytest.raises(InputError, match="'mine:second' cannot be imported"):
        allocate([1, 1], [1, 1], [1, 1], budget=5, allocator="mine:second")
    with pytest.raises(InputError, match="or your own as module:function"):
        allocate([1, 1], [1, 1], [1, 1], budget=5, allocator="mine")


def test_real_rewards_are_allocated_for():
    """Equal accept rates and norms; the second prompt's rewards vary ten times as much."""
    groups = [make_group([1, 1.1, 0.9, 1.0] * 4), make_group([10, 1, 20, 5] * 4, make_prompt("01"))]
    norms = [np.ones(16), np.ones(16)]
    stats = pilot_statistics(groups, norms)
    counts = solve(pose(stats, 20, Target("expected_reward", "mean")), "min_variance").counts
    assert counts[1] > 3 * counts[0]
    blind = solve(pose(stats, 20), "min_variance").counts
    assert blind[0] == 10


def test_a_group_baseline_gets_pairs():
    """A group of one has advantage 0, which its variance does not show."""
    arguments = ([8] * 4, [4] * 4, [9.0, 1.0, 1.0, 1.0])
    rejected = {"grad_norm_rejected": [9.0, 1.0, 1.0, 1.0]}
    options = {"objective": "expected_reward", "budget": 12, **rejected}
    alone = allocate(*arguments, **options)
    assert alone.min() == 1
    assert allocate(*arguments, **options, baseline="leave_one_out").min() == 2
    few = options | {"budget": 6, "baseline": "leave_one_out"}
    assert allocate(*arguments, **few).sum() == 6
    assert allocate(*arguments, **options, baseline="leave_one_out", upper=[9, 1, 9, 9])[1] == 1


def test_costs_never_put_a_bound_beyond_the_budget():
    rng = np.random.default_rng(0)
    stats = PromptStats(["a"], np.array([4]), np.array([2]), np.array([1.0]))
    for _ in range(500):
        cost, lower = rng.random(1) * 100 + 0.1, int(rng.integers(1, 9))
        for upper in (None, 9):
            problem = pose(stats, Tokens(float(lower * cost[0]), cost), bounds=Bounds(lower, upper))
            assert solve(problem, "min_variance").counts.tolist() == [lower]


@pytest.mark.parametrize("budget", [NAN, -3.0, np.inf, 1e17])
def test_impossible_budgets_of_tokens_are_named(budget):
    with pytest.raises(InputError, match="is not a number from 0"):
        allocate([4], [2], [1.0], mean_tokens=[5.0], token_budget=budget)


def test_what_is_no_function_is_no_allocator():
    with pytest.raises(InputError, match="'math:pi' is not a function"):
        allocate([4], [2], [1.0], budget=3, allocator="math:pi")


def test_tokens_of_one_a_completion_are_spent_as_far_as_they_go():
    """A budget of tokens is not exact, even where every completion costs one."""
    stats = PromptStats(["a", "b"], np.ones(2), np.ones(2), np.ones(2))
    for name in ("uniform", "min_variance", "gvm"):
        part = solve(pose(stats, Tokens(7.5, np.ones(2))), name).counts
        assert part.tolist() == [4, 3]
        full = solve(pose(stats, Tokens(50.0, np.ones(2)), bounds=Bounds(0, 4)), name).counts
        assert full.tolist() == [4, 4]
    problem = pose(stats, 7)
    assert problem.exact
    assert problem.cost.tolist() == [1, 1]
    with pytest.raises(InputError, match=r"budget 7\.5 is not a whole number"):
        pose(stats, 7.5)
