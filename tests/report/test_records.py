"""Comparisons and the views, on small made-up runs and a recorded console."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from demo_comparison import TOTAL, TRAINING, comparison_rows, comparison_tables, differences
from dibs.allocation.statistics import no_statistics
from dibs.runs.console import LiveView, PlainView, view_for
from dibs.training.records import accept_rate_histogram, describe_prompts, sample_records
from dibs.types import Allocation
from tiny_groups import make_group, make_prompt

SUMMARY = {
    "optimizer_updates": 120,
    "completion_tokens": 99,
    "wall_seconds": 5.0,
    "accuracy_before": 0.5,
    "accuracy_after_low": 0.85,
    "accuracy_after_high": 0.93,
}


@pytest.fixture
def runs(tmp_path):
    spent = {"gvm": (1024, 512, 0.9), "uniform": (512, 0, 0.88), "twice": (1024, 0, 0.8)}
    for arm, (rollouts, pilots, accuracy) in spent.items():
        (tmp_path / arm).mkdir()
        summary = {
            **SUMMARY,
            "rollouts": rollouts,
            "pilot_rollouts": pilots,
            "accuracy_after": accuracy,
        }
        (tmp_path / arm / "summary.json").write_text(json.dumps(summary))
    return {arm: tmp_path / arm for arm in spent}


def test_comparison_rows_hold_arm_accounting_and_summary(runs):
    rows = comparison_rows(runs, {TRAINING: ("gvm", "uniform"), TOTAL: ("gvm", "twice")})
    assert [(row["accounting"], row["arm"]) for row in rows] == [
        (TRAINING, "gvm"),
        (TRAINING, "uniform"),
        (TOTAL, "gvm"),
        (TOTAL, "twice"),
    ]
    assert rows[0]["pilot_rollouts"] == 512
    console = Console(record=True, width=80)
    for table in comparison_tables(rows):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "1,024" in text
    assert "0.880" in text


@pytest.mark.parametrize(("accounting", "arm"), [(TRAINING, "twice"), (TOTAL, "uniform")])
def test_a_comparison_that_is_not_even_is_refused(runs, accounting, arm):
    with pytest.raises(ValueError, match=f"{accounting}: the arms are not equal: gvm .*, {arm} "):
        comparison_rows(runs, {accounting: ("gvm", arm)})


def test_differences_by_hand(runs):
    rows = comparison_rows(runs, {TRAINING: ("gvm", "uniform")})
    # 0.02 - sqrt(0.05^2 + 0.05^2) = -0.0507 and 0.02 + sqrt(0.03^2 + 0.03^2) = 0.0624
    assert differences(rows) == [
        f"{TRAINING}: gvm ends ahead of uniform by 0.020 "
        "(95% interval -0.051 to 0.062, not distinguishable)"
    ]


def test_histogram_by_hand():
    rates = np.array([0.0, 0.05, 0.1, 0.55, 1.0, np.nan])
    assert accept_rate_histogram(rates) == [3, 0, 1, 0, 1]


def test_completions_that_were_left_out_are_not_among_the_judged():
    groups = [
        replace(make_group([1, 1], make_prompt("a")), unreached=("timeout",)),
        replace(make_group([], make_prompt("b")), unreached=("error", "timeout")),
        make_group([], make_prompt("c")),
    ]
    stats = no_statistics([group.prompt for group in groups])
    line = describe_prompts(
        1, groups, stats, Allocation(stats.prompt_ids, np.array([3, 2, 0]), "u")
    )
    assert (line["count"], line["judged"], line["accepted"]) == ([3, 2, 0], [2, 0, 0], [2, 0, 0])


def test_samples_go_from_hard_to_easy_and_skip_empty_groups():
    groups = [
        make_group([1, 1], make_prompt("a")),
        make_group([], make_prompt("b")),
        make_group([0, 0], make_prompt("c")),
        make_group([1, 0], make_prompt("d")),
    ]
    stats = no_statistics([group.prompt for group in groups])
    allocation = Allocation(stats.prompt_ids, np.array([2, 0, 2, 2]), "uniform")
    records = sample_records(3, groups, stats, allocation)
    assert [record["prompt_id"] for record in records] == ["c", "d", "a"]
    assert [record["accept_rate"] for record in records] == [0.0, 0.5, 1.0]


def test_more_samples_than_prompts_are_further_completions_of_each():
    groups = [make_group([1, 1], make_prompt("a")), make_group([0, 1, 0], make_prompt("b"))]
    stats = no_statistics([group.prompt for group in groups])
    allocation = Allocation(stats.prompt_ids, np.array([2, 3]), "uniform")

    def kept(limit: int) -> list[tuple[str, float]]:
        records = sample_records(1, groups, stats, allocation, limit)
        return [(record["prompt_id"], record["reward"]) for record in records]

    assert kept(1) == [("b", 0)]
    assert kept(3) == [("b", 0), ("b", 1), ("a", 1)]
    assert kept(99) == [("b", 0), ("b", 1), ("b", 0), ("a", 1), ("a", 1)]


METRICS = {"step": 1, "reward": 0.25, "accuracy": 0.5, "rollouts": 1024, "step_seconds": 1.5}
SAMPLE = {
    "prompt": "1A+1=",
    "completion": "A2#2\n[bold]not markup[/bold]",
    "status": "accepted",
    "accept_rate": 0.5,
    "count": 3,
}


@pytest.mark.parametrize("kind", [PlainView, LiveView])
def test_views_show_numbers_and_completions_as_text(kind):
    console = Console(record=True, width=160, force_terminal=kind is LiveView)
    view = view_for(console)
    assert type(view) is kind
    view.message("[red]a path[/red]")
    view.preparing("warm start", 1, 2, "loss 3.000")
    view.preparing("warm start", 2, 2, "loss 2.000")
    view.phase("sample")
    view.step(METRICS, 10)
    view.step({**METRICS, "step": 2, "accuracy": None}, 10)
    view.samples([SAMPLE])
    view.close()
    text = console.export_text()
    assert "[red]a path[/red]" in text
    assert "0.250" in text
    assert "1,024" in text
    assert "p_i 0.50, n_i 3, accepted: 1A+1= -> A2#2 [bold]not markup[/bold]" in text
