"""dibs eval A B: differences by hand, degenerate cases, the same prompts and seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dibs.allocation.intervals import paired_interval
from dibs.cli import main
from dibs.runs.paired_evaluation import average_difference, difference


def record(prompt: str, accepted: int, judged: int = 2, majority: float = 0.0) -> dict[str, Any]:
    return {"prompt_id": prompt, "accepted": accepted, "judged": judged, "majority": majority}


def test_differences_by_hand():
    """avg: 1/2 - 0, 1 - 1, 0 - 1. pass@2 of 2: 1 - 0, 1 - 1, 0 - 1. maj: 1 - 0, 0, 0 - 1."""
    first = [record("a", 0), record("b", 2, majority=1), record("c", 2, majority=1)]
    second = [record("c", 0), record("b", 2, majority=1), record("a", 1, majority=1)]
    row = difference((first, second), (0, 0), 2)
    assert (row["prompts"], row["unjudged"], row["better"], row["worse"]) == (3, 0, 1, 1)
    assert row["avg"] == pytest.approx(-1 / 6)
    assert row["pass"] == 0
    assert row["maj"] == 0
    low, high = paired_interval(np.array([0.5, 0, -1]))
    assert (row["avg_low"], row["avg_high"]) == pytest.approx((low, high))


def test_prompts_that_a_model_could_not_read_are_not_solved_by_it():
    """b is too long for the second model, d for both."""
    first, second = [record("a", 2), record("b", 1)], [record("a", 2)]
    row = difference((first, second), (1, 2), 1)
    assert (row["prompts"], row["better"], row["worse"]) == (3, 0, 1)
    assert row["avg"] == pytest.approx((0 - 0.5 + 0) / 3)


def test_prompts_without_a_verdict_are_left_out():
    first = [record("a", 0, 0), record("b", 1)]
    row = difference((first, [record("a", 2), record("b", 2)]), (0, 0), 1)
    assert (row["prompts"], row["unjudged"], row["avg"]) == (1, 1, 0.5)
    nothing = difference((first[:1], [record("a", 2)]), (0, 0), 1)
    assert (nothing["prompts"], nothing["avg"], nothing["maj_low"]) == (0, None, None)
    assert set(average_difference([row, nothing]).values()) == {None}


def test_averages_over_benchmarks_by_hand():
    """Distances of .3 and .4 below add up to .5, over two benchmarks .25; above, .6 and .8 to 1."""
    one = dict(zip(("", "_low", "_high"), (0.2, -0.1, 0.8), strict=True))
    two = dict(zip(("", "_low", "_high"), (0.0, -0.4, 0.8), strict=True))
    rows = [
        {f"{name}{end}": value for name in ("avg", "pass", "maj") for end, value in each.items()}
        for each in (one, two)
    ]
    found = average_difference(rows)
    assert [found[f"pass{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [0.1, 0.1 - 0.25, 0.1 + 0.5]
    )
    assert average_difference(rows[:1]) == pytest.approx(rows[0])


def words(byte_model: Path, math_file: Path, *more: str) -> list[str]:
    small = ["--sampling.max_completion_length=8", "--policy.threads=1", "--policy.device=cpu"]
    lenient = ["--verify.verifier=own_verifiers:half", "--verify.workers=1", "--data.max_rows=12"]
    return ["eval", str(byte_model), "--data", str(math_file), "--k=2", *small, *lenient, *more]


def test_a_model_does_not_differ_from_itself(byte_model, math_file, tmp_path, capsys):
    """Not even where it samples: both draw by the same seeds."""
    out = tmp_path / "out"
    command = words(byte_model, math_file, str(byte_model), "--out", str(out))
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["difference"]["benchmarks"]
    assert 0 < found["a"]["benchmarks"][0]["avg"] < 1
    assert (row["prompts"], row["better"], row["worse"], row["avg"]) == (12, 0, 0, 0)
    edge = 3.8415 / (12 + 3.8415)
    assert (row["maj_low"], row["maj_high"]) == pytest.approx((-edge, edge), rel=1e-4)
    assert json.loads((out / "difference.json").read_text()) == found["difference"]
    assert {path.name for path in out.iterdir()} == {"a", "b", "difference.json"}
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.err.count("12 prompts evaluated before") == 2
    assert "+0.0 (-24.2 to +24.2)" in shown.out
    assert "no difference of avg@2 is shown" in shown.out


def test_another_model_gets_the_same_prompts(byte_model, math_file, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(byte_model)
    model.lm_head.weight.data *= 3
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(byte_model).save_pretrained(other)
    assert main(words(byte_model, math_file, str(other), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["difference"]["benchmarks"]
    assert row["avg"] == pytest.approx(
        found["b"]["benchmarks"][0]["avg"] - found["a"]["benchmarks"][0]["avg"]
    )
    assert row["better"] + row["worse"] > 0
    assert found["a"]["settings"]["clock"] == found["b"]["settings"]["clock"]


def test_a_second_model_that_is_not_there_is_found_before_the_first_is_evaluated(
    byte_model, math_file, tmp_path, capsys
):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    for other, message in ((tmp_path / "gone", "no such folder"), (empty, "holds no model")):
        assert main(words(byte_model, math_file, str(other), "--out", str(out))) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not out.exists()
