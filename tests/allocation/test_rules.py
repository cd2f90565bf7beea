"""Rules of the literature: hand-worked weights, what no rule may do, and allocators of others."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dibs import allocate
from dibs.allocation import rules
from dibs.allocation.allocators import ALLOCATORS, allocator, solve
from dibs.allocation.class_norms import ClassNorms
from dibs.allocation.drawn import Drawn
from dibs.allocation.pool import pool_counts
from dibs.allocation.posterior import Posterior
from dibs.allocation.problem import AllocationProblem, Bounds, pose
from dibs.allocation.rounds import Keeper, RoundsRule
from dibs.config import Config
from dibs.types import InputError, PromptStats

RATES = np.array([0.1, 0.5, 0.9, 0.5])
INTERFACE = {"__future__", "numpy", "dibs.allocation.drawn", "dibs.allocation.problem"}


def test_a_rule_imports_nothing_but_numpy_and_its_interface():
    files = [p for p in Path(rules.__file__).parent.glob("*.py") if p.stem != "__init__"]
    assert len(files) > 20
    for path in files:
        imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), flags=re.M)
        assert set(imported) <= INTERFACE, path.name


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
        (
            "vas",
            [0.7647, 1.2353, 0.7647, 1.2353],
        ),  # 1/2 + p q / .34
        ("cures_prompts", [20.0855, 148.4132, 20.0855, 148.4132]),  # e^3, e^5
        ("dars", [1.66667, 1, 1, 1]),  # .5 / sqrt(.09)
    ],
)
def test_weights_by_hand(name, expected):
    assert rules.weights_of(name, problem_of()) == pytest.approx(expected, abs=1e-4)


def test_gvm_by_hand():
    """G = 1, alpha = 1e-3, beta = 2: 1 / sqrt(p + .001 / p)."""
    expected = 1 / np.sqrt(RATES + 1e-3 / RATES)
    assert rules.weights_of("gvm", problem_of()) == pytest.approx(expected)


def with_norms(accepted: float, rejected: float, mean: float, mean_rejected: float):
    """Mean squared norms of both classes, and mean norms, for all four prompts."""
    found = problem_of()
    squares = np.log(np.repeat([[accepted], [rejected]], 4, axis=1))
    zero = np.zeros((2, 4))
    norms = ClassNorms(squares, zero, zero, zero, zero)
    stats = replace(
        found.stats, grad_norm=np.full(4, mean), grad_norm_rejected=np.full(4, mean_rejected)
    )
    changed = replace(found, stats=stats)
    changed.__dict__["posterior"] = replace(found.posterior, norms=norms)
    return changed


def test_cures_by_hand():
    """At p = .5: .125 x 10 + .125 x 5 - .0625; at p = .1: .081 x 10 + .009 x 5 - .0081."""
    found = rules.weights_of("cures", with_norms(10.0, 5.0, 3.0, 2.0)) ** 2
    assert found[:2] == pytest.approx([0.8469, 1.8125])
    same = rules.weights_of("cures", with_norms(4.0, 4.0, 2.0, 2.0)) ** 2
    assert same == pytest.approx(4 * RATES * (1 - RATES))  # G^2 p q


def test_cures_counts_no_mean_norm_above_the_root_mean_square():
    found = rules.weights_of("cures", with_norms(1.0, 1.0, 100.0, np.nan)) ** 2
    assert found == pytest.approx(RATES * (1 - RATES))


def test_dars_is_bounded():
    assert rules.weights_of("dars", problem_of(np.array([1e-6, 0.5]))) == pytest.approx([4, 1])


def test_cero_fills_up_the_prompts_with_few_completions():
    """All of one value: 2, 10, 12 and 40 completions before and 20 more end at 15, 15, 15 - and 40."""
    problem = problem_of(np.full(4, 0.5), budget=20)
    before = np.array([2.0, 10.0, 12.0, 40.0])
    stats = replace(problem.stats, trials=before, successes=before / 2)
    changed = replace(problem, stats=stats)
    changed.__dict__["posterior"] = problem.posterior
    assert rules.weights_of("cero", changed) == pytest.approx(
        [12.6667, 4.6667, 2.6667, 0], abs=1e-4
    )


@pytest.mark.parametrize("lower", [0, 1])
@pytest.mark.parametrize("budget", range(12))
def test_knapsack_has_the_largest_value_of_all_counts_with_as_many_pairs(budget, lower):
    """At a budget of 2 that is .0617: both completions to p = .3."""
    rates = np.array([0.05, 0.3, 0.6, 0.95])
    if budget < 4 * lower:
        return
    problem = replace(problem_of(rates, budget=budget), lower=np.full(4, lower))

    def value(counts: np.ndarray) -> float:
        worth = (1 - rates**counts - (1 - rates) ** counts) * rates * (1 - rates) ** 2
        return float(worth[counts > 0].sum())

    pairs = min((budget - 4 * lower) // (2 - lower), 4)
    possible = [
        np.array(each)
        for each in product(range(lower, 8), repeat=4)
        if sum(each) == budget and sum(n >= 2 for n in each) == pairs
    ]
    best = max(value(each) for each in possible)
    counts = solve(problem, "knapsack").counts
    assert value(counts) == pytest.approx(best, rel=1e-12)
    assert counts.sum() == budget
    assert budget != 2 or lower or counts.tolist() == [0, 2, 0, 0]


def test_greso_skips_prompts_by_their_streak():
    problem = problem_of(np.full(3, 0.5))
    rng = np.random.default_rng(0)
    assert rules.weights_of("greso", problem, rng).tolist() == [1, 1, 1]  # no history
    changed = replace(problem, stats=replace(problem.stats, streak=np.array([0, 1, 3])))
    taken = np.mean([rules.weights_of("greso", changed, rng) for _ in range(4000)], axis=0)
    assert taken == pytest.approx([1, 0.5, 0.125], abs=5 * 0.5 / np.sqrt(4000))
    hopeless = replace(problem, stats=replace(problem.stats, streak=np.full(3, 2000)))
    assert rules.weights_of("greso", hopeless, rng).tolist() == [1, 1, 1]


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


@pytest.mark.parametrize("name", rules.WEIGHTS)
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


def test_rules_for_counts_need_a_fixed_batch():
    problem = problem_of()
    with pytest.raises(InputError, match="allocator knapsack decides counts of a fixed batch"):
        pool_counts(
            problem,
            np.arange(4),
            "knapsack",
            group=1,
            uniform_share=0.25,
            rng=np.random.default_rng(0),
        )


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], r"an array of shape \(2,\); it must be one weight for each of 4 prompts"),
        (None, "returned NoneType, not weights"),
        ([1, 1, 1, -1], "weights that are not finite or below 0"),
        ([1, 1, 1, np.nan], "weights that are not finite or below 0"),
        ([0, 0, 0, 0], "weights that are all 0"),
    ],
)
def test_what_a_selector_of_others_may_not_return_is_one_line(own_rules, returned, said):
    name = own_rules(rule=lambda problem, rng: returned)
    with pytest.raises(InputError, match=said) as refused:
        rules.weights_of(name, problem_of(), np.random.default_rng(0))
    assert "\n" not in str(refused.value)


def test_a_selector_of_others_draws_other_numbers_than_the_choice(own_rules):
    name = own_rules(rule=lambda problem, rng: 1 + rng.random(4))
    rng, same = np.random.default_rng(0), np.random.default_rng(0)
    weights = rules.weights_of(name, problem_of(), rng)
    assert not np.isin(weights - 1, np.random.default_rng(0).random(100)).any()
    assert rng.random() == same.random()


def test_rules_that_draw_at_random_need_a_pool():
    with pytest.raises(InputError, match="allocator mopps draws at random, so it needs a pool"):
        allocate([1, 1], [1, 0], [1, 1], budget=4, allocator="mopps")


@pytest.mark.parametrize(
    "name",
    [
        "uniform",
        "spo",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in rules.WEIGHTS
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
    assert (off[False] > 5) == (name not in ("uniform", "greso"))  # no streaks here


@pytest.mark.parametrize("name", rules.WEIGHTS)
def test_prompts_that_share_a_row_are_chosen_one_by_one(name):
    """Of 40 prompts, 30 were never seen and have one row of the statistics between them."""
    rows = np.append(np.arange(10), np.full(30, 10))
    problem = problem_of(np.append(np.linspace(0.05, 0.95, 10), 0.5), budget=40)
    rng = np.random.default_rng(0)
    found = pool_counts(problem, rows, name, group=1, uniform_share=0.25, rng=rng)
    assert len(found.counts) == 40
    assert found.counts.sum() == 40
    assert found.achievable_gain >= found.expected_gain - 1e-9
    assert name == "greso" or (found.achievable_gain > 1) == (name != "uniform")
    assert found.expected.sum() == pytest.approx(40)
    if name == "mopps":
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
        (lambda problem: np.array([1e300, 9]), "counts that are not whole numbers up to 2"),
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
    found: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL):
        exec(example, found)
    problem = problem_of()
    ALLOCATORS["example"] = found["hardest_first"]
    try:
        assert solve(problem, "example").counts.tolist() == [8, 8, 0, 0]
    finally:
        del ALLOCATORS["example"]
    drawn = Drawn(1, np.array([4, 4]), [], [np.ones(4, dtype=bool), np.zeros(4, dtype=bool)], 4, 2)
    assert RoundsRule("example", found["until_two_are_right"]).more(drawn).tolist() == [0, 4]
    own = Keeper("example", found["by_turns"], whole_baseline=False)
    right = np.array([True, True, True, False, False])
    assert own.keep(right * 1.0, right, 2).tolist() == [0, 3]


def test_the_rule_of_the_documentation_has_its_file_row_and_test():
    root = Path(__file__).parents[2]
    document = root.joinpath("docs/rules.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", document, flags=re.DOTALL)
    added: dict[str, str] = {}
    for part in diff.split("+++ b/")[1:]:
        path, *lines = part.splitlines()
        added[path] = "\n".join(line[1:] for line in lines)
    file, row, test = added.values()
    path = Path(next(iter(added)))
    assert list(added)[1:] == ["docs/rules.md", "tests/allocation/test_rules.py"]
    assert root / path.parent == Path(rules.__path__[0])
    found: dict[str, Any] = {}
    exec(file, found)
    assert "\nUnbiased" in found["__doc__"]
    head = document.partition("\n| rule |")[2].partition("\n")[0]
    assert row.startswith(f"| `{path.stem}` |")
    assert row.count("|") == head.count("|") + 2
    (name, expected), *_ = eval(f"[{test}]")
    assert name == path.stem
    assert found["weights"](problem_of()) == pytest.approx(expected)
    contributing = root.joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"A rule that ships with DIBS is one file in `{path.parent}/`" in contributing


def test_the_page_of_rules_says_how_the_biased_arms_differ_from_the_default():
    root = Path(__file__).parents[2]
    page = root.joinpath("docs/rules.md").read_text(encoding="utf-8")
    arms = yaml.safe_load(root.joinpath("studies/rules.yaml").read_text(encoding="utf-8"))
    weighed = re.findall(r"^\| `(\w+)` \|.*\| other prompts weigh more \|", page, re.MULTILINE)
    paragraph = next(each for each in page.split("\n\n") if "`select.correct` is true" in each)
    for name in weighed:
        assert arms["compare"]["arms"][name]["select"]["correct"] is False
        assert f"`{name}`" in paragraph
    assert len(weighed) == 6
    assert Config().select.correct


@pytest.mark.parametrize("name", [*rules.WEIGHTS, *rules.COUNTS])
def test_the_table_of_rules_has_the_bias_of_each(name):
    page = Path(__file__).parents[2].joinpath("docs/rules.md").read_text(encoding="utf-8")
    table = page.split("bias by default / as published", 1)[1].split("\n\n", 1)[0]
    (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, _, bias, _ = (cell.strip() for cell in row.strip("|").split(" | "))
    assert re.search(r"none|left out", bias)


@pytest.mark.parametrize("name", [*rules.WEIGHTS, *rules.COUNTS, *rules.ROUNDS, *rules.KEEPERS])
def test_every_rule_says_whether_it_is_biased(name):
    """Rules that decide by the rewards that are trained on are biased; the others need not be."""
    decides_before = name in rules.WEIGHTS + rules.COUNTS
    document = rules.module_of(name).__doc__ or ""
    said = re.findall(r"(?:^|(?<=[.] ))(Unbiased|Biased)\b", document, re.MULTILINE)
    assert said[0] == ("Unbiased" if decides_before else "Biased")
