"""The task sampler for prime-rl: both forms of its interface, with stand-ins and with real episodes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dibs.integrations.prime_rl import PosteriorSampler
from dibs.types import InputError

RATES = [0.0, 0.1, 0.5, 0.9, 1.0, 1.0, 1.0, 1.0]
TASKS = [SimpleNamespace(key=f"task-{i}", number=i) for i in range(len(RATES))]


def trace(reward: float, *, trainable: bool = True, failed: bool = False) -> Any:
    agent = SimpleNamespace(trainable=trainable)
    return SimpleNamespace(reward=reward, has_error=failed, agent=agent)


def episodes(task: Any, rewards: list[float]) -> list[Any]:
    return [SimpleNamespace(task=task, ok=True, traces=[trace(reward)]) for reward in rewards]


def trained(sampler: PosteriorSampler, groups: int, seed: int = 0) -> list[int]:
    """How often each task was sampled."""
    rng = np.random.default_rng(seed)
    times = [0] * len(TASKS)
    for _ in range(groups):
        task = next(sampler)
        times[task.number] += 1
        sampler.observe(episodes(task, rng.binomial(1, RATES[task.number], 8).tolist()))
    return times


def test_tasks_that_teach_are_sampled_more_often():
    sampler = PosteriorSampler(TASKS, window=8)
    trained(sampler, 80)
    times = trained(sampler, 400, seed=1)
    assert min(times[1:4]) > 1.3 * max(times[0], *times[4:])
    assert min(times) > 0
    assert sampler.metrics()["known_prompts"] == len(TASKS)


def test_results_of_the_earlier_interface_say_the_same():
    now, before = (PosteriorSampler(TASKS, window=4) for _ in range(2))
    for i in range(20):
        task, same = next(now), before.sample()
        assert task is same
        rewards = [float(i % 2), 1.0, 0.0]
        now.observe(episodes(task, rewards))
        before.observe(
            SimpleNamespace(task_key=task.key, rollouts=[trace(reward) for reward in rewards])
        )
    assert now.state_dict() == before.state_dict()


def test_what_failed_or_is_not_trained_on_says_nothing():
    sampler = PosteriorSampler(TASKS, window=1)
    group = episodes(TASKS[2], [1.0, 0.0])
    group[0].traces += [trace(0.0, trainable=False), trace(0.0, failed=True)]
    group.append(SimpleNamespace(task=TASKS[2], ok=False, traces=[trace(0.0)]))
    sampler.observe(group)
    assert sampler.queue.budget.history.sums(["task-2"], 0)[0, :2].tolist() == [2, 1]
    sampler.observe([SimpleNamespace(task=TASKS[3], ok=False, traces=[])])
    sampler.observe([])
    assert sampler.metrics()["known_prompts"] == 1


def test_a_checkpoint_is_json_and_goes_on():
    whole, first = (PosteriorSampler(TASKS, window=8) for _ in range(2))
    trained(whole, 30)
    trained(first, 30)
    second = PosteriorSampler(TASKS, window=8)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert trained(second, 60, seed=1) == trained(whole, 60, seed=1)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (iter(TASKS), "the task set has no end"),
        ([SimpleNamespace(key=None)], "a task has no key"),
        ([TASKS[0], TASKS[0]], "'task-0' occurs twice"),
    ],
)
def test_task_sets_that_cannot_be_sampled(tasks, message):
    with pytest.raises(InputError, match=message):
        PosteriorSampler(tasks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 0}, "PosteriorSampler.group: must be at least 1 (got 0)"),
        ({"half_life": -1}, "PosteriorSampler.half_life: must be above 0.0 (got -1)"),
        ({"allocator": "nope"}, "PosteriorSampler: unknown allocator 'nope'; known: "),
    ],
)
def test_options_without_a_meaning_are_one_line(options, message):
    with pytest.raises(InputError) as refused:
        PosteriorSampler(TASKS, **options)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_episodes_of_the_real_package():
    """prime-rl hands over ``verifiers.v1.Episode``s."""
    vf = pytest.importorskip("verifiers.v1", reason="verifiers is not installed")
    task = vf.Task(vf.TaskData(idx=0, prompt="2 + 2"))
    recorded = vf.TraceTask(type="Task", data=task.data, key=task.key, hash=task.hash)
    sampler = PosteriorSampler([task], window=1)
    assert next(sampler) is task
    made = []
    for reward in (1.0, 0.0, 1.0):
        one = vf.Trace(task=recorded, agent=vf.AgentInfo(config=vf.AgentConfig()), ok=True)
        one.rewards["right"] = vf.Reward(score=reward)
        made.append(vf.Episode(task=recorded, ok=True, traces=[one]))
    sampler.observe(made)
    assert sampler.queue.budget.history.sums([task.key], 0)[0, :2].tolist() == [3, 2]
