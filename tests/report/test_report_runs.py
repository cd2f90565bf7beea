"""Run folders read and grouped: what is whole, what is not, and numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dibs.allocation.intervals import over_seeds
from dibs.report.arms import Arm, differing_keys, group_runs
from dibs.report.curves import arm_curve, costs_at
from dibs.report.panels import has_score
from dibs.report.spending import PARTS, mean_spending, spending, total_spending
from dibs.report.tables import arm_row
from dibs.runs.find import run_folders
from dibs.runs.read import NoRun, finite_number, read_run
from dibs.runs.safe_text import as_json_types
from dibs.types import printable
from run_folders import make_run, reported_run, write_lines


def test_a_finished_run_is_read_whole(tmp_path):
    run = reported_run(make_run(tmp_path / "run", steps=4))
    assert (run.state, list(run.notes)) == ("finished", [])
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 3, 4]
    assert len(run.allocations) == 4
    assert len(run.samples) == 12
    assert run.setting("allocate.allocator") == "min_variance"
    assert run.setting("allocate.nothing.here") is None


def test_a_run_that_goes_on_is_unfinished_and_its_last_half_line_is_passed_over(tmp_path):
    path = make_run(tmp_path / "run", steps=3, finished=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "accu')
    run = reported_run(path)
    assert run.state == "unfinished"
    assert run.metrics[-1]["step"] == 3
    (note,) = run.notes
    assert note.startswith("at step 3 of 3, last written 20")


def test_a_file_without_a_last_line_feed_is_whole(tmp_path):
    path = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (path / name).write_text((path / name).read_text().rstrip("\n"))
    run = reported_run(path)
    assert run.state == "finished"
    assert run.metrics[-1]["step"] == 4
    assert len(run.samples) == 12


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("summary.json", "{", "summary.json is damaged: Expecting property name"),
        ("summary.json", "[]", "summary.json is damaged: it holds no keys and values"),
        ("config.yaml", "a: [", "config.yaml is damaged: while parsing"),
        ("config.yaml", "just text", "config.yaml is damaged: it holds no keys and values"),
        ("config.yaml", "", "config.yaml is damaged: it holds no keys and values"),
        ("config.yaml", "\0", "config.yaml is damaged: "),
        ("config.yaml", None, "config.yaml is missing"),
        ("samples.jsonl", "{}\nno\n", "samples.jsonl: 2 damaged lines left out (1, 2)"),
        ("samples.jsonl", "[" * 100_000 + "\n", "samples.jsonl: 1 damaged line left out (1)"),
        (
            "allocations.jsonl",
            '{"step": 1, "accept_rate": [0.5], "count": [1, 2], "accepted": [1]}\n',
            "allocations.jsonl: 1 damaged line left out (1)",
        ),
        (
            "allocations.jsonl",
            '{"step": 1, "accept_rate": [0.5], "count": [1%s], "accepted": [1]}\n' % ("0" * 999),
            "allocations.jsonl: 1 damaged line left out (1)",
        ),
        (
            "allocations.jsonl",
            '{"step": 1, "accept_rate": [1], "count": [1], "accepted": [1], "judged": []}\n',
            "allocations.jsonl: 1 damaged line left out (1)",
        ),
        (
            "allocations.jsonl",
            '{"step": 1%s, "accept_rate": [1], "count": [1], "accepted": [1]}\n' % ("0" * 20),
            "allocations.jsonl: 1 damaged line left out (1)",
        ),
        ("config.yaml", "a: &a {b: *a}", "config.yaml is damaged: it is deeper than 32 levels, or"),
        (
            "config.yaml",
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 900)),
            "config.yaml is damaged: it is deeper than 32 levels, or contains itself",
        ),
        (
            "config.yaml",
            "a0: &a0 [1]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)),
            "config.yaml is damaged: its aliases make more than 100,000 values",
        ),
        (
            "config.yaml",
            f"seed: 0x{'f' * 9000}",
            "config.yaml is damaged: it holds a whole number of 36,000 bits",
        ),
        (
            "samples.jsonl",
            '{"prompt": "", "completion": "", "answer": []}\n',
            "samples.jsonl: 1 dam",
        ),
        (
            "sessions.jsonl",
            f'{{"versions": {"[" * 99}0{"]" * 99}}}\n',
            "sessions.jsonl: 1 damaged line left out (1)",
        ),
        ("summary.json", '{"steps": 9}', "metrics.jsonl ends at step 4 of 9"),
    ],
)
def test_damage_is_told_and_the_rest_is_read(tmp_path, name, content, told):
    path = make_run(tmp_path / "run")
    (path / name).unlink()
    if content is not None:
        (path / name).write_text(content)
    run = reported_run(path)
    assert run.state == "damaged"
    assert any(note.startswith(told) for note in run.notes), run.notes
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 3, 4]
    arm_row(group_runs([run])[0])


def test_damaged_metrics_are_told_and_steps_that_were_done_again_count_once(tmp_path):
    path = make_run(tmp_path / "run")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    again = json.dumps({"step": 2, "accuracy": 0.75})
    bad = [
        "nonsense",
        '{"step": "4"}',
        '{"step": true}',
        "7",
        '{"step": -1}',
        '{"step": 1000000001}',
    ]
    (path / "metrics.jsonl").write_text("\n".join([*lines[:3], *bad, again, lines[4], ""]))
    run = reported_run(path)
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 4]
    assert run.metrics[2]["accuracy"] == 0.75
    assert list(run.notes) == ["metrics.jsonl: 6 damaged lines left out (4, 5, 6 ...)"]


@pytest.mark.parametrize(
    ("prepare", "reason", "state"),
    [
        (lambda path: None, "does not exist", "broken"),
        (lambda path: path.touch(), "is a file; give a run folder", "broken"),
        (lambda path: path.mkdir(), "holds no run: metrics.jsonl is missing", "broken"),
        (
            lambda path: (path.mkdir(), (path / "metrics.jsonl").touch()),
            "has no step yet: metrics.jsonl is empty",
            "unfinished",
        ),
        (
            lambda path: (path.mkdir(), (path / "metrics.jsonl").write_bytes(b"\xff\n\x00\n")),
            "metrics.jsonl: 2 damaged lines left out (1, 2)",
            "broken",
        ),
    ],
)
def test_folders_without_anything_to_report(tmp_path, prepare, reason, state):
    path = tmp_path / "run"
    prepare(path)
    assert read_run(path) == NoRun(path, reason, state)


def test_folders_of_runs_are_searched_and_nothing_is_counted_twice(tmp_path):
    first, second = (make_run(tmp_path / "all" / "arm" / f"{i}", seed=i) for i in (0, 1))
    third = make_run(tmp_path / "all" / "third")
    (first / "model" / "deep").mkdir(parents=True)
    (third / "metrics.jsonl").unlink()
    (tmp_path / "all" / "figures").mkdir()
    (tmp_path / "all" / ".git").mkdir()
    make_run(tmp_path / "all" / ".git" / "hidden")
    (tmp_path / "all" / "again").symlink_to(make_run(tmp_path / "elsewhere"))
    (tmp_path / "all" / "arm" / "round").symlink_to(tmp_path / "all")
    found, left_out = run_folders([tmp_path / "all", second, tmp_path / "none"])
    assert found == [first, second, third, tmp_path / "none"]
    assert left_out == []
    (tmp_path / "given").symlink_to(third)
    assert run_folders([tmp_path / "given"])[0] == [tmp_path / "given"]


def test_folders_are_sorted_by_the_numbers_in_their_names(tmp_path):
    names = ["uniform-8", "uniform-16", "uniform-16-b", "uniform-128", "vip-2"]
    runs = [make_run(tmp_path / name, seed=i) for i, name in enumerate(names)]
    assert run_folders([tmp_path])[0] == runs


def test_runs_of_a_comparison_are_found_and_those_that_chose_its_rates_left_out(tmp_path):
    out = tmp_path / "out"
    below = "task/algorithm/arm/lr-0.001"
    run = make_run(out / "runs" / below / "seed-0")
    tuning = make_run(out / "tuning" / below / "seed-7", seed=7)
    deeper = make_run(out / "runs" / below / "seed-0-and" / "one-more", seed=1)
    (out / "runs" / "tuning").mkdir()
    kept = make_run(out / "runs" / "tuning" / "run", seed=2)
    # Without study.json it is any folder.
    assert run_folders([out]) == ([run, kept, tuning], [])
    (out / "study.json").write_text("{}")
    found, (left_out,) = run_folders([out])
    assert found == [run, kept]
    assert (left_out.path, left_out.state) == (out / "tuning", "left out")
    assert "chose the learning rates" in left_out.reason
    # What is given itself is reported.
    assert run_folders([out, out / "tuning"]) == ([run, kept, tuning], [])
    assert run_folders([deeper.parent]) == ([deeper], [])


def test_a_folder_whose_name_is_too_long_does_not_exist(tmp_path):
    path = tmp_path / ("x" * 300)
    assert run_folders([path]) == ([path], [])
    found = read_run(path)
    assert isinstance(found, NoRun)
    assert found.reason in ("does not exist", "cannot be read: File name too long")


def test_text_that_cannot_be_shown_is_escaped():
    assert printable("min_variance, naïve 数 🎲") == "min_variance, naïve 数 🎲"
    assert printable("a\x01b\nc\x7f\ud800\udcff\uffff\u2028") == (
        r"a\x01b\nc\x7f\ud800\udcff\uffff\u2028"
    )


def test_values_of_a_configuration_become_plain_ones():
    assert as_json_types({1: None, "b": [True, 2, 0.5, "x"]}) == {
        "1": None,
        "b": [True, 2, 0.5, "x"],
    }
    assert as_json_types({"a": float("nan"), "b": -float("inf"), "c": {1}}) == {
        "a": "nan",
        "b": "-inf",
        "c": "{1}",
    }


def test_keys_of_a_configuration_that_are_no_text(tmp_path):
    path = make_run(tmp_path / "run")
    (path / "config.yaml").write_text("data: [{2001-01-01: 1, 2: 3}]\nseed: 2001-01-01\n")
    run = reported_run(path)
    assert run.state == "finished"
    assert run.config == {"data": [{"2001-01-01": 1, "2": 3}], "seed": "2001-01-01"}
    arm_row(group_runs([run])[0])


def test_numbers_that_are_none(tmp_path):
    for value in (None, "1", True, [1], float("nan"), float("inf"), 10**400):
        assert np.isnan(finite_number({"n": value}, "n")), value
    assert np.isnan(finite_number({}, "n"))
    assert finite_number({"n": 3}, "n") == 3


def test_runs_that_differ_in_the_seed_are_an_arm(tmp_path):
    runs = [
        reported_run(make_run(tmp_path / "a0")),
        reported_run(make_run(tmp_path / "u0", allocator="uniform", mode="none")),
        reported_run(make_run(tmp_path / "a1", seed=1, tracking={"project": "other"})),
        reported_run(make_run(tmp_path / "c0", mode="cross_fit")),
        reported_run(make_run(tmp_path / "again")),
    ]
    arms = group_runs(runs)
    assert [(arm.label, [run.path.name for run in arm.runs]) for arm in arms] == [
        ("a", ["a0", "a1"]),
        ("again", ["again"]),
        ("c0", ["c0"]),
        ("u0", ["u0"]),
    ]
    assert differing_keys([arms[0], arms[3]]) == [
        ("allocate.allocator", ["min_variance", "uniform"]),
        ("estimate.mode", ["pilot", "none"]),
    ]


def test_runs_without_a_configuration_are_arms_of_their_own(tmp_path):
    paths = [make_run(tmp_path / name) for name in "ab"]
    for path in paths:
        (path / "config.yaml").unlink()
    arms = group_runs([reported_run(path) for path in paths])
    assert [arm.label for arm in arms] == ["a", "b"]


def test_intervals_over_seeds_by_hand():
    mean, low, high = over_seeds(np.array([[1.0, 0.5], [3.0, 0.5]]))
    assert mean.tolist() == [2.0, 0.5]
    # Student's t with one degree of freedom: 12.7062; sd / sqrt(2) = 1
    np.testing.assert_allclose(low, [2 - 12.7062, 0.5], atol=1e-4)
    np.testing.assert_allclose(high, [2 + 12.7062, 0.5], atol=1e-4)
    assert np.isnan(over_seeds(np.array([[1.0]]))[1]).all()


def test_the_curve_of_an_arm_ends_where_its_first_seed_does(tmp_path):
    runs = [
        reported_run(make_run(tmp_path / "a", steps=6)),
        reported_run(make_run(tmp_path / "b", steps=6, seed=1)),
    ]
    (tmp_path / "b" / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in runs[1].metrics[:5])
    )
    (arm,) = group_runs([runs[0], reported_run(tmp_path / "b")])
    curve = arm_curve(arm, "seconds")
    # 2 s a step, 0.5 of them evaluation
    assert curve.x.tolist() == [0, 3.0, 6.0]
    assert curve.mean[2] == np.mean([run.metrics[4]["accuracy"] for run in runs])
    assert costs_at(arm, 4)["rollouts"] == 4 * 2 * 8 * 6
    assert arm_row(arm)["step"] == 4


def test_intervals_of_an_arm_keep_to_what_a_score_can_be(tmp_path):
    """Two seeds of .5 and .9: Student's t alone would give -1.84 to 3.24."""
    runs = [reported_run(make_run(tmp_path / f"{seed}", seed=seed)) for seed in range(2)]
    for run, value in zip(runs, (0.5, 0.9), strict=True):
        for line in run.metrics:
            line |= {"accuracy": value, "log_accept_rate": -value}
    (arm,) = group_runs(runs)
    curve = arm_curve(arm, "steps")
    assert (curve.low[-1], curve.high[-1]) == (0, 1)
    curve = arm_curve(arm, "steps", "log_accept_rate")
    assert (curve.low[-1], curve.high[-1]) == (pytest.approx(-3.24, abs=0.01), 0)


def test_any_score_of_the_evaluations_has_a_curve(tmp_path):
    runs = [reported_run(make_run(tmp_path / f"{seed}", seed=seed)) for seed in range(2)]
    (arm,) = group_runs(runs)
    single = arm_curve(Arm(("one",), runs[:1], arm.look), "rollouts", "log_accept_rate")
    last = [run.metrics[-1]["log_accept_rate"] for run in runs]
    assert single.mean[-1] == last[0]
    assert np.isnan(single.low).all()
    both = arm_curve(arm, "rollouts", "log_accept_rate")
    assert both.x.tolist() == [0, 192, 384]
    assert both.mean[-1] == np.mean(last)
    assert both.low[-1] < min(last)
    assert has_score([arm], "log_accept_rate")
    for line in runs[1].metrics:
        line["log_accept_rate"] = None
    assert not has_score([arm], "log_accept_rate")


def test_a_run_that_was_never_evaluated(tmp_path):
    path = make_run(tmp_path / "run", steps=1)
    write_lines(path / "metrics.jsonl", [{"step": 1, "rollouts": 7, "accuracy": None}])
    row = arm_row(group_runs([reported_run(path)])[0])
    assert (row["step"], row["rollouts"], row["accuracy"]) == (1, 7, None)


def test_where_the_budget_went_by_hand(tmp_path):
    path = make_run(tmp_path / "run", steps=2)
    lines = [
        {"step": 0, "pilot_rollouts": 0},
        {"step": 1, "pilot_rollouts": 32, "learned": 5},
        {"step": 2, "pilot_rollouts": 32, "learned": 0},
    ]
    allocations = [
        # all rejected 4, all accepted 3, mixed 2, nothing; then one of one accepted, one of one not
        {
            "step": 1,
            "accept_rate": [0, 1, 0.5, None],
            "count": [4, 3, 2, 0],
            "accepted": [0, 3, 1, 0],
        },
        {"step": 2, "accept_rate": [1, 0], "count": [1, 1], "accepted": [1, 0]},
    ]
    write_lines(path / "metrics.jsonl", lines)
    write_lines(path / "allocations.jsonl", allocations)
    assert PARTS == (
        "groups with both outcomes",
        "groups all accepted",
        "groups all rejected",
        "pilots, thrown away",
    )
    found = spending(reported_run(path))
    assert found.parts.T.tolist() == [[2, 3, 4, 32], [0, 1, 1, 0]]
    assert found.learned.tolist() == [5, 0]
    parts, learned = total_spending([reported_run(path)])
    assert (parts.tolist(), learned) == ([2, 4, 5, 32], 5)
    other = make_run(tmp_path / "kept", mode="cross_fit")
    write_lines(other / "metrics.jsonl", lines[:2])
    write_lines(other / "allocations.jsonl", allocations[:1])
    assert spending(reported_run(other)).parts.T.tolist() == [[2, 3, 4, 0]]
    both = mean_spending([reported_run(path), reported_run(other)])
    assert both.parts.T.tolist() == [[2, 3, 4, 16], [0, 1, 1, 0]]
    (other / "allocations.jsonl").unlink()
    assert total_spending([reported_run(other)])[0].tolist() == [0, 0, 0, 0]


def test_completions_without_a_verdict_do_not_make_a_group_one_of_both_outcomes(tmp_path):
    path = make_run(tmp_path / "run", steps=1, mode="none")
    # 3 of 4 judged and accepted; 2 of 5 judged, none accepted; nothing judged; both outcomes; no group
    line = {
        "step": 1,
        "accept_rate": [1, 0, None, 0.5, None],
        "count": [4, 5, 2, 8, 0],
        "judged": [3, 2, 0, 7, 0],
        "accepted": [3, 0, 0, 4, 0],
    }
    write_lines(path / "allocations.jsonl", [line])
    assert spending(reported_run(path)).parts[:, 0].tolist() == [8, 4, 7, 0]
    del line["judged"]
    write_lines(path / "allocations.jsonl", [line])
    assert spending(reported_run(path)).parts[:, 0].tolist() == [12, 0, 7, 0]
