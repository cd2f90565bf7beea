"""dibs compare: costs and speed-ups by hand, matrices, and a small comparison from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from dibs.cli import main
from dibs.study.curves import COSTS, Curve, crossing, mean_curve, speed_ups
from dibs.study.matrix import read_study
from dibs.study.results import rows
from dibs.study.runs import Outcome
from dibs.types import InputError

STUDY = {
    "policy": {
        "model": "arithmetic",
        "threads": 1,
        "warm_start": {
            "hidden_size": 48,
            "heads": 2,
            "layers": 1,
            "updates": 40,
            "batch_size": 64,
        },
    },
    "data": {"train": "arithmetic", "size": 64, "eval_size": 8},
    "sampling": {"max_completion_length": 12},
    "allocate": {"num_generations": 4},
    "estimate": {"num_pilots": 4},
    "update": {"updates_per_step": 1},
    "train": {"steps": 2, "prompts_per_step": 8},
    "evaluate": {"interval": 1, "num_generations": 2},
    "compare": {
        "seeds": [0, 1],
        "tuning_seeds": [7],
        "learning_rates": [1e-3, 3e-3],
        "levels": [0.0],
        "meter": ["end"],
        "jobs": 2,
        "algorithms": {
            "raft++": {"algorithm.name": "raft++"},
            "grpo": {"algorithm": {"name": "grpo"}},
        },
        "arms": {
            "uniform": {"allocate.allocator": "uniform", "estimate.mode": "none"},
            "online": {"estimate.mode": "online"},
        },
    },
}


def curve(cost: list[float], value: list[float], **totals: float) -> Curve:
    spent, reached = np.array(cost, dtype=float), np.array(value)
    return Curve(dict.fromkeys(COSTS, spent), reached, reached, reached, totals, np.zeros(0))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.1, 0.0),  # where it began
        (0.3, 100.0),  # at an evaluation
        (0.4, 150.0),  # half way between two
        (0.5, 200.0),  # the first time, though it falls again
        (0.9, None),
    ],
)
def test_crossings_by_hand(target, expected):
    found = crossing(np.array([0.0, 100, 200, 300]), np.array([0.1, 0.3, 0.5, 0.4]), target)
    assert found == (None if expected is None else pytest.approx(expected))


def test_speed_ups_by_hand():
    uniform = [curve([0, 100, 200], [0.0, 0.2, 0.4]), curve([0, 100, 200], [0.0, 0.3, 0.6])]
    twice = [curve([0, 50, 100], each.value.tolist()) for each in uniform]
    found = speed_ups(uniform, twice)["rollouts"]
    assert (found.value, found.low, found.high) == (2, 2, 2)
    same = speed_ups(uniform, uniform)["tokens"]
    assert (same.value, same.low, same.high) == (1, 1, 1)


def test_an_arm_that_never_gets_there_has_no_speed_up():
    uniform = [curve([0, 100], [0.0, 0.5]), curve([0, 100], [0.0, 0.5])]
    mixed = [curve([0, 100], [0.0, 1.0]), curve([0, 100], [0.0, 0.2])]
    found = speed_ups(uniform, mixed)["rollouts"]
    assert found.value == pytest.approx(0.6 / 0.5)  # the mean curve does, at 0.6
    assert found.low == 0.0
    assert found.high == pytest.approx(2.0)
    never = speed_ups(uniform, [curve([0, 100], [0.0, 0.2])] * 2)["rollouts"]
    assert (never.value, never.low, never.high) == (None, 0.0, 0.0)
    nothing = speed_ups([curve([0, 100], [0.5, 0.4])] * 2, mixed)["rollouts"]
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)


def test_means_are_taken_evaluation_by_evaluation():
    mean = mean_curve([curve([0, 100], [0.0, 0.2]), curve([0, 300], [0.4, 0.8])])
    np.testing.assert_allclose(mean.costs["tokens"], [0, 200])
    np.testing.assert_allclose(mean.value, [0.2, 0.5])


def write(folder: Path, values: dict, name: str = "study.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_cells_hold_what_their_names_say(tmp_path):
    study = read_study([write(tmp_path, STUDY)], {"compare.output_dir": str(tmp_path / "out")})
    assert [cell.label for cell in study.cells] == [
        "task, raft++, uniform",
        "task, raft++, online",
        "task, grpo, uniform",
        "task, grpo, online",
    ]
    assert study.reference == "uniform"
    config = study.cells[3].config(5, 0.01)
    assert (config.algorithm.objective, config.algorithm.baseline) == ("grpo", "mean")
    assert (config.seed, config.update.learning_rate) == (5, 0.01)
    assert config.output_dir == tmp_path / "out/runs/task/grpo/online/lr-0.01/seed-5"


def test_configurations_of_arms(tmp_path):
    base = {key: value for key, value in STUDY.items() if key != "compare"}
    even = {**base, "allocate": {"allocator": "uniform"}, "estimate": {"mode": "none"}}
    two = read_study([write(tmp_path, even, "even.yaml"), write(tmp_path, base, "pilots.yaml")], {})
    assert [cell.arm for cell in two.cells] == ["even", "pilots"]
    assert two.reference == "even"
    one = read_study([write(tmp_path, base, "pilots.yaml")], {"train.steps": "5"})
    assert [cell.arm for cell in one.cells] == ["uniform", "min_variance-pilot"]
    assert [cell.config(0).estimate.mode for cell in one.cells] == ["none", "pilot"]
    assert {cell.config(0).train.steps for cell in one.cells} == {5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [7]}, "seeds and tuning_seeds overlap"),
        ({"seeds": []}, "seeds must be different numbers"),
        ({"arms": {"../up": {}}}, "'../up' cannot name a folder"),
        ({"arms": {"a": {"allocate.alocator": "uniform"}}}, "a: unknown key allocate.alocator"),
        ({"arms": {"a": {}, "b": {}}}, "0 of the arms a, b are uniform; set compare.reference"),
        ({"reference": "best"}, "'best' is no arm; there are uniform, online"),
        ({"seed": [1]}, "unknown key seed; nearest is seeds"),
        ({"learning_rates": [0.0]}, "learning_rates must be above 0"),
        (None, "compare must hold keys and values"),
    ],
)
def test_bad_studies_are_one_clear_line(tmp_path, capsys, changes, message):
    section = "text" if changes is None else {**STUDY["compare"], **changes}
    path = write(tmp_path, {**STUDY, "compare": section})
    out = tmp_path / "out"
    assert main(["compare", str(path), f"--compare.output_dir={out}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dibs compare: ")
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_bad_files_are_one_clear_line(tmp_path, capsys):
    study, plain = write(tmp_path, STUDY), write(tmp_path, {}, "plain.yaml")
    uniform = write(tmp_path, {"allocate": {"allocator": "uniform"}}, "uniform.yaml")
    for words, message in (
        ([], "nothing to compare"),
        ([study, plain], "is a whole study; give it alone"),
        ([uniform], "there is nothing to compare"),
        ([tmp_path / "none.yaml"], "cannot read config"),
    ):
        assert main(["compare", *map(str, words)]) == 2
        assert message in capsys.readouterr().err


def test_arms_of_different_updates_are_refused(tmp_path):
    study = read_study([write(tmp_path, STUDY)], {})
    outcomes = [
        Outcome(cell, 1e-3, {s: curve([0, 1], [0, 1], optimizer_updates=updates) for s in (0, 1)})
        for cell, updates in zip(study.cells, (4, 32, 4, 4), strict=True)
    ]
    with pytest.raises(
        InputError, match=r"optimizer updates differ \(uniform \[4\], online \[32\]"
    ):
        rows(study, outcomes)


def test_a_comparison_from_end_to_end(tmp_path, capsys, monkeypatch):
    path, out = write(tmp_path, STUDY), tmp_path / "out"
    words = ["compare", str(path), f"--compare.output_dir={out}", "--json"]
    assert main([*words, "--dry-run"]) == 0
    assert "min_variance" in capsys.readouterr().out
    assert not out.exists()

    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "results.json").read_text())
    assert [(row["algorithm"], row["arm"]) for row in told] == [
        ("raft++", "uniform"),
        ("raft++", "online"),
        ("grpo", "uniform"),
        ("grpo", "online"),
    ]
    for row in told:
        assert row["seeds"] == [0, 1]
        assert row["optimizer_updates"] == 2
        assert row["rollouts"] == 64
        assert row["learning_rate"] in (1e-3, 3e-3)
        assert set(row["tuned"]) == {"0.001", "0.003"}
        assert row["levels"]["0"]["rollouts"] == 0
        assert row["variance"]["end"]["update_rollouts"] == 32
    assert told[0]["value"] == "log_accept_rate"
    assert told[2]["value"] == "accuracy"
    assert "| uniform |" in (out / "results.md").read_text()
    assert {p.name for p in out.glob("*.png")} == {"task-raft++.png", "task-grpo.png"}

    # A run that is gone is made again, the others are not, and the table is the same.
    run = next((out / "runs/task/grpo/online").glob("lr-*/seed-1"))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("summary.json") if run not in p.parents}
    shutil.rmtree(run)
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert {p: p.stat().st_mtime_ns for p in before} == before

    def untimed(table):
        return [
            {k: v for k, v in row.items() if "seconds" not in k and k != "levels"} for row in table
        ]

    assert untimed(again) == untimed(told)
