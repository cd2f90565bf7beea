"""Rules of the literature: hand-worked weights, what no rule may do, and allocators of others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dibs import allocate
from dibs.allocation import rules
from dibs.allocation.allocators import ALLOCATORS, allocator, solve
from dibs.allocation.pool import pool_counts
from dibs.allocation.posterior import Posterior
from dibs.allocation.problem import AllocationProblem, Bounds, pose
from dibs.types import InputError, PromptStats

RATES = np.array([0.1, 0.5, 0.9, 0.5])


def problem_of(rates=RATES, budget=16, trials=1000.0) -> AllocationProblem:
    """Prompts whose accept rates are as good as known."""
    m = len(rates)
    stats = PromptStats(
        [f"{i}" for i in range(m)], np.full(m, trials), rates * trials, np.ones(m), np.ones(m)
    )
    found = pose(stats, budget)
    norms = found.posterior.norms
    found.__dict__["posterior"] = Posterior(rates * trials, (1 - rates) * trials, norms)
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uniform", [1, 1, 1, 1]),
        ("spo", [0.35, 0.55, 0.35, 0.55]),  # sqrt(.09) = .3, sqrt(.25) = .5; .05 more
        ("vip", [0.3, 0.5, 0.3, 0.5]),
        ("reinforce_ada_est", [3.16228, 1.41421, 1.05409, 1.41421]),
        ("nearest_half", [0, 1, 0, 1]),
    ],
)
def test_weights_by_hand(name, expected):
    assert rules.weights_of(name, problem_of()) == pytest.approx(expected, abs=1e-5)


def test_gvm_by_hand():
    """G = 1, alpha = 1e-3, beta = 2: 1 / sqrt(p + .001 / p)."""
    expected = 1 / np.sqrt(RATES + 1e-3 / RATES)
    assert rules.weights_of("gvm", problem_of()) == pytest.approx(expected)


def test_mopps_draws_what_is_little_known_now_and_then():
    rng = np.random.default_rng(0)
    rates = np.array([0.5, 0.2, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9])
    sure = problem_of(rates)
    taken = np.mean([rules.weights_of("mopps", sure, rng) for _ in range(200)], axis=0)
    assert taken[0] == 1
    assert taken[1:3].sum() == pytest.approx(1)
    assert taken[3:].max() == 0
    vague = problem_of(rates, trials=2.0)
    vague.__dict__["posterior"] = Posterior(rates * 2, (1 - rates) * 2, sure.posterior.norms)
    taken = np.mean([rules.weights_of("mopps", vague, rng) for _ in range(200)], axis=0)
    assert 0 < taken[3] < taken[0] < 1


@pytest.mark.parametrize("name", rules.NAMES)
@pytest.mark.parametrize(
    ("trials", "successes"),
    [
        ([0.0], [0.0]),
        ([8.0, 8.0, 8.0], [0.0, 0.0, 0.0]),
        ([8.0, 8.0, 8.0], [8.0, 8.0, 8.0]),
        ([0.0, 0.0, 8.0, 0.0, 3.0], [0.0, 0.0, 4.0, 0.0, 0.0]),
    ],
    ids=["one prompt, no history", "p = 0", "p = 1", "mixed"],
)
def test_degenerate_cases(name, trials, successes):
    m = len(trials)
    norm = np.where(np.array(successes) > 0, 1.0, np.nan)
    stats = PromptStats([f"{i}" for i in range(m)], np.array(trials), np.array(successes), norm)
    for budget in (1, 2, 9):  # also fewer completions than prompts
        problem = pose(stats, budget, bounds=Bounds(every_prompt=False))
        if not rules.is_random(name):
            assert solve(problem, name).counts.sum() == budget
        for correct in (True, False):
            found = pool_counts(
                problem,
                np.arange(m),
                name,
                group=1,
                uniform_share=0.25,
                rng=np.random.default_rng(0),
                correct=correct,
            )
            assert found.counts.sum() == budget
            assert found.expected.sum() == pytest.approx(budget)
            assert found.expected.min() >= 0.25 * budget / m * (1 - 1e-9)
            assert found.expected_gain > 0


def test_rules_that_draw_at_random_need_a_pool():
    with pytest.raises(InputError, match="allocator mopps draws at random, which needs a pool"):
        allocate([1, 1], [1, 0], [1, 1], budget=4, allocator="mopps")


@pytest.mark.parametrize(
    "name",
    [
        "uniform",
        "spo",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in rules.NAMES
            if name not in ("gvm", "spo", "uniform")
        ),
    ],
)
def test_a_corrected_choice_is_unbiased_and_an_uncorrected_one_is_not(name):
    """The weighted mean of rewards over many steps, for prompts that differ in accept rate."""
    rates = np.linspace(0.02, 0.6, 24)
    problem, rng = problem_of(rates, budget=8), np.random.default_rng(0)
    off = {}
    for correct in (True, False):
        kept = []
        for _ in range(3000):
            chosen = pool_counts(
                problem,
                np.arange(24),
                name,
                group=1,
                uniform_share=0.25,
                rng=rng,
                correct=correct,
            )
            means = rng.binomial(chosen.counts, rates) / np.maximum(chosen.counts, 1)
            kept.append(float(chosen.shares @ means))
        off[correct] = abs(np.mean(kept) - rates.mean()) / (np.std(kept) / np.sqrt(len(kept)))
    assert off[True] < 5
    assert (off[False] > 5) == (name != "uniform")


@pytest.mark.parametrize("name", rules.NAMES)
def test_prompts_that_share_a_row_are_chosen_one_by_one(name):
    """Of 40 prompts, 30 were never seen and have one row of the statistics between them."""
    rows = np.append(np.arange(10), np.full(30, 10))
    problem = problem_of(np.append(np.linspace(0.05, 0.95, 10), 0.5), budget=40)
    rng = np.random.default_rng(0)
    found = pool_counts(problem, rows, name, group=1, uniform_share=0.25, rng=rng)
    assert len(found.counts) == 40
    assert found.counts.sum() == 40
    assert found.achievable_gain >= found.expected_gain - 1e-9
    assert (found.achievable_gain > 1) == (name != "uniform")
    assert found.expected.sum() == pytest.approx(40)
    if rules.is_random(name):
        unseen = rules.weights_of(name, problem.restricted(rows, [f"{i}" for i in range(40)]), rng)
        assert unseen.sum() == 10  # a quarter, whatever rows they share


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (
            lambda problem: problem.upper + 1,
            "gave 10 completions to prompt '0'; its bounds are 0 and 9",
        ),
        (lambda problem: np.array([3, 3]), "counts that spend 6 of a budget of 9"),
        (
            lambda problem: np.array([9]),
            r"an array of shape \(1,\); it must be one count for each of 2",
        ),
        (lambda problem: np.array([4.5, 4.5]), "counts that are not whole numbers"),
        (lambda problem: np.array([np.nan, 9]), "counts that are not whole numbers"),
        (lambda problem: np.array([-1, 10]), "gave -1 completions to prompt '0'"),
        (lambda problem: None, "returned NoneType, not counts|shape"),
        (lambda problem: "counts", "returned str, not counts"),
        (lambda problem: {"a": 1}, "returned dict, not counts"),
    ],
)
def test_what_an_allocator_may_not_return_is_one_line(returned, said):
    allocator("odd")(returned)
    try:
        with pytest.raises(InputError, match=said) as refused:
            allocate([1, 1], [1, 1], [1, 1], budget=9, allocator="odd")
        assert "\n" not in str(refused.value)
    finally:
        del ALLOCATORS["odd"]


def test_lists_of_whole_numbers_are_counts():
    ALLOCATORS["listed"] = lambda problem: [4, 5]  # type: ignore[assignment, return-value]
    try:
        assert allocate([1, 1], [1, 1], [1, 1], budget=9, allocator="listed").tolist() == [4, 5]
    finally:
        del ALLOCATORS["listed"]


def test_the_example_of_the_documentation_is_an_allocator():
    document = Path(__file__).parents[2].joinpath("docs/rules.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(example, found)
    problem = problem_of()
    ALLOCATORS["example"] = found["hardest_first"]
    try:
        assert solve(problem, "example").counts.tolist() == [8, 8, 0, 0]
    finally:
        del ALLOCATORS["example"]
    (rule,) = re.findall(r"```diff\n(.*?)```", document, flags=re.DOTALL)
    lines = [line[1:] for line in rule.splitlines() if not line.startswith("+++")]
    exec("\n".join(lines), found)
    assert found["weights"](problem) == pytest.approx(1 - RATES)
