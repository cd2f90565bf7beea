"""Log-probabilities before the first update: the sampler's stand for the learner's where they agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from dibs.model.policy import Policy
from dibs.training.losses import PolicyLoss
from dibs.training.old_logprobs import sampler_agrees
from dibs.types import TrainingExample
from tiny_policies import RATIO, examples, updater

WEIGHED = PolicyLoss(clip=(0.2, 0.2), importance_sampling="token_truncate")


def sampled(policy: Policy, count: int, error: float = 0.0) -> list[TrainingExample]:
    """Completions whose sampler is off by ``error`` nats a token, up and down in turns."""
    made = examples(policy, count)
    with torch.no_grad():
        rows = policy.logprobs(policy.collate(made)).tolist()
    signs = (error, -error)
    return [
        replace(
            example,
            sampling_logprobs=tuple(
                row[t] + signs[t % 2] for t in range(len(example.completion_ids))
            ),
        )
        for example, row in zip(made, rows, strict=True)
    ]


def computed_once(policy: Policy, monkeypatch: pytest.MonkeyPatch, made, loss=RATIO, **options):
    """Metrics and weights of a step, and how many completions the learner computed for it."""
    one = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    rows = 0
    compute = Policy.logprobs_and_entropy

    def counted(self: Policy, batch):
        nonlocal rows
        rows += len(batch.completion_mask)
        return compute(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Policy, "logprobs_and_entropy", counted)
        metrics = updater(one, loss, learning_rate=1e-2, **options).step(made)
    return metrics, weights(one), rows


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def without_logprobs(made: Sequence[TrainingExample]) -> list[TrainingExample]:
    return [replace(example, sampling_logprobs=()) for example in made]


@pytest.mark.parametrize(("loss", "computed"), [(RATIO, 24), (WEIGHED, 42)])
def test_a_sampler_that_agrees_spares_a_pass_and_changes_nothing(
    policy, monkeypatch, loss, computed
):
    """With importance weights nothing is spared, since these are for samplers that differ."""
    made = sampled(policy, 24)
    metrics, after, rows = computed_once(policy, monkeypatch, made, loss, updates_per_step=4)
    plain, expected, more = computed_once(
        policy, monkeypatch, without_logprobs(made), loss, updates_per_step=4
    )
    assert (rows, more) == (computed, 24 + 18)
    assert (after - expected).norm() < 1e-3 * (expected - weights(policy)).norm()
    assert metrics.clip_fraction == pytest.approx(plain.clip_fraction)
    assert metrics.loss == pytest.approx(plain.loss, rel=1e-4)


@pytest.mark.parametrize(("error", "rows"), [(2e-5, 24), (5e-4, 42), (0.05, 42)])
def test_a_sampler_that_differs_is_not_believed(policy, monkeypatch, error, rows):
    made = sampled(policy, 24, error)
    metrics, after, computed = computed_once(policy, monkeypatch, made, updates_per_step=4)
    assert computed == rows
    assert metrics.sampler_gap == pytest.approx(error, abs=2e-6)
    _, expected, _ = computed_once(policy, monkeypatch, without_logprobs(made), updates_per_step=4)
    assert (after - expected).norm() < 1e-2 * (expected - weights(policy)).norm()


def test_the_gap_is_that_of_completions_that_the_learner_computed(policy, monkeypatch):
    """Zeros of completions that were never compared would make a mean gap too small."""
    made = sampled(policy, 24, 5e-5)
    metrics, _, rows = computed_once(policy, monkeypatch, made, updates_per_step=4)
    assert rows == 24
    assert metrics.sampler_gap == pytest.approx(5e-5, abs=2e-6)
    assert metrics.sequence_ratios is not None
    assert sum(metrics.sequence_ratios) == 6
    every, _, _ = computed_once(policy, monkeypatch, sampled(policy, 24, 5e-4), updates_per_step=4)
    assert every.sequence_ratios is not None
    assert sum(every.sequence_ratios) == 24


def test_one_unknown_completion_of_later_updates_is_enough(policy, monkeypatch):
    made = sampled(policy, 24)
    _, _, rows = computed_once(
        policy, monkeypatch, [*without_logprobs(made[:8]), *made[8:]], updates_per_step=4
    )
    assert rows == 42


def test_unknown_log_probabilities_show_no_gap(policy, monkeypatch):
    made = without_logprobs(sampled(policy, 8))
    metrics, _, _ = computed_once(policy, monkeypatch, made, updates_per_step=2)
    assert metrics.sampler_gap is None
    assert metrics.token_ratios is None


@pytest.mark.parametrize(
    ("logprobs", "gaps", "agrees"),
    [
        ([-0.5] * 16, [9e-5], True),
        ([-0.5] * 16, [-2e-4], False),
        ([-0.5] * 16, [float("nan")], False),
        (
            [-0.5] * 15 + [-0.05],
            [0.0],
            False,
        ),  # all precisions agree on a token that is all but certain
        ([-0.5] * 16 + [float("-inf")], [float("inf")], False),
    ],
)
def test_what_shows_that_the_sampler_agrees(logprobs, gaps, agrees):
    known = TrainingExample((2, 3), (4,) * len(logprobs), 1.0, 1.0, tuple(logprobs))
    ratios = [torch.tensor(gaps + [0.0] * (len(logprobs) - 1))]
    assert sampler_agrees(ratios, [known], [known]) is agrees
    assert not sampler_agrees([], [known], [known])
    assert not sampler_agrees(ratios, [replace(known, advantage=0.0)], [known])
    for unknown in ((), (*logprobs[1:], float("-inf")), (*logprobs[1:], float("nan"))):
        assert not sampler_agrees(ratios, [known], [replace(known, sampling_logprobs=unknown)])


def test_an_empty_first_update_and_a_single_one(policy, monkeypatch):
    _, _, rows = computed_once(policy, monkeypatch, [], updates_per_step=4)
    assert rows == 0
    made = sampled(policy, 6)
    _, _, rows = computed_once(policy, monkeypatch, made, updates_per_step=1)
    assert rows == 6
    unlearned = [replace(example, advantage=0.0) for example in made]
    _, _, rows = computed_once(policy, monkeypatch, unlearned, updates_per_step=3)
    assert rows == 0
