"""What a step writes about its prompts and its completions, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dibs.allocation.statistics import no_statistics
from dibs.training.records import accept_rate_histogram, describe_prompts, sample_records
from dibs.types import Allocation
from tiny_groups import make_group, make_prompt


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
