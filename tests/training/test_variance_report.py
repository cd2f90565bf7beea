"""What the meter reports of gradients made by hand: degenerate prompts, and reasons in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dibs.allocation.group_variance import features
from dibs.allocation.target import Target
from dibs.config import Config
from dibs.config.load import load_config
from dibs.report.terminal import shapes_advice, steps_findings, variance_findings
from dibs.training.measured_gradients import MeasuredGradients, measured_gradients
from dibs.training.step_meter import check_simulated, step_report
from dibs.training.variance_meter import variance_report
from dibs.types import InputError
from tiny_groups import make_group, make_prompt

NONE, ALL = np.zeros((8, 16)), np.ones((8, 16))
MIXED = (np.random.default_rng(1).random((8, 16)) < 0.4).astype(float)


def configured(tmp_path, prompts: int, *words: str) -> Config:
    keys = {
        "output_dir": str(tmp_path),
        "train.prompts_per_step": str(prompts),
        "allocate.num_generations": "4",
        "estimate.num_pilots": "4",
        **dict(word.split("=") for word in words),
    }
    return load_config(None, keys)


def measured(config: Config, rewards: np.ndarray) -> MeasuredGradients:
    """Gradients in 20 dimensions, which depend on the reward."""
    rng, target = np.random.default_rng(0), Target.of(config.algorithm)
    groups = [make_group(row.tolist(), make_prompt(f"{i:02}")) for i, row in enumerate(rewards)]
    scores = [rng.normal(size=(len(row), 20)) + 0.3 * row[:, None] for row in rewards]
    sums = [
        features(target.rewards(group), target).T @ s
        for group, s in zip(groups, scores, strict=True)
    ]
    squares = [(s**2).sum(1) for s in scores]
    return measured_gradients(
        target, groups, [np.sqrt(each) for each in squares], squares, torch.tensor(np.array(sums))
    )


def reported(tmp_path, rewards: np.ndarray, *words: str) -> dict:
    config = configured(tmp_path, len(rewards), *words)
    result = variance_report(config, measured(config, rewards))
    json.dumps(result, allow_nan=False)
    return result


def test_flat_of_nothing_accepted_has_no_variance(tmp_path):
    found = reported(tmp_path, NONE, "algorithm.estimator=flat")
    assert found["allocations"]["uniform"]["variance"] == 0


def test_draws_are_those_that_were_made(tmp_path):
    none = ("estimate.mode=none", "allocate.allocator=uniform")
    assert reported(tmp_path, MIXED, *none)["draws"] == 1
    assert reported(tmp_path, MIXED)["draws"] == 10


@pytest.mark.parametrize(
    ("rewards", "words"), [(NONE, ()), (ALL, ("algorithm.objective=expected_reward",))]
)
def test_noise_is_not_blamed_where_no_completion_gave_a_gradient(tmp_path, rewards, words):
    words = (*words, "algorithm.baseline=mean")
    said = " ".join(variance_findings(reported(tmp_path, rewards, *words)))
    assert "no completion gave a gradient" in said
    assert "drowns" not in said
    assert "keeps" not in said
    assert ("easier prompts" in said) == (rewards is NONE)


def test_shapes_are_not_advised_where_no_completion_gave_a_gradient(tmp_path):
    found = reported(tmp_path, NONE) | {"shapes": {"advice": "measure more prompts"}}
    assert "none was accepted. Take easier prompts" in shapes_advice(found)
    found = reported(tmp_path, MIXED) | {"shapes": {"advice": "measure more prompts"}}
    assert shapes_advice(found) == "measure more prompts"


def test_two_prompts_are_too_few_for_a_noise_scale(tmp_path):
    assert "It takes three prompts" in " ".join(variance_findings(reported(tmp_path, MIXED[:2])))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ("algorithm.estimator=order_k", "algorithm.order=2"),
            "three prompts or more with an accepted completion each.",
        ),
        ((), "three prompts or more with two accepted completions each."),
        (
            ("algorithm.objective=expected_reward", "algorithm.baseline=none"),
            "three prompts or more with an accepted completion each.",
        ),
        (
            ("algorithm.objective=expected_reward", "algorithm.baseline=mean"),
            "three prompts or more with an accepted completion each, and as many with a rejected one.",
        ),
        (("algorithm.name=grpo",), "with two accepted and two rejected completions each."),
    ],
)
def test_why_an_achievable_gain_is_not_known(tmp_path, words, reason):
    found = reported(tmp_path, MIXED[:2], *words)
    (said,) = (line for line in variance_findings(found) if line.startswith("Achievable"))
    assert said.endswith(f"{reason}" if reason.endswith(".") else f"{reason}.")


GRPO = (
    "algorithm.name=grpo",
    "algorithm.estimator=prompt_mean",
    "estimate.mode=none",
    "allocate.allocator=uniform",
)


def steps_of(tmp_path, rewards: np.ndarray, *words: str) -> dict:
    config = configured(tmp_path, len(rewards), *GRPO, *words)
    check_simulated(config)
    result = step_report(config, measured(config, rewards), 100)
    json.dumps(result, allow_nan=False)
    assert list(result["steps"]) == ["uniform", result["rule"]]
    return result


def test_rounds_are_judged_beside_uniform_steps(tmp_path):
    found = steps_of(tmp_path, MIXED, "allocate.rounds=reinforce_ada_pos")
    uniform, own = found["steps"].values()
    assert found["rule"] == "reinforce_ada_pos"
    assert (uniform["rollouts"], uniform["gain"]["value"]) == (32, 1)
    assert 32 < own["rollouts"] < 64
    ratio = own["gain_per_rollout"]["value"] / own["gain"]["value"]
    assert ratio == pytest.approx(32 / own["rollouts"])
    assert own["gain_per_token"]["value"] == pytest.approx(own["gain_per_rollout"]["value"])
    assert own["gain"]["low"] < own["gain"]["value"] < own["gain"]["high"]
    assert 0.9 < own["cosine"]["value"] <= 1
    said = " ".join(steps_findings(found))
    assert "At equal rollouts steps of reinforce_ada_pos" in said


def test_a_pool_with_a_named_rule_is_judged_too(tmp_path):
    words = ("estimate.mode=online", "select.pool=all", "select.group=4", "select.correct=false")
    found = steps_of(tmp_path, MIXED, *words, "allocate.allocator=nearest_half")
    row = found["steps"]["nearest_half of a pool"]
    assert (row["rollouts"], row["pilot_rollouts"]) == (32, 0)
    assert row["cosine"]["low"] is not None


def test_nothing_is_said_of_steps_without_a_gradient(tmp_path):
    found = steps_of(tmp_path, NONE, "allocate.keep=pods", "allocate.keep_count=2")
    row = found["steps"]["pods"]
    assert (row["gain"]["value"], row["kept"]["value"], row["cosine"]["value"]) == (None,) * 3
    (said,) = steps_findings(found)
    assert "nothing to compare" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("estimate.mode=cross_fit", "estimate.num_pilots=2", "allocate.keep=pods"),
            "one in place of cross_fit",
        ),
        (("allocate.budget=32", "select.pool=all"), "leave allocate.budget"),
        (("variance.num_generations=5", "select.pool=all"), "is below 6: 4 decide"),
    ],
)
def test_steps_that_cannot_be_simulated(tmp_path, words, message):
    given = dict(word.split("=") for word in ("estimate.mode=online", *words))
    if "allocate.keep" in given:
        given["allocate.keep_count"] = "2"
    config = configured(tmp_path, 8, *(f"{key}={value}" for key, value in given.items()))
    with pytest.raises(InputError, match=message):
        check_simulated(config)
