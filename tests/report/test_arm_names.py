"""Names of arms: their folders', 8 before 16, and settings where folders name nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dibs.report.arms import group_runs
from dibs.report.looks import looks
from dibs.runs.read import Run
from run_folders import config

STUDY = "out/runs/{}/raft++/{}/lr-{}/seed-{}"


def run_at(path: str, seed: int = 0, **settings) -> Run:
    metrics = [{"step": 0}]
    return Run(Path(path), config(seed, **settings), metrics, [], [], [], None, "finished", ())


def labels(*runs: Run) -> list[str]:
    return [arm.label for arm in group_runs(runs)]


def test_arms_of_a_comparison_have_the_names_that_its_file_gave_them():
    places = [
        (task, arm, rate)
        for task, rate in (("rare", 0.0006), ("large", 0.0012))
        for arm in ("uniform", "64x2", "16x8", "8x16")
    ]
    runs = [
        run_at(STUDY.format(task, arm, rate, seed), seed, data={"train": task}, arm=arm)
        for task, arm, rate in places
        for seed in (0, 1)
    ]
    assert labels(*runs[:8]) == ["8x16", "16x8", "64x2", "uniform"]
    assert labels(*runs) == [
        f"{task}, {arm}"
        for task in ("large", "rare")
        for arm in ("8x16", "16x8", "64x2", "uniform")
    ]
    assert labels(*runs[:2]) == ["uniform"]


def test_learning_rates_name_arms_that_nothing_else_tells_apart():
    runs = [
        run_at(STUDY.format("task", "ours", rate, 0), update={"learning_rate": rate})
        for rate in (3e-4, 6e-4)
    ]
    assert labels(*runs) == ["lr-0.0003", "lr-0.0006"]


@pytest.mark.parametrize(
    "form",
    ["{}-{}", "{}_{}", "{}-seed{}", "{}-seed-{}", "{}_s{}", "{}.{}", "{}/{}", "{}/seed{}"],
)
def test_the_seed_of_an_arm_is_no_part_of_its_name(form):
    runs = [
        run_at("runs/" + form.format(name, seed), seed, arm=name)
        for name in ("uniform-16", "uniform-8")
        for seed in (0, 1, 12)
    ]
    assert labels(*runs) == ["uniform-8", "uniform-16"]


def test_a_seed_right_behind_a_letter_is_no_part_of_a_name():
    runs = [run_at(f"runs/{name}{seed}", seed, arm=name) for name in "ba" for seed in (0, 1)]
    assert labels(*runs) == ["a", "b"]


def test_the_only_run_of_an_arm_keeps_its_whole_name():
    runs = [run_at(f"runs/uniform-{n}", 8, allocate={"num_generations": n}) for n in (16, 8)]
    assert labels(*runs) == ["uniform-8", "uniform-16"]
    assert labels(run_at("runs/mine")) == ["mine"]
    assert labels(run_at("runs/mine-0"), run_at("runs/deeper/other")) == ["deeper, other", "mine-0"]


def test_settings_name_arms_whose_runs_have_names_of_their_own():
    even = {"allocator": "uniform", "mode": "none"}
    runs = [
        run_at("runs/first", 0),
        run_at("runs/second", 1),
        run_at("runs/third", 0, **even),
        run_at("runs/fourth", 1, **even),
    ]
    assert labels(*runs) == ["min_variance", "uniform"]


def test_folders_that_only_name_seeds_name_no_arms():
    runs = [run_at("runs/0", 0), run_at("runs/1", 1, allocator="uniform", mode="none")]
    assert labels(*runs) == ["min_variance", "uniform"]


def test_looks_differ_for_seventy_arms():
    seventy = looks(70)
    assert len(set(seventy)) == 70
    assert len({look.color for look in seventy[:10]}) == 10
    assert all(look.outline.startswith("M") for look in seventy[:7])
