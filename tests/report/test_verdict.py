"""The line that the page opens with, by numbers worked by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dibs.report.arms import group_runs
from dibs.report.standings import tasks_of
from dibs.report.verdict import verdict_lines
from dibs.runs.read import Run
from run_folders import config

UNIFORM: dict[str, Any] = {"allocator": "uniform", "mode": "none"}
VALUES = (0.2, 0.3, 0.4, 0.5, 0.6)


def run_of(
    arm: str,
    cost: float,
    seed: int = 0,
    values: Sequence[float] = VALUES,
    key: str = "log_accept_rate",
    **settings,
) -> Run:
    """A run that spends ``cost`` rollouts a step, and is evaluated after each."""
    metrics = [
        {
            "step": step,
            "rollouts": cost * step,
            "pilot_rollouts": 0,
            "accuracy": value,
            "accuracy_low": value - 0.03,
            "accuracy_high": value + 0.04,
            key: value,
        }
        for step, value in enumerate(values)
    ]
    options = config(seed, **{**settings, "arm": arm})
    path = Path(f"runs/{arm}/seed-{seed}")
    return Run(path, options, metrics, [], [], [], {"steps": 4}, "finished", ())


def arms_of(*costs: tuple[str, Sequence[float]], **settings) -> list[Run]:
    """Arms with a seed for each cost; uniform has fixed counts."""
    return [
        run_of(arm, cost, seed, **(UNIFORM if arm == "uniform" else {}), **settings)
        for arm, each in costs
        for seed, cost in enumerate(each)
    ]


def verdict(runs: Sequence[Run]) -> list[str]:
    return verdict_lines(tasks_of(group_runs(runs)))


def test_an_arm_that_needs_half_the_rollouts():
    """Both learn alike in steps, so half the rollouts a step are half the rollouts, in every seed."""
    assert verdict(arms_of(("uniform", (100, 100)), ("ours", (50, 50)))) == [
        "ours needs 2.00 times fewer rollouts than uniform (95%: 2.00 to 2.00) to the same held-out "
        "mean ln p."
    ]


def test_an_arm_that_needs_twice_the_rollouts():
    assert verdict(arms_of(("uniform", (100, 100)), ("ours", (200, 200)))) == [
        "ours needs 2.00 times more rollouts than uniform (95%: 2.00 to 2.00) to the same held-out "
        "mean ln p."
    ]


def test_seeds_that_disagree_show_no_difference():
    """Means over seeds are 100 and 80 rollouts a step; 40 and 120 of single seeds."""
    (line,) = verdict(arms_of(("uniform", (100, 100)), ("ours", (40, 120))))
    begin = "No difference from uniform is shown: ours 1.25 times fewer rollouts (95%: 0.00 to "
    assert line.startswith(begin)
    assert line.endswith(" to the same held-out mean ln p.")


def test_what_is_not_shown_to_need_more_is_told_in_times_more():
    """Means of 100, 125, 200 and 80 rollouts a step."""
    costs = {"uniform": (100, 100), "a": (120, 130), "b": (1, 399), "c": (40, 120)}
    (line,) = verdict(arms_of(*costs.items()))
    plain = re.sub(r" \(95%: [^)]*\)", "", line)
    assert "b 2.00 times more rollouts, a 1.25 times more and c 1.25 times fewer to" in plain
    assert "a 1.25 times more (95%: 0." in line


def test_single_seeds_show_no_difference():
    assert verdict(arms_of(("uniform", (100,)), ("ours", (50,)))) == [
        "No difference from uniform is shown, with a single seed each: ours 2.00 times fewer rollouts "
        "to the same held-out mean ln p."
    ]


def test_many_arms_are_named_by_how_much_they_stand_out():
    costs = {"uniform": 120, "a": 60, "b": 40, "c": 30, "d": 80, "slow": 240}
    (line,) = verdict(arms_of(*((arm, (cost, cost)) for arm, cost in costs.items())))
    assert re.sub(r" \(95%: [^)]*\)", "", line) == (
        "c needs 4.00 times fewer rollouts than uniform, b 3.00, a 2.00 and 1 more to the same held-out "
        "mean ln p. slow needs 2.00 times more rollouts than uniform."
    )


def test_accuracy_judges_arms_of_other_objectives_or_without_ln_p():
    runs = arms_of(("uniform", (100, 100)), ("ours", (50, 50)), key="nothing")
    assert verdict(runs)[0].endswith("(95%: 2.00 to 2.00) to the same held-out accuracy.")
    grpo = {"name": "grpo", "objective": "grpo", "baseline": "mean"}
    runs = arms_of(("uniform", (100, 100)), ("ours", (50, 50)), algorithm=grpo)
    assert verdict(runs)[0].endswith("(95%: 2.00 to 2.00) to the same held-out accuracy.")


def test_arms_that_share_no_score_cannot_be_compared():
    runs = arms_of(("uniform", (100, 100)))
    runs += [run_of("ours", 50, seed, [0.2, 0.1, 0.1, 0.1, 0.1]) for seed in range(2)]
    assert verdict(runs) == ["ours cannot be compared: both reached no score at a known cost."]


def test_unequal_updates_are_noted():
    runs = arms_of(("uniform", (100, 100)))
    runs += [run_of("ours", 50, seed, update={"updates_per_step": 8}) for seed in range(2)]
    assert verdict(runs)[0].endswith(". Optimizer updates differ between the arms.")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"uniform": 2, "64x2": 8}, "uniform"),  # its name says it
        ({"16x8": 8, "64x2": 2}, "16x8"),  # the most completions of a prompt, as people run it
    ],
)
def test_the_reference_is_a_uniform_arm(counts, expected):
    runs = [
        run_of(arm, 100, allocate={"allocator": "uniform", "num_generations": n})
        for arm, n in counts.items()
    ]
    chosen = run_of("aaa", 100, allocate={"allocator": "uniform", "num_generations": 99})
    chosen.config["select"] = {"pool": "all"}  # type: ignore[index]
    (task,) = tasks_of(group_runs([*runs, chosen]))
    assert {each.reference.label for each in task.standings} == {expected}
    assert [each.fewer is None for each in task.standings] == [
        arm.label == expected for arm in task.arms
    ]


def test_without_a_uniform_arm_the_first_is_the_reference():
    (task,) = tasks_of(group_runs([run_of("b", 100), run_of("a", 50)]))
    assert task.standings[0].reference.label == "a"


def test_tasks_are_not_compared_with_each_other():
    runs = []
    for task in ("rare", "large"):
        for arm, cost in (("uniform", 100), ("ours", 50)):
            for seed in range(2):
                options: dict[str, Any] = UNIFORM if arm == "uniform" else {}
                runs.append(run_of(f"{task}/{arm}", cost, seed, data={"train": task}, **options))
    assert verdict(runs) == [
        f"{task}: ours needs 2.00 times fewer rollouts than uniform (95%: 2.00 to 2.00) to the same "
        "held-out mean ln p."
        for task in ("large", "rare")
    ]


def test_seeds_that_only_one_arm_has_are_left_out():
    runs = arms_of(("uniform", (100, 100, 900)), ("ours", (50, 50)))
    assert verdict(runs)[0].startswith(
        "ours needs 2.00 times fewer rollouts than uniform (95%: 2.00"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Ends are 0.035 from the middle of each interval: 0.4 -+ sqrt(2) * 0.035
        (
            VALUES,
            "Accuracy rose by 0.400 (95%: 0.351 to 0.449): held-out accuracy went from 0.200 to ",
        ),
        (
            (0.6, 0.2),
            "Accuracy fell by 0.400 (95%: 0.351 to 0.449): held-out accuracy went from 0.600",
        ),
        (
            (0.2, 0.22),
            "No gain is shown, +0.020 (95%: -0.029 to +0.069): held-out accuracy went from",
        ),
        (
            (0.2,),
            "Nothing to tell yet: there are not two evaluations with a score after 0 rollouts.",
        ),
    ],
)
def test_what_a_single_run_gained(values, expected):
    (line,) = verdict([run_of("mine", 100, values=values)])
    assert line.startswith(expected)


def test_a_single_run_names_its_rollouts_and_interval():
    (line,) = verdict([run_of("mine", 1000)])
    assert line.endswith(" from 0.200 to 0.600 (95%: 0.570 to 0.640) with 4,000 rollouts.")


def test_what_several_seeds_of_an_arm_gained():
    """Gains 0.4 and 0.2: 0.3 with Student's t of one degree of freedom, 12.7062 * 0.1."""
    runs = [run_of("mine", 100), run_of("mine", 100, 1, (0.2, 0.3, 0.3, 0.4, 0.4))]
    (line,) = verdict(runs)
    assert line.startswith("No gain is shown, +0.300 (95%: -0.971 to +1.571): ")


def test_gains_of_seeds_begin_where_all_of_them_have_a_score():
    """One seed misses its first evaluation. From the second on all gain .1: the interval is a point."""
    runs = [
        run_of("mine", 10, seed, values, "accuracy")
        for seed, values in enumerate(
            [(0.2, 0.4, 0.45, 0.5), (0.1, 0.3, 0.35, 0.4), (0, 0.2, 0.25, 0.3)]
        )
    ]
    (late, *others) = runs
    runs = [replace(late, metrics=late.metrics[1:]), *others]
    (line,) = verdict(runs)
    assert "Accuracy rose by 0.100 (95%: 0.100 to 0.100)" in line


@pytest.mark.parametrize(
    "odd",
    [
        {"seed": [1], "allocate": {"allocator": ["x"], "num_generations": "8"}},
        {"algorithm": None, "estimate": 7, "data": [1, 2]},
        {},
    ],
)
def test_odd_runs_have_a_verdict_too(odd):
    """Folders are not trusted: configurations and metrics may hold anything."""
    even = run_of("even", 100, **UNIFORM)
    strange = replace(even, path=Path("runs/strange"), config=odd, metrics=[{"step": 0}])
    partly = replace(even, path=Path("runs/partly"), config={**even.config, **odd})
    assert verdict([strange])[0].endswith("after an unknown number of rollouts.")
    assert len(verdict([even, strange, partly])) >= 1
    without = [{**line, "rollouts": None} for line in even.metrics]
    assert verdict([even, replace(partly, metrics=without, config=even.config)]) == [
        "partly cannot be compared: both reached no score at a known cost."
    ]
