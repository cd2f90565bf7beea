"""``train.shape: auto``: measured once, kept for a run that goes on, and counted."""

from __future__ import annotations

import json

import pytest

from dibs.cli import main
from dibs.config.load import load_config, split_config
from dibs.files import read_lines
from dibs.runs import measured_shape
from dibs.runs.console import NoView
from dibs.runs.measured_shape import with_shape
from dibs.runs.train_run import run_training
from dibs.training.shape_advice import advice, recommended_keys
from dibs.types import InputError
from tiny_runs import ONLINE, WORDS

AUTO = [*WORDS, *ONLINE, "--train.shape=auto", "--variance.num_generations=16"]
DRAWN = 8 * 16
ROW = {"prompts": 16, "completions": 2, "gain": {"value": 3.0, "low": 2.0, "high": 4.0}}


def config_of(*words):
    return load_config(*split_config(list(words)))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform", (16, 2, "uniform", None)),
        ("counts", (16, 2, "min_variance", None)),
        ("pool", (8, 4, "min_variance", "all")),
    ],
)
def test_keys_of_a_recommended_shape(rule, expected):
    config = config_of(*AUTO)
    found = with_shape(
        config, {"keys": recommended_keys({**ROW, "rule": rule}, config), "advice": ""}
    )
    m, n, allocator, pool = expected
    assert (found.train.prompts_per_step, found.allocate.num_generations) == (m, n)
    assert (found.allocate.allocator, found.select.pool) == (allocator, pool)
    assert found.budget == config.budget
    assert with_shape(config, {"keys": {}, "advice": ""}) == config


@pytest.mark.parametrize("rule", ["uniform", "counts", "pool"])
@pytest.mark.parametrize(
    "own",
    [
        ["--allocate.allocator=gvm"],
        ["--allocate.allocator=uniform"],
        ["--algorithm.name=grpo", "--algorithm.deviation=expected"],
        ["--allocate.budget_unit=tokens"],
        [*ONLINE, "--estimate.grad_norm=update"],
    ],
)
def test_who_follows_the_advice_has_the_measured_shape_and_draws_no_pilots(own, rule):
    """``WORDS`` set pilots, and phases of pilots, which uniform counts then draw too."""
    config, row = config_of(*WORDS, *own), {**ROW, "rule": rule}
    said = advice(row, config).removeprefix("Use ").partition(":")[0].replace(" and ", ", ")
    pasted = [f"--{words.replace(' ', '=')}" for words in said.split(", ")]
    followed = config_of(*WORDS, *own, *pasted)
    assert followed == with_shape(config, {"keys": recommended_keys(row, config), "advice": ""})
    assert followed.estimate.mode in ("online", "none")
    assert followed.budget == config.budget
    assert "Use the configuration as it is: 3 (2-4) times" in advice(row, followed)


def test_a_run_with_pilots_draws_its_budget_once_its_shape_is_measured(tmp_path, monkeypatch):
    config = config_of(*WORDS, "--train.steps=1", "--train.shape=auto", f"--output_dir={tmp_path}")
    best = {**ROW, "rule": "uniform"}
    found = {
        "shapes": {"recommended": best, "advice": advice(best, config)},
        "prompts": 8,
        "completions_per_prompt": 16,
        "completion_length": 5.0,
    }
    monkeypatch.setattr(measured_shape, "run_variance", lambda *_, **__: found)
    summary = run_training(config, NoView())
    assert (summary["rollouts"], summary["pilot_rollouts"]) == (DRAWN + 32, DRAWN)


def test_shapes_that_other_keys_do_not_allow_are_one_line():
    config = config_of(*AUTO, "--allocate.upper=6")
    shape = {"keys": recommended_keys({**ROW, "rule": "pool"}, config), "advice": "Use a pool."}
    with pytest.raises(InputError, match=r"found: Use a pool\. .*allocate\.upper bound") as refused:
        with_shape(config, shape)
    assert "\n" not in str(refused.value)


def test_a_run_with_a_measured_shape_goes_on_with_it(tmp_path, capsys):
    for name, steps in (("whole", 4), ("part", 2)):
        words = [*AUTO, f"--output_dir={tmp_path / name}", f"--train.steps={steps}"]
        assert main(["train", *words, "--update.schedule=constant"]) == 0
    assert "Measuring which shape of a step is least noisy" in capsys.readouterr().out
    words = [*AUTO, f"--output_dir={tmp_path / 'part'}", "--train.steps=4"]
    again = [*words, "--update.schedule=constant", "--resume", "--allow_changes=true"]
    assert main(["train", *again]) == 0
    assert "Measuring" not in capsys.readouterr().out
    whole, part = (tmp_path / name for name in ("whole", "part"))
    assert (whole / "shape.json").read_text() == (part / "shape.json").read_text()
    assert read_lines(whole / "allocations.jsonl") == read_lines(part / "allocations.jsonl")
    summary = json.loads((part / "summary.json").read_text())
    assert summary["pilot_rollouts"] == DRAWN
    assert summary["rollouts"] == DRAWN + 4 * 32
    assert read_lines(part / "metrics.jsonl")[0]["rollouts"] == DRAWN

    (part / "shape.json").write_text("{")
    assert main(["train", *words, "--resume", "--train.steps=5", "--allow_changes=true"]) == 2
    assert "shape.json is missing or damaged" in capsys.readouterr().err.splitlines()[-1]
