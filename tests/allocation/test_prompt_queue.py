"""Prompts handed out one at a time: how often each comes, what it weighs, and resumed queues."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dibs import BudgetConfig, PromptQueue
from dibs.types import InputError

RATES = np.array([0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0, 1.0] * 4)
WORDS: Any = ["good"]
NESTED: Any = [[1.0]]
NAMES = [f"p{i}" for i in range(len(RATES))]


def sampled(queue: PromptQueue, groups: int, seed: int = 0) -> dict[str, list[float]]:
    """Draw and observe so many groups; the weights of each prompt's groups."""
    rng = np.random.default_rng(seed)
    weights: dict[str, list[float]] = {name: [] for name in queue.names}
    for _ in range(groups):
        prompt_id, weight = queue.draw()
        weights[prompt_id].append(weight)
        rate = RATES[NAMES.index(prompt_id)]
        queue.observe(prompt_id, rng.binomial(1, rate, queue.group).tolist())
    return weights


def test_nothing_known_means_every_prompt_alike():
    queue = PromptQueue(NAMES, window=len(NAMES))
    drawn = [queue.draw() for _ in NAMES]
    assert sorted(each.prompt_id for each in drawn) == sorted(NAMES)
    assert {each.weight for each in drawn} == {1.0}


def test_prompts_that_teach_come_often_and_none_is_forgotten():
    queue = PromptQueue(NAMES, BudgetConfig(half_life=50), window=20)
    sampled(queue, 800)
    weights = sampled(queue, 1600, seed=1)
    times = np.array([len(weights[name]) for name in NAMES])
    middle, solved = (RATES > 0.2) & (RATES < 0.8), RATES == 1
    assert times[middle].mean() > 1.5 * times[solved].mean()
    assert times.min() > 0.25 * 1600 / len(NAMES) * 0.6  # a quarter of an even share, at random


def test_weights_undo_the_choice():
    """Summed over a long time, the groups of every prompt weigh as much as those of any other."""
    queue = PromptQueue(NAMES, BudgetConfig(half_life=50), window=20)
    sampled(queue, 400)
    groups = 12000
    weights = sampled(queue, groups, seed=1)
    sums = np.array([sum(weights[name]) for name in NAMES]) / groups * len(NAMES)
    # Systematic sampling varies less than independent draws, whose deviation this is.
    deviation = np.sqrt([np.sum(np.square(weights[name])) for name in NAMES]) / groups * len(NAMES)
    assert (np.abs(sums - 1) < 4 * deviation).all()
    assert sums.mean() == pytest.approx(1, abs=0.01)


def test_a_resumed_queue_goes_on_as_if_nothing_had_happened():
    whole, first = (PromptQueue(NAMES, window=16, seed=3) for _ in range(2))
    sampled(whole, 50)
    sampled(first, 50)
    second = PromptQueue(NAMES, window=16, seed=3)
    second.load_state(json.loads(json.dumps(first.state())))
    assert sampled(second, 100, seed=1) == sampled(whole, 100, seed=1)
    assert second.metrics() == pytest.approx(whole.metrics())


def test_groups_may_be_lost_or_late():
    queue = PromptQueue(NAMES, window=8)
    drawn = [queue.draw().prompt_id for _ in range(40)]  # five windows before anything is observed
    for name in drawn[7:23]:
        queue.observe(name, [1.0, 0.0, 1.0])
    queue.observe(drawn[0], [])
    assert queue.metrics()["drawn"] == 40
    assert queue.metrics()["accept_rate"] == pytest.approx(2 / 3)
    assert queue.draw().prompt_id in NAMES


def test_windows_before_any_observation_differ():
    queue = PromptQueue(NAMES, window=4)
    windows = {tuple(queue.draw().prompt_id for _ in range(4)) for _ in range(5)}
    assert len(windows) == 5


def test_one_prompt():
    queue = PromptQueue(["only"], window=3)
    assert [queue.draw() for _ in range(4)] == [("only", 1.0)] * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PromptQueue([]), "no prompts to draw from"),
        (lambda: PromptQueue(["a", "b", "a"]), "prompt 'a' occurs twice"),
        (lambda: PromptQueue(["a"], window=0), "window 0 is below 1"),
        (lambda: PromptQueue(["a"], BudgetConfig(mode="pilot")), "take mode online"),
        (lambda: PromptQueue(["a"], group=1), "group 1 is below 2"),
        (lambda: PromptQueue(["a"], uniform_share=7), "uniform_share 7 is not above 0"),
        (lambda: PromptQueue(["a"], BudgetConfig(estimator="flat")), "estimator flat"),
        (lambda: PromptQueue(["a"], BudgetConfig(keep="pods", keep_count=4)), "keep pods"),
        (
            lambda: PromptQueue(
                ["a"], BudgetConfig(rounds="dapo", allocator="uniform", mode="none")
            ),
            "rounds dapo chooses as it draws",
        ),
        (lambda: PromptQueue(["a"]).observe("b", [1.0]), "'b' is not among the 1 of the queue"),
        (lambda: PromptQueue(["a"]).observe("a", [float("nan")]), "prompt 'a': a reward is nan"),
        (lambda: PromptQueue(["a"]).observe("a", WORDS), "prompt 'a': a reward is no number"),
        (lambda: PromptQueue(["a"]).observe("a", NESTED), "rewards have shape"),
    ],
)
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_advantages_of_the_trainer_are_refused():
    given = BudgetConfig(objective="expected_reward", baseline="none", advantages="given")
    with pytest.raises(InputError, match=r"advantages given: .* which a queue does not get"):
        PromptQueue(NAMES, given)


def test_a_state_that_is_none_changes_nothing():
    queue = PromptQueue(NAMES, window=8)
    sampled(queue, 20)
    before = queue.state()
    history = {**before["budget"]["history"], "prompts": []}
    for damage in ({"budget": {**before["budget"], "history": history}}, {"ahead": [["p0"]]}):
        with pytest.raises(InputError, match="no state of a queue of prompts"):
            queue.load_state({**before, "drawn": 999, **damage})
        assert queue.state() == before
