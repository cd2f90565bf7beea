"""The files of configs/: what they claim in comments, and that a run can be made of each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dibs.config import Config
from dibs.config.load import load_config, split_config
from dibs.rollouts.verify.verifiers import BOXED, resolved
from dibs.runs.console import NoView
from dibs.runs.measured_shape import with_shape
from dibs.runs.train_run import run_training
from dibs.training.shape_advice import recommended_keys
from dibs.training.shape_meter import check_shapes
from tiny_runs import EASY, EASY_WARM_START

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
TINY = [
    f"--policy.model={EASY}",
    f"--data.train={EASY}",
    "--data={size: 64, eval_size: 8}",
    "--data.template=plain",
    "--policy.threads=1",
    "--policy.device=cpu",
    "--policy.dtype=float32",
    "--sampling.engine=transformers",
    "--sampling.max_completion_length=12",
    "--sampling.stop=null",
    "--verify.answer_from=boxed",
    "--estimate.interval=1",
    "--train={steps: 2, prompts_per_step: 8}",
    "--variance.prompts=8",
    *(f"--policy.warm_start.{key}={value}" for key, value in EASY_WARM_START.items()),
]


def shipped(name: str) -> Config:
    return load_config(FOLDER / name)


def test_the_files_are_those_that_the_pages_name():
    assert {path.name for path in CONFIGS} == {
        "demo.yaml",
        "math.yaml",
        "paper.yaml",
        "small-gpu.yaml",
        "smollm2.yaml",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_templates_ask_for_the_answer_that_the_verifier_takes(path):
    config = load_config(path)
    takes_boxes = resolved(config.verify.verifier, config.data.train) in BOXED
    boxed = config.verify.answer_from == "boxed"
    assert config.data.template == ("boxed" if takes_boxes and boxed else "plain")


def test_paper_has_the_settings_of_the_paper():
    config = shipped("paper.yaml")
    assert (config.train.prompts_per_step, config.update.updates_per_step) == (1024, 1024 // 256)
    assert (config.estimate.mode, config.estimate.num_pilots, config.estimate.interval) == (
        "pilot",
        8,
        10,
    )
    assert (config.allocate.allocator, config.budget, config.lower) == ("gvm", 8 * 1024, 0)
    assert (config.allocate.accept_rate_penalty, config.allocate.accept_rate_power) == (1e-3, 2)
    assert (config.update.learning_rate, config.update.schedule) == (1e-6, "constant")
    own = config.algorithm
    assert (own.beta, own.epsilon, own.epsilon_high) == (0.001, 0.2, 0.28)
    assert (config.data.max_prompt_length, config.sampling.max_completion_length) == (1024, 3072)


@pytest.mark.parametrize("name", ["math.yaml", "small-gpu.yaml"])
@pytest.mark.parametrize("rule", ["uniform", "pool", None])
def test_a_measured_shape_fits_what_is_recommended(name, rule):
    config = shipped(name)
    assert config.train.shape == "auto"
    check_shapes(config)
    row = {"rule": rule, "prompts": 2 * config.train.prompts_per_step, "completions": config.group}
    keys = {} if rule is None else recommended_keys(row, config)
    found = with_shape(config, {"keys": keys, "advice": ""})
    assert found.estimate.mode == ("online" if rule == "pool" else "none")
    assert found.select.pool == ("all" if rule == "pool" else None)


@pytest.mark.parametrize("name", ["math.yaml", "small-gpu.yaml"])
def test_the_cost_of_measuring_the_shape_is_as_the_comment_says(name):
    config = shipped(name)
    assert config.variance.prompts is not None
    assert config.budget is not None
    drawn = config.variance.prompts * config.variance.num_generations
    said = re.search(r"auto draws (\d+) x (\d+) completions, as many as four steps", text_of(name))
    assert said is not None
    assert int(said[1]) * int(said[2]) == drawn == 4 * config.budget


def test_steps_and_batches_are_as_the_comments_say():
    for name in ("math.yaml", "small-gpu.yaml"):
        said = re.search(r"# ([\d,]+) completions a step", text_of(name))
        assert said is not None
        assert int(said[1].replace(",", "")) == shipped(name).budget
    small, large = shipped("small-gpu.yaml"), shipped("math.yaml")
    sequence = small.data.max_prompt_length + small.sampling.max_completion_length
    assert small.sampling.batch_tokens == 16 * sequence  # "sixteen sequences at a time"
    assert small.update.micro_batch_tokens == sequence  # "one sequence"
    sequence = large.data.max_prompt_length + large.sampling.max_completion_length
    assert large.update.micro_batch_tokens == 2 * sequence  # "two sequences"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_can_be_made_of_each(path, tmp_path):
    """Its keys on a tiny model and task; the shape of two of them is measured first."""
    out = tmp_path / "run"
    config = load_config(*split_config([str(path), *TINY, f"--output_dir={out}"]))
    run_training(config, NoView())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["optimizer_updates"] == 2 * config.update.updates_per_step
    assert (out / "shape.json").exists() == (config.train.shape == "auto")


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
