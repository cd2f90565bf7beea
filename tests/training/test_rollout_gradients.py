"""Norms of rollouts are those of the gradient that is trained, and nothing is divided twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from rich.console import Console

from dibs.allocation.problem import pose
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.config import GradNormMethod
from dibs.config.load import load_config, split_config
from dibs.loop import Trainer
from dibs.model.grad_norms import gradient_norms
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.runs.resume_state import load_trainer_state, trainer_state
from dibs.training.examples import length_divisor, normalized_example
from dibs.training.rollout_gradients import RolloutGradients
from dibs.types import Allocation, Completion, Group, Rollout
from tiny_groups import make_prompt
from tiny_runs import options

LONGEST = 12
LENGTHS = [[1, 5, 12], [], [3]]


@pytest.fixture
def build(tmp_path):
    def build(*more: str) -> Trainer:
        config = load_config(*split_config(options(tmp_path / "run", *more)))
        return build_trainer(config, PlainView(Console(quiet=True)))

    return build


def made_groups() -> list[Group]:
    """Completions of 1, 5 and 12 tokens, none, and one of 3; the first of each group is accepted."""
    prompt = make_prompt("a")
    groups = []
    for lengths in LENGTHS:
        rollouts = []
        for i, length in enumerate(lengths):
            tokens = tuple(3 + (7 * i + t) % 8 for t in range(length))
            done = Completion(tokens, "text", (-1.0,) * length, finished=True)
            rollouts.append(Rollout(prompt, done, float(i == 0), "status", i == 0))
        groups.append(Group(prompt, tuple(rollouts)))
    return groups


def trained(trainer: Trainer, rollout: Rollout) -> float:
    """Norm of what the updater adds up for a completion of advantage and weight 1."""
    trainer.updater.optimizer.zero_grad(set_to_none=False)
    trainer.updater.gradient([normalized_example(rollout, 1.0, 1.0, trainer.config)])
    gradients = [p.grad.flatten() for p in trainer.updater.parameters if p.grad is not None]
    return float(torch.cat(gradients).norm())


@pytest.mark.parametrize("normalization", ["none", "constant", "sequence"])
def test_norms_are_of_the_gradient_that_the_updater_adds_up(build, normalization):
    trainer = build(f"--algorithm.length_normalization={normalization}", "--algorithm.name=raft")
    trainer.policy.model.eval()
    groups = made_groups()
    expected = [[trained(trainer, rollout) for rollout in group.rollouts] for group in groups]
    for found in (trainer.gradients.norms(groups, 0), trainer.gradients.exact_norms(groups)):
        assert [len(each) for each in found] == [3, 0, 1]
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), rtol=1e-5)


@pytest.mark.parametrize("method", [*get_args(GradNormMethod), "sketch"])
def test_every_method_divides_by_the_length_once(build, method):
    chosen = (
        ("--estimate.grad_norm=last_layer", "--estimate.grad_norm_sketch=8")
        if method == "sketch"
        else (f"--estimate.grad_norm={method}",)
    )
    trainer = build(*chosen)
    groups = made_groups()
    plain = trainer.gradients.norms(groups, 3)
    for normalization, divisors in (
        ("constant", [np.full(len(each), LONGEST) for each in LENGTHS]),
        ("sequence", [np.array(each) for each in LENGTHS]),
    ):
        algorithm = trainer.config.algorithm.model_copy(
            update={"length_normalization": normalization}
        )
        config = trainer.config.model_copy(update={"algorithm": algorithm})
        found = RolloutGradients(trainer.policy, config).norms(groups, 3)
        for each, norms, divisor in zip(found, plain, divisors, strict=True):
            np.testing.assert_allclose(each, norms / divisor, rtol=1e-12)


def test_without_measured_norms_every_completion_has_the_same(build):
    trainer = build("--estimate.grad_norm=none", "--algorithm.length_normalization=sequence")
    found = trainer.gradients.norms(made_groups(), 0)
    assert [each.tolist() for each in found] == [[1.0, 1.0, 1.0], [], [1.0]]


def test_an_empty_completion_has_norm_0(build):
    trainer = build("--algorithm.length_normalization=sequence")
    prompt = make_prompt("a")
    empty = Rollout(prompt, Completion((), "", (), finished=True), 0.0, "status", accepted=False)
    assert length_divisor(empty, trainer.config) == 1
    (found,) = trainer.gradients.norms([Group(prompt, (empty,))], 0)
    assert found.tolist() == [0.0]


def test_statistics_by_hand(build, monkeypatch):
    """Norms of 10 and 20 over 10 tokens, and of 30 over 100 tokens: G is (1 + 2)/2, and 0.3."""
    trainer = build("--algorithm.length_normalization=sequence")
    norms = np.array([10.0, 20.0, 30.0])
    monkeypatch.setattr(
        "dibs.training.rollout_gradients.gradient_norms",
        lambda *_, **__: SimpleNamespace(norms=norms),
    )
    groups = []
    for name, lengths in (("short", [10, 10]), ("long", [100])):
        prompt = make_prompt(name)
        done = [Completion((4,) * n, "text", (-1.0,) * n, finished=True) for n in lengths]
        groups.append(Group(prompt, tuple(Rollout(prompt, each, 1.0, "", True) for each in done)))
    stats = pilot_statistics(groups, trainer.gradients.norms(groups, 0))
    assert stats.grad_norm == pytest.approx([1.5, 0.3])
    assert stats.accepted is not None
    assert stats.accepted.log_norm == pytest.approx([np.log(2) / 2, np.log(0.3)])


def test_the_measured_gain_by_hand(build, monkeypatch):
    """Counts 1 and 3 against 2 and 2; squares of a norm over a length are (8/2)^2 and (6/6)^2."""
    trainer = build(
        "--algorithm.length_normalization=sequence",
        "--algorithm.objective=expected_reward",
        "--algorithm.baseline=none",
    )
    norms = np.array([8.0, 6.0, 6.0, 6.0])
    monkeypatch.setattr(
        "dibs.training.rollout_gradients.gradient_norms",
        lambda *_, **__: SimpleNamespace(norms=norms),
    )
    groups = []
    for name, count, length in (("short", 1, 2), ("long", 3, 6)):
        prompt = make_prompt(name)
        done = Completion((4,) * length, "text", (-1.0,) * length, finished=True)
        groups.append(Group(prompt, (Rollout(prompt, done, 1.0, "", True),) * count))
    stats = pilot_statistics(groups, [np.ones(1), np.ones(3)])
    problem = pose(stats, 4, Target("expected_reward", "none"))
    # Undivided, they would be 64 and 36.
    expected = (16 / 2 + 1 / 2) / (16 / 1 + 1 / 3)
    counts = Allocation(stats.prompt_ids, np.array([1, 3]), "min_variance")
    found = trainer.gradients.gain([groups], [problem], [counts])
    assert found["measured_gain"] == pytest.approx(expected)


ONLINE = (
    "--estimate.mode=online",
    "--estimate.grad_norm=last_layer",
    "--algorithm.length_normalization=sequence",
    "--evaluate.interval=100",
)


def test_the_online_history_is_of_the_gradient_that_is_trained(build):
    trainer = build(*ONLINE, "--sampling.temperature=2")
    before = trainer.policy.frozen_copy()
    record = next(trainer.run())
    lengths, means = set[int](), list[list[float]]()
    for group in record.groups:
        made = [rollout.example() for rollout in group.rollouts]
        own = np.array([len(example.completion_ids) for example in made])
        lengths |= set(own.tolist())
        norms = gradient_norms(before, made, "last_layer").norms / own
        classes = (group.accepted, ~group.accepted)
        means.append([norms[each].mean() if each.any() else np.nan for each in classes])
    assert len(lengths) > 2
    assert np.isfinite(means).sum() > 8
    stats = trainer.history.statistics([group.prompt.prompt_id for group in record.groups], 1)
    assert stats.grad_norm_rejected is not None
    found = np.stack([stats.grad_norm, stats.grad_norm_rejected], axis=1)
    np.testing.assert_allclose(found, means, rtol=1e-4)


def test_a_resumed_run_goes_on_with_norms_of_the_same_gradient_alone(build):
    trainer = build(*ONLINE)
    next(trainer.run())
    state: dict[str, Any] = trainer_state(trainer)
    known = len(trainer.history)
    assert known > 0
    again, other = build(*ONLINE), build(*ONLINE, "--algorithm.length_normalization=none")
    for each in (again, other):
        load_trainer_state(each, state)
    assert (len(again.history), len(other.history)) == (known, 0)
    # A state of a version that measured the plain sum names no division.
    del state["history"]["length_normalization"]
    for each in (again, other):
        load_trainer_state(each, state)
    assert (len(again.history), len(other.history)) == (0, known)
