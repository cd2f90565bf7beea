"""Ragged groups: counts requested and received, and the gradient that is made of them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launched
from slow_gradient import slow_gradient
from trl import GRPOTrainer

from dibs.training.losses import kl_to_reference
from training import PROMPTS, SKEWED, UNIFORM, build, judge, run

pytestmark = pytest.mark.trl
STEPS = 6
ONLINE = {
    "objective": "expected_reward",
    "baseline": "leave_one_out",
    "half_life": 5,
}


def received(call: list[str]) -> list[int]:
    """Sizes of the groups that stand together in what the reward function was given."""
    return [len(list(group)) for _, group in groupby(call)]


def assert_counts(calls: list[list[str]], counts: list[list[int]]) -> None:
    assert len(calls) == len(counts) == STEPS
    for call, wanted in zip(calls, counts, strict=True):
        assert sum(wanted) == len(call) == 32
        assert received(call) == [count for count in wanted if count]
        assert len(Counter(call)) == sum(count > 0 for count in wanted)


@pytest.mark.parametrize("dibs", [SKEWED, ONLINE], ids=["own allocator", "online"])
def test_counts_requested_are_counts_received(byte_model, tmp_path, dibs):
    told = run(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": dibs,
            "grpo": {"max_steps": STEPS},
        }
    )
    assert_counts([call["prompts"] for call in told["calls"]], told["counts"])
    assert any(len(set(counts)) > 1 for counts in told["counts"])
    last = told["log"][-1]
    assert last["dibs/count_sum"] == 32
    assert last["dibs/count_max"] == max(told["counts"][-1])
    assert last["dibs/rollouts"] == told["rollouts"] == STEPS * 32
    if dibs is ONLINE:
        assert told["counts"][0] == [8] * 4
        assert last["dibs/known_prompts"] == PROMPTS
        assert last["dibs/achievable_gain"] >= last["dibs/expected_gain"] - 1e-9


def test_two_processes(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": ONLINE,
        "grpo": {"max_steps": STEPS},
    }
    told = launched(settings, 2)
    calls = [
        first["prompts"] + second["prompts"]
        for first, second in zip(told[0]["calls"], told[1]["calls"], strict=True)
    ]
    assert told[0]["counts"] == told[1]["counts"]
    assert_counts(calls, told[0]["counts"])
    assert any(len(set(counts)) > 1 for counts in told[0]["counts"])
    # Both have seen all completions.
    assert told[0]["state"] == told[1]["state"]
    ids = [set(map(tuple, call["ids"])) for call in (told[0]["calls"][0], told[1]["calls"][0])]
    assert ids[0] != ids[1]


ORDER_K = {
    "objective": "log_likelihood",
    "estimator": "order_k",
    "order": 2,
    "allocator": "training:first",
}


@pytest.mark.parametrize(
    ("loss_type", "divisors"),
    [
        ("dr_grpo", lambda ids, weights: [8.0] * len(ids)),
        ("grpo", lambda ids, weights: [float(len(each)) for each in ids]),
        (
            "dapo",
            lambda ids, weights: [float(np.dot(weights, [len(each) for each in ids]))] * len(ids),
        ),
    ],
)
@pytest.mark.parametrize(
    "target",
    [
        {},
        {"objective": "expected_reward", "baseline": "leave_one_out"},
        {"objective": "log_likelihood"},
        {"objective": "log_likelihood", "estimator": "self_normalized"},
        {**ORDER_K, "baseline": "mean"},
        {**ORDER_K, "algorithm": "raft"},
        {"deviation": "expected"},
        {"algorithm": "raft"},
        {"algorithm": "raft++", "estimator": "flat"},
    ],
    ids=str,
)
def test_the_gradient_is_what_the_estimator_says(byte_model, tmp_path, loss_type, divisors, target):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": {**SKEWED, **target},
        "grpo": {"max_steps": 1, "loss_type": loss_type, "max_grad_norm": 1e9},
    }
    found, expected = slow_gradient(settings, divisors)
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * largest, rtol=1e-4)


def test_a_group_of_one_has_no_advantage_and_zero_spread_counts_groups(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": SKEWED,
        "grpo": {"max_steps": 1},
    }
    trainer, reward = build(settings)
    trainer.train()
    assert reward.counts[0] == [1, 0, 9, 22]
    assert trainer._logs["advantages"][0] == 0
    level = {row["prompt"]: row["level"] for row in trainer.train_dataset}
    texts = list(trainer._logs["completion"])
    prompts = reward.calls[0]["prompts"]
    rewards = np.array([judge(t, level[p]) for t, p in zip(texts, prompts, strict=True)])
    groups = np.split(rewards, [1, 10])
    flat = np.mean([np.ptp(group) == 0 for group in groups])
    assert trainer.state.log_history[0]["frac_reward_zero_std"] == pytest.approx(flat)


def test_completions_without_a_reward_are_left_out(byte_model, tmp_path):
    told = run(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "unjudged": 3,
            "dibs": ONLINE,
            "grpo": {"max_steps": STEPS},
        }
    )
    assert_counts([call["prompts"] for call in told["calls"]], told["counts"])
    assert all(np.isfinite(each["loss"]) for each in told["log"])
    trials = sum(each[1] for each in told["state"]["history"]["prompts"].values())
    assert 0 < trials < STEPS * 21 + 1


@pytest.mark.parametrize("estimator", ["prompt_mean", "self_normalized"])
def test_pilots_decide_and_are_not_trained_on(byte_model, tmp_path, estimator):
    told = run(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": {
                "algorithm": "raft++",
                "mode": "pilot",
                "allocator": "gvm",
                "num_pilots": 3,
                "estimator": estimator,
            },
            "grpo": {"max_steps": STEPS},
        }
    )
    pilots, trained = told["calls"][::2], told["calls"][1::2]
    assert [received(call["prompts"]) for call in pilots] == [[3] * 4] * STEPS
    assert_counts([call["prompts"] for call in trained], told["counts"][1::2])
    last = told["log"][-1]
    assert last["dibs/pilots"] == STEPS * 12
    assert last["dibs/rollouts"] == STEPS * (12 + 32)
    lengths = [len(ids) for ids in trained[-1]["ids"]]
    assert last["completions/mean_length"] == pytest.approx(np.mean(lengths))


def test_pilots_in_two_processes_that_share_them_unevenly(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": {"mode": "pilot", "algorithm": "raft", "num_pilots": 1, "grad_norm": "exact"},
        "grpo": {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 6},
    }
    told = launched(settings, 2)
    assert told[0]["state"] == told[1]["state"]
    assert told[0]["log"][-1]["dibs/pilots"] == 2 * 6
    assert told[0]["log"][-1]["dibs/count_sum"] == 24


@pytest.mark.parametrize(
    "dibs",
    [
        {**ONLINE, "grad_norm": "exact", "grad_norm_parameters": "lora"},
        {"algorithm": "raft", "mode": "pilot", "allocator": "gvm"},
    ],
    ids=["online", "raft"],
)
def test_adapters(byte_model, tmp_path, dibs):
    told = run(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": dibs,
            "lora": True,
            "grpo": {"max_steps": STEPS},
        }
    )
    trained = [i for i, call in enumerate(told["calls"]) if len(call["prompts"]) == 32]
    step = 2 if "mode" in dibs else 1
    assert_counts(
        [told["calls"][i]["prompts"] for i in trained[step - 1 :: step]],
        told["counts"][step - 1 :: step],
    )


@pytest.mark.parametrize("algorithm", ["raft", "raft++"])
def test_only_raft_plus_plus_has_a_ratio(byte_model, tmp_path, algorithm):
    told = run(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": {**SKEWED, "algorithm": algorithm},
            # Steps so long that reruns of a batch leave the clip range.
            "grpo": {"num_iterations": 4, "max_steps": 4, "learning_rate": 0.05},
        }
    )
    clipped = [each["clip_ratio/region_mean"] for each in told["log"]]
    assert clipped[0] == 0
    assert (max(clipped) > 0) == (algorithm == "raft++")


def test_the_reference_is_weighed_like_the_rest(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": SKEWED,
        "grpo": {"beta": 0.5, "loss_type": "dr_grpo", "use_bias_correction_kl": False},
    }
    trainer, _ = build(settings)
    seen = []
    compute = trainer._compute_loss

    def noted(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        trainer.beta = 0.0
        without = compute(model, inputs)
        trainer.beta = 0.5
        loss = compute(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        length = inputs["completion_ids"].shape[1]
        logprobs = trainer._get_per_token_logps_and_entropies(model, ids, mask, length)[0]
        kl = kl_to_reference(logprobs, inputs["ref_per_token_logps"]) * inputs["completion_mask"]
        term = 0.5 * (inputs["dibs_weights"] * kl.sum(1)).sum() / (8 * 8) / 4
        seen.append((float(loss - without), float(term)))
        return loss

    trainer._compute_loss = noted
    trainer.train()
    found, expected = map(np.array, zip(*seen, strict=True))
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-8)


def test_groups_of_its_own_from_a_rollout_function(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": ONLINE,
        "grpo": {"max_steps": STEPS},
    }
    trainer, reward = build(settings)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        tokens = trainer.processing_class
        # Few letters for a few prompts, many for others.
        drawn = [tokens(p + "a" * (len(p) % 3))["input_ids"][:6] for p in prompts]
        contexts = tokens(prompts)["input_ids"]
        return {"prompt_ids": contexts, "completion_ids": drawn, "logprobs": None}

    trainer.rollout_func = rollout
    trainer.train()
    assert_counts([call["prompts"] for call in reward.calls], reward.counts)


def test_a_vllm_server_is_asked_for_groups_only_where_they_are_even(
    byte_model, tmp_path, monkeypatch
):
    asked = []
    single = GRPOTrainer._generate_single_turn

    def noted(
        self: Any, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int
    ) -> Any:
        asked.append((num_generations, self.model.training))
        return single(self, prompt_ids, images, multimodal_fields, num_generations)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", noted)
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    settings = {"model": str(byte_model), "folder": str(tmp_path), "grpo": options}
    run({**settings, "dibs": SKEWED})
    assert set(asked) == {(1, True), (8, False)}
    asked.clear()
    run({**settings, "dibs": UNIFORM})
    assert set(asked) == {(8, True), (8, False)}


def test_saved_state_is_strict_json(byte_model, tmp_path):
    run(
        {
            "model": str(byte_model),
            "folder": str(tmp_path),
            "dibs": ONLINE,
            "grpo": {"max_steps": 2, "save_strategy": "steps", "save_steps": 2},
        }
    )
    saved = Path(tmp_path / "checkpoint-2" / "dibs_state.json").read_text()
    assert json.loads(saved)["rollouts"] == 64
    assert "NaN" not in saved
