"""Prompts and counts chosen together: which rows are drawn, what they weigh, and a resumed run."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from datasets import Dataset
from launching import launched
from pydantic import ValidationError
from slow_gradient import slow_gradient

from dibs.integrations.trl import DIBSConfig
from dibs.types import InputError
from training import PROMPTS, UNIFORM, build, rows, run

pytestmark = pytest.mark.trl
ALL = {
    "objective": "expected_reward",
    "baseline": "leave_one_out",
    "half_life": 50,
    "grad_norm": "none",
    "pool": "all",
}
KNOWN = [0, 1, 20, 40, 40, 25, 0, 40]
STEPS = 5


def settings_of(model, folder, dibs, **more):
    grpo = {"max_steps": STEPS, **more.pop("grpo", {})}
    return {"model": str(model), "folder": str(folder), "dibs": dibs, "grpo": grpo, **more}


def test_prompts_that_can_be_learned_from_are_chosen(byte_model, tmp_path):
    told = run(settings_of(byte_model, tmp_path, ALL, known=KNOWN))
    place = {row["prompt"]: i for i, row in enumerate(rows())}
    chosen = [0] * PROMPTS
    for call, counts in zip(told["calls"], told["counts"], strict=True):
        assert len(call["prompts"]) == sum(counts) == 32
        groups = [(prompt, len(list(each))) for prompt, each in groupby(call["prompts"])]
        assert [count for _, count in groups] == counts  # requested is received
        assert all(count % 2 == 0 for count in counts)  # pairs, as the baseline needs
        for prompt, count in groups:
            chosen[place[prompt]] += count
    assert chosen[2] + chosen[5] > 1.1 * sum(chosen) / 4
    last = told["log"][-1]
    assert last["dibs/pool_size"] == PROMPTS
    assert last["dibs/expected_gain"] > 1
    assert last["dibs/largest_weight"] <= 4 + 1e-9
    assert last["dibs/rollouts"] == told["rollouts"] == STEPS * 32


@pytest.mark.parametrize(
    "dibs",
    [
        ALL,
        {**ALL, "baseline": "history"},
        {**ALL, "pool": 6, "group": 4, "uniform_share": 0.5},
        {**ALL, "objective": "grpo", "baseline": "mean"},
        {**ALL, "algorithm": "raft++", "objective": "log_likelihood", "baseline": "none"},
    ],
    ids=str,
)
def test_the_gradient_is_what_the_choice_says(byte_model, tmp_path, dibs):
    more = {"max_steps": 1, "loss_type": "dr_grpo", "max_grad_norm": 1e9}
    settings = settings_of(byte_model, tmp_path, dibs, known=KNOWN, grpo=more)
    found, expected = slow_gradient(settings, lambda ids, weights: [8.0] * len(ids))
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * largest, rtol=1e-4)


def test_pilots_of_a_pool_decide(byte_model, tmp_path):
    dibs = {**ALL, "mode": "pilot", "num_pilots": 4, "pool": 6}
    told = run(settings_of(byte_model, tmp_path, dibs, grpo={"max_steps": 2}))
    assert told["rollouts"] == 2 * (32 + 6 * 4)
    assert [len(call["prompts"]) for call in told["calls"]] == [24, 32, 24, 32]
    for pilots, trained in zip(told["calls"][::2], told["calls"][1::2], strict=True):
        assert len(set(pilots["prompts"])) == 6
        assert set(trained["prompts"]) <= set(pilots["prompts"])


def test_a_killed_run_of_two_processes_chooses_the_same_again(byte_model, tmp_path):
    save = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    dibs = {**ALL, "pool": 6}

    def settings(name, **more):
        return settings_of(byte_model, tmp_path / name, dibs, known=KNOWN, grpo=save, **more)

    whole = launched(settings("whole"), 2)
    assert whole[0]["counts"] == whole[1]["counts"]
    assert launched(settings("killed", kill_at=5), 2) == []
    checkpoint = str(tmp_path / "killed" / "checkpoint-3")
    resumed = launched(settings("killed", resume=checkpoint), 2)
    for before, after in zip(whole, resumed, strict=True):
        assert after["counts"] == before["counts"][3:]
        assert after["calls"] == before["calls"][3:]
        assert after["state"] == before["state"]


@pytest.mark.parametrize(
    ("dibs", "said"),
    [
        ({"group": 2}, "group is given without a pool"),
        ({"uniform_share": 0.5}, "uniform_share is given without a pool"),
        ({**ALL, "uniform_share": 0}, "uniform_share"),
        ({**ALL, "group": 1}, "group 1 is below 2: baseline leave_one_out is that of a group"),
        ({**ALL, "lower": 1}, "lower and upper are for a fixed batch"),
        ({**ALL, "allocator": "knapsack"}, "allocator knapsack decides counts"),
        ({**ALL, "mode": "pilot"}, "pool all would draw pilots of every training prompt"),
        ({**ALL, "pool": 0}, "pool"),
    ],
)
def test_pools_that_cannot_be(dibs, said):
    with pytest.raises(ValidationError, match=said):
        DIBSConfig(**dibs)


@pytest.mark.parametrize(
    ("dibs", "said"),
    [
        ({**ALL, "pool": 9}, "pool 9 is larger than the training set of 8 prompts"),
        ({**ALL, "group": 3}, "the 32 completions of a step are not a multiple of group 3"),
        (
            {**ALL, "prompt_id_column": "level"},
            "two prompts have the value '0'",
        ),
    ],
)
def test_pools_that_the_data_do_not_allow(byte_model, tmp_path, dibs, said, monkeypatch):
    same = Dataset.from_list([{"prompt": "1+1=", "level": 0}, {"prompt": "1+2=", "level": 0}])
    if "prompt_id_column" in dibs:
        monkeypatch.setattr("training.rows", lambda *_: same)
    with pytest.raises(InputError, match=said) as refused:
        build(settings_of(byte_model, tmp_path, dibs))
    assert "\n" not in str(refused.value)


def test_streams_have_no_pool(byte_model, tmp_path, monkeypatch):
    monkeypatch.setattr("training.rows", lambda *_: rows().to_iterable_dataset())
    with pytest.raises(InputError, match="train_dataset, which has no length"):
        build(settings_of(byte_model, tmp_path, ALL))


def test_uniform_counts_over_a_pool_weigh_alike(byte_model, tmp_path):
    dibs = {**ALL, **UNIFORM}
    told = run(settings_of(byte_model, tmp_path, dibs, known=KNOWN))
    assert told["counts"] == [[4] * PROMPTS] * STEPS
