"""``PromptBudget`` with rules that draw in rounds, and with rules for which completions are kept."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from dibs import BudgetConfig, PromptBudget
from dibs.types import InputError


def budget(**options) -> PromptBudget:
    return PromptBudget(
        BudgetConfig(**{"mode": "none", "allocator": "uniform", "num_generations": 4, **options})
    )


def draw_all(own: PromptBudget, texts: list[str], **how) -> list[list[float]]:
    """A step's rewards, drawn from texts: ``+`` is 1, ``-`` is 0."""
    rewards: list[list[float]] = [[] for _ in texts]
    counts = own.allocate([f"p{i}" for i in range(len(texts))], **how)
    while counts.any():
        for group, text, count in zip(rewards, texts, counts, strict=True):
            group += [float(kind == "+") for kind in text[len(group) : len(group) + count]]
        counts = own.more(rewards)
    return rewards


def test_half_a_group_at_a_time_until_one_is_accepted():
    own = budget(rounds="ar3po")
    assert own.allocate(["a", "b"]).tolist() == [2, 2]
    assert own.more([[0, 0], [0, 1]]).tolist() == [2, 0]
    assert own.more([[0, 0, 1, 0], [0, 1]]).tolist() == [0, 0]
    advantages, weights = own.weights([[0, 0, 1, 0], [0, 1]])
    # Means 1/4 and 1/2, deviations sqrt(3)/4 and 1/2; each prompt weighs one half.
    assert advantages[0] == pytest.approx(np.array([-1, -1, 3, -1]) / np.sqrt(3))
    assert advantages[1].tolist() == [-1, 1]
    assert weights[0].tolist() == [1 / 8] * 4
    assert weights[1].tolist() == [1 / 4] * 2
    metrics = own.metrics()
    assert (metrics["count_sum"], metrics["rounds"], metrics["trained_prompts"]) == (6, 2, 2)


def test_what_a_rule_leaves_out_has_weight_zero_but_counts_for_the_baseline():
    own = budget(rounds="reinforce_ada_pos")
    rewards = draw_all(own, ["----++--"])
    advantages, weights = own.weights(rewards)
    # Kept: two rejected and two accepted of eight, with the mean 1/4 of all.
    assert weights[0].tolist() == [1 / 4, 1 / 4, 0, 0, 1 / 4, 1 / 4, 0, 0]
    deviation = np.sqrt(3) / 4
    assert advantages[0] == pytest.approx(
        np.array([-0.25, -0.25, 0, 0, 0.75, 0.75, 0, 0]) / deviation
    )


def test_candidates_fill_up_until_enough_prompts_have_a_gradient():
    own = budget(rounds="dapo")
    rewards = draw_all(own, ["++++", "+---", "----", "-++-", "+-+-"], wanted=2)
    assert [len(group) for group in rewards] == [4, 4, 4, 4, 0]
    _, weights = own.weights(rewards)
    assert [each.sum() for each in weights] == [0, 0.5, 0, 0.5, 0]
    assert own.metrics()["trained_prompts"] == 2


def test_a_step_without_any_gradient_has_no_weights():
    own = budget(rounds="dapo", max_rounds=2)
    rewards = draw_all(own, ["++++", "----"])
    _, weights = own.weights(rewards)
    assert not np.concatenate(weights).any()


def test_pods_in_a_step_that_is_drawn_at_once():
    own = budget(keep="pods", keep_count=2)
    assert own.allocate(["a", "b"]).tolist() == [4, 4]
    advantages, weights = own.weights([[1, 0, 0, 0], [1]])
    # One of each kind: mean 1/2, deviation 1/2. A single completion is kept, with advantage 0.
    assert advantages[0][:2].tolist() == [1, -1]
    assert weights[0].tolist() == [1 / 4, 1 / 4, 0, 0]
    assert (advantages[1].tolist(), weights[1].tolist()) == ([0], [1 / 2])


def test_earlier_steps_take_in_everything_that_was_drawn():
    own = budget(mode="online", rounds="ar3po")
    rewards = draw_all(own, ["---+", "+-"])
    own.weights(rewards)
    own.update(["p0", "p1"], rewards)
    assert own.history.sums(["p0"], 0)[0, :2].tolist() == [4, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": "dpao"}, "unknown rule for rounds 'dpao'"),
        ({"keep": "best", "keep_count": 2}, "unknown keeper 'best'"),
        ({"keep": "pods"}, "keep pods needs keep_count, below num_generations 4"),
        ({"keep_count": 2}, "keep_count 2 needs keep"),
        ({"keep": "pods", "keep_count": 1}, "keep_count 1 is below 2"),
        ({"keep": "pods", "keep_count": 4}, "keep_count 4 leaves nothing out of num_generations 4"),
        ({"rounds": "ar3po", "keep_count": 2}, "ar3po keeps all completions"),
        ({"rounds": "dapo", "allocator": "vip", "mode": "online"}, "set allocator to uniform"),
        ({"rounds": "dapo", "mode": "pilot"}, "pilots of mode pilot have no use"),
        *(
            ({"rounds": name, "num_generations": 1}, f"{name} trains on no group of 1; raise num")
            for name in ("dapo", "pilot_commit", "speed")
        ),
        ({"rounds": "dapo", "lower": 1}, "knows no lower and upper"),
        ({"rounds": "dapo", "estimator": "flat"}, "choose another estimator"),
    ],
)
def test_settings_that_contradict_each_other(options, message):
    with pytest.raises(ValidationError, match=message):
        budget(**options)


def test_a_rule_that_looks_at_earlier_steps_needs_them():
    with pytest.raises(
        ValidationError, match="greso needs the history of earlier steps; set mode to o"
    ):
        budget(allocator="greso", mode="pilot")


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({}, lambda own: own.more([[]]), "set rounds, and call allocate first"),
        ({"rounds": "dapo"}, lambda own: own.more([[]]), "call allocate first"),
        ({"rounds": "dapo"}, lambda own: own.allocate(["a"], 8), "leave the budget of 8 out"),
        ({"rounds": "dapo"}, lambda own: own.choose(["a"], 8), "give the candidates to allocate"),
    ],
)
def test_calls_that_have_no_answer(options, call, message):
    with pytest.raises(InputError, match=message):
        call(budget(**options))
