"""With allocator uniform, and with equal counts by any other name, the plug-in is stock TRL."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from launching import launched

from training import UNIFORM, build, run

pytestmark = pytest.mark.trl
EVEN = {"allocator": "training:even", "grad_norm": "none", "baseline": "mean"}
RERUN = {"num_iterations": 2, "steps_per_generation": 8}
"""A generation batch of 64 rows, each taken twice: 4 updates."""


def assert_same(stock: dict[str, Any], ours: dict[str, Any], steps: int = 3) -> None:
    assert [each["ids"] for each in stock["calls"]] == [each["ids"] for each in ours["calls"]]
    assert len(stock["log"]) == len(ours["log"]) == steps
    for theirs, own in zip(stock["log"], ours["log"], strict=True):
        for name in theirs.keys() - {"step_time"}:
            assert own[name] == pytest.approx(theirs[name], abs=1e-5, rel=1e-5), name
    assert any(each["loss"] != 0 for each in stock["log"])


@pytest.mark.parametrize("dibs", [UNIFORM, {**UNIFORM, "mode": "none"}, EVEN], ids=str)
@pytest.mark.parametrize(
    "grpo",
    [
        {},
        {"loss_type": "grpo", **RERUN},
        {"loss_type": "dapo", **RERUN, "beta": 0.1},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.1},
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False, **RERUN},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.1, **RERUN},
        {"loss_type": "cispo", "epsilon_high": 1.5, "beta": 0.1, **RERUN},
        {"loss_type": "sapo", "beta": 0.1, **RERUN},
        {"loss_type": "vespo", **RERUN},
        {"mask_truncated_completions": True, "max_completion_length": 64, "temperature": 0.05},
    ],
    ids=str,
)
def test_losses_are_those_of_the_stock_trainer(byte_model, tmp_path, grpo, dibs):
    settings = {"model": str(byte_model), "folder": str(tmp_path), "grpo": grpo}
    assert_same(run(settings), run({**settings, "dibs": dibs}))


def test_bnpo_is_stock_with_uniform(byte_model, tmp_path):
    settings = {"model": str(byte_model), "folder": str(tmp_path), "grpo": {"loss_type": "bnpo"}}
    assert_same(run(settings), run({**settings, "dibs": UNIFORM}))


@pytest.mark.parametrize("dibs", [UNIFORM, {"estimator": "flat", "mode": "none"}], ids=str)
@pytest.mark.parametrize(
    "grpo", [{"beta": 0.1}, {"loss_type": "dr_grpo"}, {"loss_type": "grpo", **RERUN}], ids=str
)
def test_losses_are_stock_where_completions_have_no_reward(byte_model, tmp_path, grpo, dibs):
    settings = {"model": str(byte_model), "folder": str(tmp_path), "unjudged": 3, "grpo": grpo}
    dibs = {"allocator": "uniform", **dibs}
    assert_same(run(settings), run({**settings, "dibs": dibs}))


def test_rows_are_their_completions_own(byte_model, tmp_path):
    """A reward function that writes into its prompts does not write into others'."""

    def talkative(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        for prompt, completion in zip(prompts, completions, strict=True):
            prompt.extend(completion)
        return [float(len(prompt)) for prompt in prompts]

    told = []
    for dibs in (None, UNIFORM):
        trainer, _ = build({"model": str(byte_model), "folder": str(tmp_path), "dibs": dibs})
        asked = [{"prompt": [{"role": "user", "content": str(i)}]} for i in range(8)]
        trainer.train_dataset = Dataset.from_list(asked)
        trainer.reward_funcs = [talkative]
        trainer.train()
        told.append([each["reward"] for each in trainer.state.log_history if "reward" in each])
    assert told == [[2.0] * 3] * 2


def test_adapters(byte_model, tmp_path):
    settings = {"model": str(byte_model), "folder": str(tmp_path), "lora": True}
    assert_same(run(settings), run({**settings, "dibs": UNIFORM}))


@pytest.mark.parametrize("grpo", [{}, RERUN | {"steps_per_generation": 4}], ids=str)
def test_two_processes(byte_model, tmp_path, grpo):
    settings = {"model": str(byte_model), "folder": str(tmp_path), "grpo": grpo}
    stock = launched(settings, 2)
    ours = launched({**settings, "dibs": UNIFORM}, 2)
    for theirs, own in zip(stock, ours, strict=True):
        assert [each["ids"] for each in theirs["calls"]] == [each["ids"] for each in own["calls"]]
    assert_same(stock[0], ours[0])


def test_evaluation_is_stock(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "grpo": {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 4},
    }
    stock, ours = run(settings), run({**settings, "dibs": UNIFORM})
    assert_same(stock, ours)
    assert len(stock["eval"]) == 3
    for theirs, own in zip(stock["eval"], ours["eval"], strict=True):
        for name in theirs.keys() - {"eval_runtime"}:
            if "per_second" not in name:
                assert own[name] == pytest.approx(theirs[name], abs=1e-5), name
