"""The filter and the data source for slime, against stand-ins written after its sources."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dibs.integrations.slime import (
    PROMPT,
    WEIGHT,
    PosteriorPrompts,
    keep_all,
    keep_spread,
    weighted_rewards,
)
from dibs.types import InputError

RATES = [0.0, 0.1, 0.5, 0.9, 1.0, 1.0, 1.0, 1.0]


class Status(Enum):
    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass
class Sample:
    """What slime's Sample has of use here."""

    prompt: str = ""
    label: str | None = None
    group_index: int | None = None
    index: int | None = None
    reward: Any = None
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)

    def get_reward_value(self, args: Any) -> float:
        return self.reward if not args.reward_key else self.reward[args.reward_key]


class RolloutDataSourceWithBuffer:
    """The methods that slime's own class of this name has, on a list of prompts."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.sample_index = self.sample_group_index = 0
        self.buffer: list[list[Sample]] = []
        self.saved: list[int] = []
        self.dataset = None
        if args.rollout_global_dataset:
            rows = [Sample(prompt=f"{i}", label="7") for i in range(len(RATES))]
            self.dataset = SimpleNamespace(samples=rows[::-1] if args.reverse else rows)

    def _get_samples_from_buffer(self, num_samples: int) -> list[list[Sample]]:
        taken, self.buffer = self.buffer[:num_samples], self.buffer[num_samples:]
        return taken

    def save(self, rollout_id: int) -> None:
        self.saved.append(rollout_id)

    def load(self, rollout_id: int | None = None) -> None:
        pass


class DataSource(PosteriorPrompts, RolloutDataSourceWithBuffer):
    options = {"window": 8, "half_life": 20.0}  # noqa: RUF012


def arguments(**more: Any) -> Any:
    values = {
        "n_samples_per_prompt": 4,
        "rollout_global_dataset": True,
        "reward_key": None,
        "save": None,
        "load": None,
        "reverse": False,
        "advantage_estimator": "grpo",
        "rewards_normalization": True,
        "grpo_std_normalization": True,
    }
    return SimpleNamespace(**{**values, **more})


def judged(group: list[Sample], rng: np.random.Generator) -> list[Sample]:
    for sample in group:
        sample.reward = float(rng.random() < RATES[int(sample.prompt)])
        sample.status = Status.COMPLETED
    return group


def trained(source: Any, groups: int, seed: int = 0) -> list[int]:
    """How often each prompt came."""
    rng = np.random.default_rng(seed)
    times = [0] * len(RATES)
    for _ in range(groups):
        (group,) = source.get_samples(1)
        times[int(group[0].prompt)] += 1
        kept = keep_spread(source.args, judged(group, rng))
        assert kept == (len({sample.reward for sample in group}) > 1)
    return times


def test_prompts_that_teach_come_more_often():
    source = DataSource(arguments())
    trained(source, 80)
    times = trained(source, 400, seed=1)
    assert min(times[1:4]) > 1.3 * max(times[0], *times[4:])
    assert min(times) > 0
    assert source.queue.metrics()["known_prompts"] == len(RATES)


def test_groups_are_as_slime_makes_them():
    source = DataSource(arguments())
    back = [Sample(prompt="back")] * 4
    source.buffer = [back]
    first, second, third = source.get_samples(3)
    assert first is back
    assert [sample.index for sample in second + third] == list(range(8))
    assert [sample.group_index for sample in second + third] == [0] * 4 + [1] * 4
    assert len({sample.metadata[PROMPT] for sample in second}) == 1
    assert second[0] is not second[1]


def test_a_checkpoint_goes_on_whatever_order_the_rows_have(tmp_path):
    places = {"save": str(tmp_path), "load": str(tmp_path)}
    whole = DataSource(arguments(**places))
    trained(whole, 30)
    whole.save(5)
    assert whole.saved == [5]
    expected = trained(whole, 60, seed=1)
    again = DataSource(arguments(**places, reverse=True))
    again.load(4)  # none of this name
    again.load(5)
    assert trained(again, 60, seed=1) == expected
    (tmp_path / "rollout/dibs_6.json").write_text("{")
    with pytest.raises(InputError, match=r"dibs_6.json is damaged .*; remove it"):
        again.load(6)


def test_what_failed_says_nothing_and_fragments_count_once():
    source: Any = DataSource(arguments(reward_key="right"))
    (group,) = source.get_samples(1)
    for sample, reward in zip(group, (1.0, 0.0, 1.0, 0.0), strict=True):
        sample.reward, sample.status = {"right": reward}, Status.COMPLETED
    group[3].status = Status.FAILED
    assert keep_all(source.args, [[group[0], group[0]], *group[1:]])
    source.queue.budget.update(*zip(*source.queue._observed, strict=True))
    name = group[0].metadata[PROMPT]
    assert source.queue.budget.history.sums([name], 1)[0, :2] == pytest.approx([3, 2], rel=0.1)


def test_a_filter_alone_keeps_groups_with_spread():
    args = arguments()
    rewards: list[list[Any]] = [
        [1.0, 0.0],
        [1.0, 1.0],
        [0.0, 0.0],
        [0.5],
        [None, None],
        [1.0, 1.0 + 1e-9],
    ]
    groups = [[Sample(reward=reward) for reward in group] for group in rewards]
    assert [keep_spread(args, group) for group in groups] == [True, *[False] * 5]


def test_slimes_own_answer_is_given_where_slime_is(monkeypatch):
    @dataclass
    class DynamicFilterOutput:
        keep: bool
        reason: str | None = None

    parts = ["slime", "slime.rollout", "slime.rollout.filter_hub"]
    for name in (*parts, f"{parts[-1]}.base_types"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(
        sys.modules[f"{parts[-1]}.base_types"],
        "DynamicFilterOutput",
        DynamicFilterOutput,
        raising=False,
    )
    group = [Sample(reward=1.0), Sample(reward=1.0)]
    assert keep_spread(arguments(), group) == DynamicFilterOutput(False, "dibs_all_1.0")
    group[0].reward = 0.0
    assert keep_spread(arguments(), group) == DynamicFilterOutput(True, None)


def test_weighted_rewards_by_hand():
    samples = [
        Sample(group_index=group, reward=reward, metadata={WEIGHT: weight})
        for group, reward, weight in [(0, 1.0, 2.0), (0, 0.0, 2.0), (1, 1.0, 0.5), (1, 1.0, 0.5)]
    ]
    args = arguments(grpo_std_normalization=False)
    assert weighted_rewards(args, samples) == ([1, 0, 1, 1], [1, -1, 0, 0])
    _, normalized = weighted_rewards(arguments(), samples)
    assert normalized == pytest.approx([2**0.5, -(2**0.5), 0, 0], abs=1e-4)
    with pytest.raises(InputError, match="advantage estimator ppo takes no weights here"):
        weighted_rewards(arguments(advantage_estimator="ppo"), samples)


def test_terms_without_weights_are_named_once(monkeypatch, caplog):
    monkeypatch.setattr("dibs.integrations.slime._warned", [])
    samples = [Sample(group_index=0, reward=reward) for reward in (1.0, 0.0)]
    weighted_rewards(arguments(use_kl_loss=True, kl_loss_coef=0.0, entropy_coef=0.0), samples)
    assert not caplog.records
    for _ in range(2):
        weighted_rewards(arguments(use_kl_loss=False, entropy_coef=0.01), samples)
        weighted_rewards(arguments(use_kl_loss=True, kl_loss_coef=0.1), samples)
    (record,) = caplog.records
    assert "--entropy-coef 0.01 has no weights" in record.getMessage()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"half_lief": 5}, "unknown key options.half_lief; nearest is options.half_life"),
        ({"half_life": -1}, r"options.half_life: must be above 0.* \(got -1\)"),
        (
            {"advantages": "given", "objective": "expected_reward", "baseline": "none"},
            "advantages given: .* gradient norms, which a queue does not get",
        ),
    ],
)
def test_options_that_cannot_be_used_are_one_line(monkeypatch, options, said):
    monkeypatch.setattr(DataSource, "options", options)
    with pytest.raises(InputError, match=said) as refused:
        DataSource(arguments())
    assert "\n" not in str(refused.value)


def test_a_damaged_state_is_one_line_and_changes_nothing(tmp_path):
    source = DataSource(arguments(save=str(tmp_path), load=str(tmp_path)))
    trained(source, 30)
    source.save(5)
    path, before = tmp_path / "rollout/dibs_5.json", source.queue.state()
    whole = json.loads(path.read_text())
    faults: list[tuple[str, dict[str, Any]]] = [
        ("AttributeError", {"budget": {**whole["budget"], "history": {"prompts": []}}}),
        ("IndexError", {"budget": {**whole["budget"], "history": {"prompts": {"x": []}}}}),
        ("ValueError", {"ahead": [[]]}),
        ("TypeError", {"observed": [["x", [None]]]}),
        ("TypeError", {"drawn": None}),
    ]
    for kind, damage in faults:
        other = {**whole, "drawn": 999, "windows": 999, **damage}
        path.write_text(json.dumps(other))
        with pytest.raises(InputError, match=rf"dibs_5.json is damaged .*{kind}.*; remove it"):
            source.load(5)
        assert source.queue.state() == before


def test_no_data_set_is_one_clear_line():
    with pytest.raises(InputError, match="there are no prompts to choose from"):
        DataSource(arguments(rollout_global_dataset=False))
