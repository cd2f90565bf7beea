"""Allocation: GVM's rule by hand, exact sums, bounds, bad input, and allocators of one's own."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dibs import allocate
from dibs.allocation.allocators import ALLOCATORS, allocator
from dibs.allocation.proportional import proportional
from dibs.types import InputError

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
    with pytest.raises(InputError, match=r"prompt 'b': successes = 2\.0 exceeds trials"):
        gvm([1, 1], [1, 2], [1, 1], budget=2, prompt_ids=ids)


def test_gvm_starves_a_prompt_without_an_accepted_pilot():
    assert gvm([8, 8], [0, 1], [NAN, 1.0], budget=7).tolist() == [0, 7]
    assert gvm([8, 8], [0, 1], [NAN, 1.0], budget=7, lower=2).tolist() == [2, 5]


def test_gvm_takes_a_prompt_without_a_judged_pilot_for_an_average_one():
    # Weights 1 / sqrt(1/4) = 2 and 0. All pilots: 4 of 36 accepted, hence 1 / sqrt(1/9) = 3.
    trials, successes, norms = [16, 20, 0], [4, 0, 0], [1.0, NAN, NAN]
    counts = gvm(trials, successes, norms, budget=10, accept_rate_penalty=0)
    assert counts.tolist() == [4, 0, 6]
    # Accepted norms 1, 1, 4: mean 2, and all were accepted.
    counts = gvm([2, 1, 0], [2, 1, 0], [1.0, 4.0, NAN], budget=14, accept_rate_penalty=0)
    assert counts.tolist() == [2, 8, 4]
    assert gvm([8, 0], [0, 0], [NAN, NAN], budget=5, lower=1).tolist() == [3, 2]
    assert gvm([0, 0], [0, 0], [NAN, NAN], budget=5).tolist() == [3, 2]


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
        (([], [], []), {}, "no prompts"),
        (([1, 1], [1, 1], [1.0]), {}, r"grad_norm has shape \(1,\), but there are 2 prompts"),
        (([1], [1], [1.0]), {"budget": -1}, "budget -1 is not a whole number"),
        (([1, 1], [1, 1], [1, 1]), {"lower": 6}, "budget 10 is smaller than .* lower bounds, 12"),
        (([1, 1], [1, 1], [1, 1]), {"upper": 4}, "budget 10 is larger than .* upper bounds, 8"),
        (([1], [1], [1.0]), {"lower": 3, "upper": 2}, "lower bound 3 exceeds upper bound 2"),
        (([1], [1], [1.0]), {"lower": 0.5}, "whole numbers"),
        (([1], [1], [1.0]), {"lower": [0, 0]}, "lower has shape"),
        (([1], [1], [1.0]), {"allocator": "best"}, "'best'; known: cero, cures, "),
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
        with pytest.raises(InputError, match="spendthrift gave 10 completions to prompt '0'"):
            allocate([1], [1], [1], budget=9, allocator="spendthrift")
    finally:
        del ALLOCATORS["everything_to_the_last"], ALLOCATORS["spendthrift"]


def test_an_allocator_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\n"
        "def first(problem):\n"
        "    counts = np.zeros(len(problem.stats), dtype=np.int64)\n"
        "    counts[0] = problem.budget\n"
        "    return counts\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    known = set(ALLOCATORS)
    assert allocate([1, 1], [1, 1], [1, 1], budget=5, allocator="mine:first").tolist() == [5, 0]
    with pytest.raises(InputError, match="'mine:second' cannot be imported"):
        allocate([1, 1], [1, 1], [1, 1], budget=5, allocator="mine:second")
    with pytest.raises(InputError, match="or your own as module:function"):
        allocate([1, 1], [1, 1], [1, 1], budget=5, allocator="mine")
    assert set(ALLOCATORS) == known


MISTAKES = {
    "raises": (
        "return 1 / 0",
        r"failed with ZeroDivisionError: division by zero in line 2 of .*py",
    ),
    "exits": ("raise SystemExit(3)", "failed with SystemExit: 3 in line 2"),
    "text": ("return 'abc'", "returned str, not counts"),
    "nothing": ("return None", "returned NoneType, not counts"),
    "ragged": ("return [[1], [2, 3]]", "returned list, not counts"),
    "complex": ("return problem.lower * 1j", "returned ndarray, not counts"),
    "one": ("return problem.lower[:1]", r"returned an array of shape \(1,\)"),
    "halves": ("return problem.lower + 0.5", "not whole numbers"),
    "moved bounds": ("problem.lower[:] = 5\n    return problem.lower", "spend 10 of a budget of 8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_users_allocator_are_one_line(tmp_path, monkeypatch, mistake):
    body, message = MISTAKES[mistake]
    name = f"mistaken_{mistake.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(f"def counts(problem):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        allocate([1, 1], [1, 1], [1, 1], budget=8, allocator=f"{name}:counts")
    assert str(caught.value).startswith(f"allocator {name}:counts ")
    assert "\n" not in str(caught.value)


def test_arguments_that_a_users_allocator_does_not_take(tmp_path, monkeypatch):
    (tmp_path / "argless.py").write_text("def counts():\n    return 1\n")
    (tmp_path / "unreadable.py").write_text("def counts(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="argless:counts failed with TypeError: counts"):
        allocate([1], [1], [1], budget=2, allocator="argless:counts")
    with pytest.raises(InputError, match="'unreadable:counts' cannot be imported: SyntaxError"):
        allocate([1], [1], [1], budget=2, allocator="unreadable:counts")


def test_what_is_no_function_is_no_allocator():
    with pytest.raises(InputError, match="'math:pi' is not a function"):
        allocate([4], [2], [1.0], budget=3, allocator="math:pi")
