"""Whole runs to which levels of prompts are added."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from dibs.config.load import load_config, split_config
from dibs.files import read_lines
from dibs.report.terminal import data_lines
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.runs.describe_data import describe_data
from dibs.runs.measure_variance import run_variance
from dibs.runs.train_run import run_training
from dibs.types import InputError
from tiny_runs import ONLINE, POOL, options, result, run, untimed

KINDS = [
    "--data.grow.levels=3",
    "--data.grow.harder=false",
    "--data.grow.size=16",
    "--data.size=16",
]
STEPS = [*KINDS, "--data.grow.when=steps", "--data.grow.interval=2", "--train.steps=6"]
MARK = [*KINDS, "--data.grow.accept_rate=0.05", "--data.grow.interval=2", "--train.steps=6"]
HELD_OUT = [*MARK, "--data.grow.when=held_out"]


def drawn_prompts(out: Path) -> list[set[str]]:
    return [set(line["prompt_id"]) for line in read_lines(out / "allocations.jsonl")]


def levels_of(out: Path) -> list[int]:
    return [line["level"] for line in untimed(out) if line["step"] > 0]


def test_levels_are_added_after_steps_and_what_was_there_stays(tmp_path):
    run(tmp_path / "run", *STEPS, *POOL, "--train.steps=6")
    assert levels_of(tmp_path / "run") == [1, 1, 2, 2, 3, 3]
    written = {key for line in untimed(tmp_path / "run") for key in line}
    documented = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text()
    assert {key for key in written if f"`{key}`" not in documented} == set()


def test_prompts_are_drawn_from_all_levels_that_are_there(tmp_path):
    run(tmp_path / "run", *STEPS, "--estimate.interval=1")
    drawn = drawn_prompts(tmp_path / "run")
    first = drawn[0] | drawn[1]
    assert len(first) == 16  # a pass over level 1
    later = set().union(*drawn[2:])
    assert later & first
    assert later - first


@pytest.mark.parametrize("rule", [MARK, HELD_OUT])
def test_an_accept_rate_adds_them(tmp_path, rule):
    run(tmp_path / "run", *rule)
    assert levels_of(tmp_path / "run") == [1, 1, 2, 2, 3, 3]
    run(tmp_path / "never", *rule, "--data.grow.accept_rate=1")
    lines = [line for line in untimed(tmp_path / "never") if line["step"] > 0]
    assert [line["level"] for line in lines] == [1] * 6
    assert all(line["level_accept_rate"] < 1 for line in lines)


def test_every_step_up_to_the_next_estimate_keeps_what_was_drawn(tmp_path):
    run(tmp_path / "run", *STEPS, "--data.grow.interval=1", "--estimate.interval=3")
    drawn = drawn_prompts(tmp_path / "run")
    assert len(drawn[0] | drawn[1]) == 16  # level 1, though level 2 was added after step 1


@pytest.mark.parametrize("more", [[], ONLINE, POOL, ["--estimate.interval=3"]])
def test_a_run_that_was_killed_ends_alike(tmp_path, more):
    """Before a level is added, right after, and between."""
    keys = [*MARK, *more, "--checkpoint.interval=1", "--checkpoint.keep=9"]
    run(tmp_path / "whole", *keys)
    assert levels_of(tmp_path / "whole") == [1, 1, 2, 2, 3, 3]
    for last in (1, 2, 3):
        parts = tmp_path / f"until-{last}"
        shutil.copytree(tmp_path / "whole", parts)
        (parts / "summary.json").unlink()
        shutil.rmtree(parts / "model")
        for step in range(last + 1, 7):
            shutil.rmtree(parts / "checkpoints" / f"step-{step:06}", ignore_errors=True)
        run(parts, *keys, "--resume=yes")
        assert result(parts) == result(tmp_path / "whole")


def test_statistics_of_earlier_levels_stay(tmp_path):
    config = load_config(*split_config(options(tmp_path / "run", *STEPS, *POOL)))
    trainer = build_trainer(config, PlainView(Console(quiet=True)))
    try:
        for _ in trainer.run():
            pass
        levels = {prompt.prompt_id: prompt.level for prompt in trainer.prompts.train}
        sums = trainer.history.sums(list(levels), config.train.steps)[:, 0]
        known = {level for level, n in zip(levels.values(), sums, strict=True) if n > 0}
        assert known == {1, 2, 3}
    finally:
        trainer.source.close()


def test_the_terminal_says_what_comes_and_what_came(tmp_path):
    console = Console(record=True, width=300)
    config = load_config(*split_config(options(tmp_path / "run", *MARK)))
    run_training(config, PlainView(console))
    said = console.export_text()
    assert (
        "The run begins with the 16 of level 1; levels of 16, 16 are added one after another, each "
        "when the accept rate of the newest level in training is 0.05 or more, at the soonest after 2 "
        "steps"
    ) in said
    assert "Level 2 of 3 is added: 16 prompts more, 32 in all" in said
    assert "Level 3 of 3 is added: 16 prompts more, 48 in all" in said


def test_the_first_level_must_fill_a_step(tmp_path):
    with pytest.raises(InputError, match="prompts_per_step is 8, but there are 4 training prompts"):
        run(tmp_path / "run", *KINDS, "--data.size=4")


def test_what_is_measured_beforehand_is_what_a_run_begins_with(tmp_path):
    words = options(tmp_path / "run", *KINDS, "--variance.prompts=16")
    config = load_config(*split_config(words))
    assert run_variance(config, PlainView(Console(quiet=True)))["prompts"] == 16
    more = load_config(*split_config([*words, "--variance.prompts=17"]))
    with pytest.raises(InputError, match="is 17, but there are 16"):
        run_variance(more, PlainView(Console(quiet=True)))
    described = describe_data(config)
    assert (described["levels"], described["steps_per_epoch"]) == ([16, 16, 16], 2)
    said = list(data_lines(described))
    assert said[0] == "48 training prompts, 8 held out; an epoch of level 1 is 2 steps"
    assert said[1] == "levels, added one after another: 16, 16, 16 prompts"
