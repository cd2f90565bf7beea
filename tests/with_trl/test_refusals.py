"""What cannot be right is refused in one line that says what to do."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM
from trl import GRPOConfig, GRPOTrainer

from dibs.integrations.trl import DIBSConfig, DIBSGRPOTrainer
from dibs.integrations.trl.groups import dealt, prompt_id, split
from dibs.processes import Processes
from dibs.types import InputError
from odd_models import byte_tokenizer, save_model
from training import UNIFORM, Reward, build

pytestmark = pytest.mark.trl


def arguments(folder, **options) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        num_generations=8,
        per_device_train_batch_size=32,
        max_steps=1,
        max_completion_length=4,
        **options,
    )


def test_advantages_are_trls():
    own: Any = {"objective": "expected_reward", "baseline": "none", "advantages": "given"}
    with pytest.raises(ValidationError, match="advantages given: they are those of objective and"):
        DIBSConfig(**own)


@pytest.mark.parametrize(
    ("options", "dibs", "message"),
    [
        ({"scale_rewards": "batch"}, UNIFORM, "scale_rewards batch"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            UNIFORM,
            "normalize_then_sum",
        ),
        ({"loss_type": "bnpo"}, {}, "bnpo .*set dapo, grpo or dr_grpo"),
        ({"entropy_coef": 0.1}, {}, "entropy_coef 0.1"),
        ({"top_entropy_quantile": 0.2}, {}, "top_entropy_quantile 0.2"),
        ({}, {"num_generations": 4}, "num_generations is 4 and GRPOConfig's is 8"),
        ({}, {"lower": 9, "num_generations": 9}, "num_generations is 9"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(tmp_path, options, dibs, message):
    with pytest.raises(InputError, match=message) as caught:
        DIBSConfig(**dibs).for_trainer(arguments(tmp_path, **options))
    assert "\n" not in str(caught.value)


def test_bounds_are_checked_against_trls_group_size(tmp_path):
    with pytest.raises(InputError, match="num_generations 8 is not between lower 0 and upper 4"):
        DIBSConfig(upper=4).for_trainer(arguments(tmp_path))
    with pytest.raises(InputError, match="num_generations 8 is not between lower 9") as caught:
        DIBSConfig(lower=9).for_trainer(arguments(tmp_path))
    assert "\n" not in str(caught.value)
    four = arguments(tmp_path)
    four.num_generations = 4
    assert DIBSConfig(lower=4, upper=6).for_trainer(four).num_generations == 4


def test_equal_weights_allow_what_takes_completions_alike(tmp_path):
    for equal in (UNIFORM, {"estimator": "flat"}):
        DIBSConfig(**equal).for_trainer(arguments(tmp_path, loss_type="bnpo", entropy_coef=0.1))


def test_the_objective_follows_scale_rewards_unless_it_is_given(tmp_path):
    none = arguments(tmp_path, scale_rewards="none")
    assert DIBSConfig().for_trainer(none).objective == "expected_reward"
    assert DIBSConfig(objective="grpo").for_trainer(none).objective == "grpo"
    assert DIBSConfig(algorithm="raft").for_trainer(none).objective == "log_likelihood"


def test_a_mean_is_no_baseline_of_ragged_counts_unless_it_is_given(tmp_path):
    none = arguments(tmp_path, scale_rewards="none")
    assert DIBSConfig().for_trainer(none).baseline == "leave_one_out"
    assert DIBSConfig(baseline="mean").for_trainer(none).baseline == "mean"
    assert DIBSConfig(**UNIFORM).for_trainer(none).baseline == "mean"
    assert DIBSConfig().for_trainer(arguments(tmp_path)).baseline == "mean"


def test_norms_are_measured_where_they_decide_something():
    assert DIBSConfig().measures_norms
    assert not DIBSConfig(**UNIFORM).measures_norms
    assert not DIBSConfig(**UNIFORM, mode="none").measures_norms


def named(byte_model, folder, rows: list[dict[str, Any]], **dibs: Any) -> DIBSGRPOTrainer:
    return DIBSGRPOTrainer(
        model=str(byte_model),
        reward_funcs=Reward({}),
        args=arguments(folder),
        train_dataset=Dataset.from_list(rows),
        dibs=DIBSConfig(**UNIFORM, **dibs),
    )


def test_a_name_that_trl_no_longer_has_is_told(byte_model, tmp_path, monkeypatch):
    rows = [{"prompt": "a", "level": 1}] * 8
    with monkeypatch.context() as patch:
        patch.delattr(GRPOTrainer, "_calculate_rewards")
        with pytest.raises(
            InputError, match=r"TRL 1\..* has no _calculate_rewards\(inputs"
        ) as caught:
            named(byte_model, tmp_path, rows)
        assert "\n" not in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "_compute_loss", lambda self, inputs, model: None)
        with pytest.raises(InputError, match=r"no _compute_loss\(model, inputs, "):
            named(byte_model, tmp_path, rows)


@pytest.mark.parametrize("hook", ["_generate_and_score_completions", "_calculate_rewards"])
def test_a_hook_that_trl_no_longer_calls_is_told(byte_model, tmp_path, monkeypatch, hook):
    trainer = named(byte_model, tmp_path, [{"prompt": "a", "level": 1}] * 8)
    passed = functools.partial(getattr(GRPOTrainer, hook), trainer)
    monkeypatch.setattr(trainer, hook, passed)
    if hook == "_calculate_rewards":
        trainer._rewards = torch.zeros(32, 1)
    with pytest.raises(InputError, match=f"without {hook}, on which"):
        trainer.train()


def test_one_name_for_two_prompts_is_refused(byte_model, tmp_path):
    rows = [{"prompt": str(i), "level": 1, "source": "book"} for i in range(8)]
    with pytest.raises(InputError, match=r"prompt_id_column source: two prompts .*'book'"):
        named(byte_model, tmp_path, rows, prompt_id_column="source").train()


def test_a_router_loss_takes_completions_alike(byte_model, tmp_path):
    experts = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
        )
    )
    given = {
        "model": experts,
        "processing_class": AutoTokenizer.from_pretrained(byte_model),
        "reward_funcs": Reward({}),
        "train_dataset": Dataset.from_list([{"prompt": "a", "level": 1}] * 8),
    }
    with pytest.raises(InputError, match=r"router_aux_loss_coef to 0\.0") as caught:
        DIBSGRPOTrainer(**given, args=arguments(tmp_path), dibs=DIBSConfig())
    assert "\n" not in str(caught.value)
    DIBSGRPOTrainer(**given, args=arguments(tmp_path), dibs=DIBSConfig(**UNIFORM))
    off = arguments(tmp_path, router_aux_loss_coef=0.0)
    DIBSGRPOTrainer(**given, args=off, dibs=DIBSConfig())
    assert DIBSConfig().for_trainer(arguments(tmp_path)).objective == "grpo"
    raft = DIBSConfig(algorithm="raft++")
    assert (raft.objective, raft.baseline, raft.estimator) == (
        "log_likelihood",
        "none",
        "self_normalized",
    )
    assert DIBSConfig(algorithm="raft", objective="grpo").baseline == "mean"


@pytest.mark.parametrize(
    "dibs",
    [
        {"allocator": "gvm"},
        {"mode": "none"},
        {"grad_norm_sketch": 8, "grad_norm": "exact"},
        {"grad_norm_parameters": "lora"},
        {"num_pilot": 3},
        {"num_pilots": 3},
    ],
    ids=str,
)
def test_settings_that_are_wrong_by_themselves(dibs):
    with pytest.raises(ValidationError):
        DIBSConfig(**dibs)


def spoiled(model: Any) -> None:
    model.model.norm.weight[3] = float("nan")


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        ({"eos": None}, {}, "the tokenizer has no end-of-sequence token"),
        ({}, {"vocab_size": 256}, "has tokens up to number 261, but its embeddings have 256 rows"),
        (
            {},
            {"change": spoiled, "vocab_size": 300},
            "1 of the 32 entries of model.norm.weight are NaN or",
        ),
    ],
    ids=["end", "sizes", "weights"],
)
def test_models_that_cannot_be_a_policy(tmp_path, tokenizer, options, message):
    folder = save_model(tmp_path / "model", byte_tokenizer(**tokenizer), **options)
    settings = {"model": str(folder), "folder": str(tmp_path / "run"), "dibs": UNIFORM}
    with pytest.raises(InputError, match=message) as caught:
        build(settings)
    assert "\n" not in str(caught.value)


def test_images_are_refused(byte_model, tmp_path):
    reward = Reward({})
    images = Dataset.from_list([{"prompt": "a", "level": 1, "image": "x.png"}] * 8)
    trainer = DIBSGRPOTrainer(
        model=str(byte_model),
        reward_funcs=reward,
        args=arguments(tmp_path),
        train_dataset=images,
        dibs=DIBSConfig(**UNIFORM),
    )
    with pytest.raises(InputError, match="images"):
        trainer.train()


def test_prompts_are_named_by_all_of_their_row():
    row = {"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}
    assert prompt_id(row, None) == prompt_id(dict(reversed(row.items())), None)
    assert prompt_id(row, None) != prompt_id({**row, "answer": "3"}, None)
    assert prompt_id(row, "answer") == "2"
    with pytest.raises(InputError, match="no 'id'; its columns are prompt, answer"):
        prompt_id(row, "id")
    with pytest.raises(InputError, match="prompt_id_column"):
        prompt_id({"prompt": object()}, None)


def test_rows_are_dealt_in_slices_of_one_length():
    shares = [dealt([1, 2, 3, 4, 5], Processes(rank, 2)) for rank in (0, 1)]
    assert shares == [[1, 2, 3], [4, 5, 5]]
    assert [dealt([1], Processes(rank, 3)) for rank in range(3)] == [[1], [1], [1]]
    import numpy as np

    kept = np.array([True, False, True, True])
    assert split(np.arange(4.0), [1, 0, 3], kept) == [[0.0], [], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("found", "shown"), [("1.15.0", "found 1.15.0"), ("2.0.0", "found 2.0.0"), (None, "found none")]
)
def test_another_version_is_refused_in_one_line(monkeypatch, found, shown):
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    requirement = importlib.import_module("dibs.integrations.requirement")
    monkeypatch.setattr(requirement, "version", version)
    with pytest.raises(ImportError, match=shown) as caught:
        importlib.reload(importlib.import_module("dibs.integrations.trl"))
    assert "pip install 'dibs-rl[trl]'" in str(caught.value)
    assert "1.16 or later, below 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_core_does_not_import_trl():
    code = "import sys, dibs; dibs.PromptBudget; assert 'trl' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
