"""What cannot be right is refused in one line that says what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys

import pytest
from datasets import Dataset
from pydantic import ValidationError
from training import UNIFORM, Reward
from trl import GRPOConfig

from dibs.integrations.trl import DIBSConfig, DIBSGRPOTrainer
from dibs.integrations.trl.groups import dealt, prompt_id, split
from dibs.processes import Processes
from dibs.types import InputError

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
        DIBSConfig.model_construct(upper=4, _fields_set={"upper"}).for_trainer(arguments(tmp_path))


def test_equal_weights_allow_what_takes_completions_alike(tmp_path):
    for equal in (UNIFORM, {"estimator": "flat"}):
        DIBSConfig(**equal).for_trainer(arguments(tmp_path, loss_type="bnpo", entropy_coef=0.1))


def test_the_objective_follows_scale_rewards_unless_it_is_given(tmp_path):
    none = arguments(tmp_path, scale_rewards="none")
    assert DIBSConfig().for_trainer(none).objective == "expected_reward"
    assert DIBSConfig(objective="grpo").for_trainer(none).objective == "grpo"
    assert DIBSConfig(algorithm="raft").for_trainer(none).objective == "log_likelihood"
    assert DIBSConfig().for_trainer(arguments(tmp_path)).objective == "grpo"
    raft = DIBSConfig(algorithm="raft++")
    assert (raft.objective, raft.baseline, raft.estimator) == (
        "log_likelihood",
        "none",
        "self_normalised",
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
    ],
    ids=str,
)
def test_settings_that_are_wrong_by_themselves(dibs):
    with pytest.raises(ValidationError):
        DIBSConfig(**dibs)


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

    requirement = importlib.import_module("dibs.integrations.trl.requirement")
    monkeypatch.setattr(requirement, "version", version)
    with pytest.raises(ImportError, match=shown) as caught:
        importlib.reload(importlib.import_module("dibs.integrations.trl"))
    assert "pip install 'dibs-rl[trl]'" in str(caught.value)
    assert "1.16 or later, below 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_core_does_not_import_trl():
    code = "import sys, dibs.integrations.any; assert 'trl' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
