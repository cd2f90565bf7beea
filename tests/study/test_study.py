"""dibs compare: costs and speed-ups by hand, matrices, and a small comparison from end to end."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dibs.cli import main
from dibs.config.load import split_configs
from dibs.files import to_json
from dibs.report.costs import COSTS, SCORES
from dibs.study.forecast import forecast
from dibs.study.make_runs import Outcome
from dibs.study.matrix import read_study
from dibs.study.results import compared_again, curves, rows
from tiny_curves import curve

UNIFORM = {"allocate.allocator": "uniform", "estimate.mode": "none"}
STUDY: dict[str, Any] = {
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
            "uniform": UNIFORM,
            "online": {"estimate.mode": "online"},
        },
    },
}


TOTALS = dict.fromkeys(
    ("optimizer_updates", "rollouts", "pilot_rollouts", "completion_tokens"), 1.0
)


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
    tuned = study.cells[3].tuning(7, 0.0010000001)
    assert tuned.output_dir == tmp_path / "out/tuning/task/grpo/online/lr-0.0010000001/seed-7"
    assert [study.value_of(study.cells[i]) for i in (1, 3)] == ["log_accept_rate", "accuracy"]


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
    weighed = {"algorithm": {"prompt_weight": "curverl"}, "allocate": {"allocator": "vip"}}
    both = read_study([write(tmp_path, {**base, **weighed}, "weighed.yaml")], {})
    assert [cell.config(0).estimate.mode for cell in both.cells] == ["pilot", "pilot"]


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
        ({"learning_rates": [float("nan")]}, "learning_rates.0: must be a finite number"),
        (
            {"arms": {**STUDY["compare"]["arms"], "more": {"update.updates_per_step": 3}}},
            "updates_per_step differs (uniform 2, online 2, more 6), so the arms cannot be compared",
        ),
        (
            {"arms": {**STUDY["compare"]["arms"], "more": {"evaluate.num_generations": 3}}},
            "raft++: evaluate differs",
        ),
        ({"exclude": ["*/uniform"]}, "0 of the arms online are uniform"),
        ({"exclude": ["*"]}, "leaves nothing to compare"),
        ({"exclude": ["task/grpo/uniform"]}, "task, grpo has no arm uniform to compare with"),
        (None, "compare must hold keys and values"),
        (
            {"arms": {"uniform": {**UNIFORM, "allocate.rounds": "dpao"}}},
            "task, raft++, uniform: unknown rule for rounds 'dpao'",
        ),
        (
            {"arms": {"online": {"allocate.allocator": "mine:nothere"}}},
            "task, raft++, online: allocator 'mine:nothere' cannot be imported",
        ),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_bad_studies_are_one_clear_line(tmp_path, capsys, changes, message, dry):
    section = "text" if changes is None else {**STUDY["compare"], **changes}
    path = write(tmp_path, {**STUDY, "compare": section})
    out = tmp_path / "out"
    assert main(["compare", str(path), f"--compare.output_dir={out}", *dry]) == 2
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
        ([study, plain], "is a whole study; name it alone"),
        ([uniform], "there is nothing to compare"),
        ([tmp_path / "none.yaml"], "cannot read config"),
    ):
        assert main(["compare", *map(str, words)]) == 2
        assert message in capsys.readouterr().err


def test_a_diverged_seed_is_not_left_out(tmp_path):
    study = read_study([write(tmp_path, STUDY)], {})
    curves = {seed: curve([0, 1], [0.0, 1.0], **TOTALS) for seed in (0, 1)}
    outcomes = [Outcome(cell, "accuracy", 1e-3, dict(curves)) for cell in study.cells]
    del outcomes[1].finished[1]
    outcomes[1].failures["seed 1"] = "NaN"
    table = rows(study, outcomes)
    assert (table[1]["seeds"], table[1]["target"], table[1]["speedup_rollouts"]) == (
        [0],
        None,
        None,
    )
    assert table[3]["speedup_rollouts"] == 1


def test_the_command_line_has_the_last_word(tmp_path):
    arms = {"compare.arms.online.update.weight_decay": "0.1", "update.weight_decay": "0.2"}
    study = read_study([write(tmp_path, STUDY)], arms)
    assert [cell.arm for cell in study.cells] == ["uniform", "online"] * 2
    assert {cell.config(0).update.weight_decay for cell in study.cells} == {0.2}


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")))
def test_shipped_studies_are_read(path, capsys):
    assert main(["compare", str(path), "--dry-run"]) == 0
    assert "uniform" in capsys.readouterr().out


def test_what_a_comparison_will_take(tmp_path, capsys):
    """By hand: 2 algorithms of 2 arms, 2 rates with a tuning seed and 2 seeds each; 2 steps x 8 x 4."""
    path, out = write(tmp_path, STUDY), tmp_path / "out"
    words = ["compare", str(path), f"--compare.output_dir={out}", "--dry-run"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "16 runs, 1,024 rollouts (pilots counted, evaluations not); 0 finished." in shown
    assert "not known before one has finished" in shown
    timing = shlex.split(shown.partition("ask again: ")[2])
    assert timing[:3] == ["dibs", "compare", str(path)]
    short = read_study(*split_configs(timing[2:]))
    assert forecast(short).runs == 4  # one for each arm of each algorithm
    assert short.cells[0].config(0).train.steps == 1
    (folder := short.cells[0].config(0).output_dir).mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"rollouts": 32, "wall_seconds": 320.0}))
    assert main(words) == 0  # 1,024 rollouts at 0.1 a second, two runs at a time: 5,120 s
    shown = capsys.readouterr().out
    assert "0 finished. They take about 85 minutes or less at the pace of short ones, 2 at" in shown
    study = read_study([path], {"compare.output_dir": str(out)})
    for config in (study.cells[0].tuning(7, 1e-3), study.cells[1].config(1, 3e-3)):
        config.output_dir.mkdir(parents=True)
        summary = {"rollouts": 64, "wall_seconds": 640.0}
        (config.output_dir / "summary.json").write_text(json.dumps(summary))
    assert main(words) == 0  # 14 x 64 rollouts at 0.1 a second, two runs at a time: 4,480 s
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 finished. The others take about 75 minutes at the pace of those, 2 at a time" in shown
    pilots = read_study([path], {"estimate.mode": "pilot"})
    assert forecast(pilots).rollouts == 16 * 2 * (32 + 4 * 8)
    tokens = {"estimate.mode": "online", "allocate.budget_unit": "tokens"}
    assert forecast(read_study([path], tokens)).rollouts is None
    rounds = {"allocate.rounds": "ar3po", "compare.exclude": "['*/*/online']"}
    assert forecast(read_study([path], rounds)).rollouts is None


def assert_almost_equal(one: Any, other: Any) -> None:
    """Equal but for the six digits to which curves are stored."""
    if isinstance(one, dict | list):
        assert type(one) is type(other)
        keys = one if isinstance(one, dict) else range(len(one))
        assert len(one) == len(other)
        for key in keys:
            assert_almost_equal(one[key], other[key])
    else:
        assert one == (pytest.approx(other, rel=1e-3) if isinstance(other, float) else other)


@pytest.mark.slow
def test_a_comparison_from_end_to_end(tmp_path, capsys):
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
        shown = [(each["score"], each["share"], each["level"]) for each in row["targets"]]
        assert shown == [
            ("value", 0.5, None),
            ("value", 0.9, None),
            ("accuracy", None, None),
            ("pass_at_k", None, None),
            ("accuracy", None, 0.0),
        ]
        assert row["targets"][-1]["rollouts_to_target"] == 0
        assert row["variance"]["end"]["update_rollouts"] == 32
    assert told[0]["value"] == "log_accept_rate"
    assert told[2]["value"] == "accuracy"
    assert "| uniform |" in (out / "results.md").read_text()
    assert {p.name for p in out.rglob("task/*.png")} == {"raft++.png", "grpo.png"}

    # The same comparison from the curves alone, without runs or learning rates.
    (tmp_path / "kept").mkdir()
    for name in ("results.json", "curves.jsonl"):
        shutil.copy(out / name, tmp_path / "kept" / name)
    assert main(["compare", str(tmp_path / "kept"), "--json"]) == 0
    assert_almost_equal(json.loads(capsys.readouterr().out), told)
    (tmp_path / "kept/curves.jsonl").unlink()
    assert main(["compare", str(tmp_path / "kept")]) == 2
    assert "kept: curves.jsonl is missing" in capsys.readouterr().err

    # Runs of another configuration are not taken for these.
    assert main([*words, "--train.steps=3"]) == 2
    assert "holds a run of another configuration (train.steps: 2 -> 3)" in capsys.readouterr().err

    # A run that is gone is made again, the others are not, and the table is the same.
    run = next((out / "runs/task/grpo/online").glob("lr-*/seed-1"))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("summary.json") if run not in p.parents}
    shutil.rmtree(run)
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert {p: p.stat().st_mtime_ns for p in before} == before

    def untimed(table):
        if isinstance(table, dict):
            return {key: untimed(value) for key, value in table.items() if "seconds" not in key}
        return [untimed(each) for each in table] if isinstance(table, list) else table

    assert untimed(again) == untimed(told)


def test_a_folder_keeps_the_verdicts_of_arms_with_other_failures(tmp_path):
    """A learning rate that diverged is a failure, and no reason to drop a verdict."""
    study = read_study([write(tmp_path, STUDY)], {"compare.output_dir": str(tmp_path / "out")})
    outcomes = [Outcome(cell, "accuracy") for cell in study.cells]
    for i, outcome in enumerate(outcomes):
        outcome.learning_rate = 1e-3
        outcome.failures = {"learning rate 0.003, seed 7": "it diverged"}
        for seed in study.options.seeds:
            spent = [0, 50 * (1 + i % 2), 100 * (1 + i % 2)]
            outcome.finished[seed] = curve(spent, [0.0, 0.4 + 0.1 * seed, 0.8], **TOTALS)
    table = rows(study, outcomes)
    assert table[1]["speedup_rollouts"] == pytest.approx(0.5)
    assert table[1]["verdict"] is not None
    assert_almost_equal(compared_again(table, curves(outcomes)), table)


WHOLE_ROW: dict[str, Any] = {
    **dict.fromkeys(("task", "algorithm", "arm", "reference"), "uniform"),
    **{"learning_rate": 1e-3, "learning_rate_at_edge": False, "optimizer_updates": 2.0},
    **{"value_after": 0.5, "value_after_seeds": [0.5], "seeds": [0], "failures": {}, "targets": []},
}
WHOLE_LINE: dict[str, Any] = {
    **dict.fromkeys(("task", "algorithm", "arm"), "uniform"),
    **{key: [0.0, 1.0] for key in (*COSTS, *SCORES)},
    "seed": 0,
}


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ({"a": 1}, WHOLE_LINE, "no list of rows"),
        ([1], WHOLE_LINE, "row 1: must hold keys and values (got 1)"),
        (
            [{k: v for k, v in WHOLE_ROW.items() if k != "value_after"}],
            WHOLE_LINE,
            "row 1: value_after: is missing",
        ),
        (
            [{**WHOLE_ROW, "value_after": "0.5"}],
            WHOLE_LINE,
            "row 1: value_after: must be a number (got '0.5')",
        ),
        ([{**WHOLE_ROW, "learning_rate": None}], WHOLE_LINE, "row 1: value_after has no learning_"),
        ([WHOLE_ROW], {k: v for k, v in WHOLE_LINE.items() if k != "seed"}, "'seed'"),
        ([WHOLE_ROW], {**WHOLE_LINE, **{key: [] for key in (*COSTS, *SCORES)}}, "seed 0: an"),
        ([WHOLE_ROW], {**WHOLE_LINE, "value": [0.0]}, "seed 0: an evaluation is incomplete"),
        ([WHOLE_ROW], {**WHOLE_LINE, "value": [None, None]}, "a step or a score is missing"),
        ([WHOLE_ROW], {**WHOLE_LINE, "value": 1.0}, "seed 0: an evaluation is incomplete"),
    ],
)
def test_damaged_results_are_one_clear_line(tmp_path, capsys, table, line, message):
    for name, value in (("results.json", [WHOLE_ROW]), ("curves.jsonl", WHOLE_LINE)):
        (tmp_path / name).write_text(to_json(value))
    assert main(["compare", str(tmp_path)]) == 0
    for name, value in (("results.json", table), ("curves.jsonl", line)):
        (tmp_path / name).write_text(to_json(value))
    capsys.readouterr()
    assert main(["compare", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "results.json or curves.jsonl is damaged" in said
    assert message in said


def test_seeds_that_share_no_evaluations_are_not_compared(tmp_path):
    study = read_study([write(tmp_path, STUDY)], {})
    whole = curve([0, 1, 2], [0.0, 0.5, 1.0], **TOTALS)
    outcomes = [Outcome(cell, "accuracy", 1e-3, {0: whole, 1: whole}) for cell in study.cells]
    outcomes[1].finished = {0: whole.at(np.array([0, 1])), 1: whole.at(np.array([0, 2]))}
    table = rows(study, outcomes)
    assert table[1]["speedup_rollouts"] is None
    assert table[1]["failures"] == {
        "evaluations": "its seeds share fewer than two steps with a score"
    }
    assert table[3]["speedup_rollouts"] == 1


def test_what_every_run_is_refused_for_is_one_line(tmp_path, capsys):
    path, out = write(tmp_path, STUDY), tmp_path / "out"
    words = [f"--compare.output_dir={out}", "--data.train=nothere.jsonl", "--compare.jobs=1"]
    assert main(["compare", str(path), *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("dibs compare: no run could be made")
    assert "nothere.jsonl" in said
    assert not (out / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_comparisons_go_on(tmp_path, number):
    """Ctrl-C saves the runs at hand; after a kill no process is left, and the same command goes on."""
    one = {**STUDY["compare"], "algorithms": {}, "meter": [], "learning_rates": [], "seeds": [0, 1]}
    path = write(tmp_path, {**STUDY, "compare": one, "train": {"steps": 60, "prompts_per_step": 8}})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dibs", "compare", str(path), f"--compare.output_dir={out}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    runs = [out / f"runs/task/algorithm/{arm}" for arm in ("uniform", "online")]
    deadline = time.monotonic() + 240
    while sum(len(p.read_text().splitlines()) for p in out.rglob("metrics.jsonl")) < 8:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert list(out.rglob("checkpoints/step-*"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    while done.returncode == 2 and "in use" in done.stderr and time.monotonic() < deadline:
        time.sleep(1)  # the orphans are still finishing their step
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert all(len(list(run.rglob("summary.json"))) == 2 for run in runs)
