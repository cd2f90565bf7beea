"""What completions tell of their prompts, and what the log is told of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training import SKEWED, build

pytestmark = pytest.mark.trl
ONLINE = {"objective": "expected_reward", "baseline": "leave_one_out", "half_life": 5}


@pytest.mark.parametrize("unjudged", ["0+0=", "all"])
def test_a_prompt_whose_pilots_have_no_reward_does_not_end_the_run(byte_model, tmp_path, unjudged):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": {"algorithm": "raft++", "mode": "pilot", "allocator": "gvm", "num_pilots": 3},
        "grpo": {"max_steps": 2},
    }
    trainer, _ = build(settings)
    trainer.reward_funcs = [
        lambda prompts, **_: [None if unjudged in (p, "all") else 1.0 for p in prompts]
    ]
    trainer.train()
    assert trainer.rollouts == 2 * (12 + 32)


def test_truncated_completions_that_are_masked_tell_acceptance_only(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": ONLINE,
        "grpo": {"max_steps": 2, "mask_truncated_completions": True, "num_iterations": 2},
    }
    trainer, reward = build(settings)
    seen: list[dict[str, Any]] = []
    update = trainer.budget.update
    trainer.budget.update = lambda *args, **told: seen.append(told) or update(*args, **told)
    trainer.train()
    ends = {*trainer.eos_token_ids, trainer.processing_class.pad_token_id}
    finished = np.array([ids[-1] in ends for ids in reward.calls[0]["ids"]])
    assert 0 < finished.sum() < 32
    told = {name: np.concatenate(values) for name, values in seen[0].items()}
    assert ((told["grad_norms"] > 0) == finished).all()
    assert (told["lengths"] > 0).all()
    trials = [sums[1] for sums in trainer.budget.state()["history"]["prompts"].values()]
    counted = [sums[5] + sums[16] for sums in trainer.budget.state()["history"]["prompts"].values()]
    assert sum(trials) == 32
    assert sum(counted) == finished.sum()


def test_totals_and_means_over_prompts(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": SKEWED,
        "grpo": {"max_steps": 4, "logging_steps": 2},
    }
    trainer, _ = build(settings)
    trainer.reward_funcs = [lambda level, **_: [float(each) for each in level]]
    drawn = []
    note = trainer._log_batch
    trainer._log_batch = lambda rewards: drawn.append(rewards) or note(rewards)
    trainer.train()
    log = [each for each in trainer.state.log_history if "loss" in each]
    assert [each["dibs/rollouts"] for each in log] == [64, 128]
    assert log[0]["dibs/known_prompts"] == len(trainer.budget.history) - 2
    # A group's rewards are its prompt's level, and level 0 alone is below the threshold.
    levels = [[group[0] for group in batch if group] for batch in drawn[:2]]
    assert log[0]["dibs/reward"] == pytest.approx(np.mean([np.mean(each) for each in levels]))
    accepted = [np.mean(np.array(each) >= 1) for each in levels]
    assert log[0]["dibs/accept_rate"] == pytest.approx(np.mean(accepted))
    assert trainer._logprobs is None
