"""An update that measures norms: the same gradient, and the norms of the separate pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dibs.allocation.posterior import fit_posterior
from dibs.allocation.statistics import completion_sums, statistics
from dibs.files import read_lines
from dibs.model.grad_norms import gradient_norms
from dibs.model.grad_norms.products import Products
from dibs.model.policy import Policy
from dibs.training import updater as updater_module
from dibs.training.losses import PolicyLoss
from dibs.training.norm_sample import NormSample
from dibs.training.norms_of_updates import check_weighted_gradient
from dibs.training.sharing_check import try_sharing
from dibs.training.updater import Updater
from dibs.types import InputError, TrainingExample
from tiny_gradients import FAMILIES, SIZES, make_policy, with_lora
from tiny_policies import RAFT, RATIO, examples, naive_logprobs, updater
from tiny_runs import run, untimed

SEQUENCE = PolicyLoss(clip=(0.2, 0.28), importance_sampling="sequence_mask")
KINDS = [*FAMILIES, "tied", "neox", "lora", "lora_head", "no_head"]


def made_policy(template: Policy, kind: str) -> Policy:
    if kind in FAMILIES:
        return make_policy(template, kind, temperature=0.8)
    if kind == "tied":
        return make_policy(template, tied=True)
    if kind == "neox":
        torch.manual_seed(0)
        sizes = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
        config = GPTNeoXConfig(
            **sizes, num_attention_heads=2, intermediate_size=48, initializer_range=0.3
        )
        return Policy(GPTNeoXForCausalLM(config).eval(), template.tokenizer)
    if kind == "no_head":
        policy = make_policy(template)
        policy.output_head = None
        return policy
    target = "all-linear" if kind == "lora" else ["up_proj", "lm_head"]
    return with_lora(make_policy(template), target_modules=target)


def with_zeros(made: list[TrainingExample]) -> list[TrainingExample]:
    """Every third completion without an advantage, one without a weight, and one without a token."""
    made = [replace(each, advantage=0.0) if i % 3 == 2 else each for i, each in enumerate(made)]
    made[1] = replace(made[1], weight=0.0)
    return [*made, replace(made[0], completion_ids=())]


def gradients(maker: Updater, made: list[TrainingExample], **options) -> torch.Tensor:
    maker.optimizer.zero_grad(set_to_none=False)
    maker.gradient(made, **options)
    return torch.cat([p.grad.flatten() for p in maker.parameters if p.grad is not None]).clone()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [10**6, 90, 1])
def test_the_gradient_and_the_norms_are_those_of_two_passes(policy, kind, tokens):
    policy = made_policy(policy, kind)
    made = with_zeros(examples(policy, 8))
    maker = updater(policy, RATIO, micro_batch_tokens=tokens)
    squares = np.full(len(made), np.nan)
    found = gradients(maker, made, squares=squares)
    assert_same(found, gradients(maker, made))
    expected = gradient_norms(policy, made).norms
    np.testing.assert_allclose(np.sqrt(squares), expected, rtol=1e-5)
    assert expected[-1] == 0
    assert (expected[:-1] > 0).all()


@pytest.mark.parametrize("kind", ["tied", "qwen2"])
def test_checkpointed_layers(policy, kind):
    policy = made_policy(policy, kind)
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    made = examples(policy, 5)
    maker = updater(policy)
    updater_module.set_update_mode(policy.model)
    modes = [module.training for module in policy.model.modules()]
    squares = np.full(len(made), np.nan)
    found = gradients(maker, made, squares=squares)
    assert [module.training for module in policy.model.modules()] == modes
    assert_same(found, gradients(maker, made))
    np.testing.assert_allclose(np.sqrt(squares), gradient_norms(policy, made).norms, rtol=1e-5)


def test_a_masked_completion_is_not_measured(policy):
    """Importance sampling sets the second completion's loss to 0; the first one's ratio is 1.5."""
    policy = made_policy(policy, "qwen2")
    made = []
    for each, gap in zip(examples(policy, 2), (np.log(1.5), 5.0), strict=True):
        exact = naive_logprobs(policy, each).numpy()
        exact[0] -= gap
        made.append(replace(each, sampling_logprobs=tuple(exact.tolist())))
    maker = updater(policy, SEQUENCE)
    squares = np.full(2, np.nan)
    found = gradients(maker, made, squares=squares)
    assert_same(found, gradients(maker, made))
    assert_same(found, 1.5 * gradients(updater(policy), made[:1]))
    assert np.sqrt(squares[0]) == pytest.approx(gradient_norms(policy, made).norms[0], rel=1e-5)
    assert np.isnan(squares[1])


def test_moved_weights_keep_the_gradient_exact_and_weigh_the_tokens(policy):
    """With a ratio of 2 or 1/2 for all tokens of a completion, its norm is that of the plain sum."""
    policy = made_policy(policy, "qwen2")
    made = [replace(each, advantage=1.0) for each in examples(policy, 3)]
    old = [naive_logprobs(policy, each) for each in made]
    old[0] = old[0] + np.log(
        2.0
    )  # ratio 1/2 everywhere: not clipped, since the advantage is positive
    old[1] = old[1] - np.log(2.0)  # ratio 2 everywhere: clipped, no gradient
    old[2][0] += np.log(2.0)  # the first token alone
    maker = updater(policy, RATIO)
    squares = np.full(3, np.nan)
    found = gradients(maker, made, old_logprobs=old, squares=squares)
    assert_same(found, gradients(maker, made, old_logprobs=old))
    exact = gradient_norms(policy, made).norms
    assert np.sqrt(squares[0]) == pytest.approx(exact[0], rel=1e-4)
    assert np.isnan(squares[1])
    alone = gradients(maker, made[2:], old_logprobs=old[2:])
    assert np.sqrt(squares[2]) == pytest.approx(float(alone.norm()) / made[2].weight, rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_measured_ones_have_the_norms_of_a_separate_pass(policy, share, shared):
    """Prompts of the others are shared all the while, and the update stays what it is."""
    if shared:
        assert try_sharing(policy, examples(policy, 4)) is None
    first, second = examples(policy, 2)
    made = [
        replace(each, completion_ids=each.completion_ids[: 1 + i], advantage=float(i % 3 - 1))
        for i in range(20)
        for each in (first, second)
    ]
    sample = NormSample.of([i % 2 == 0 for i in range(40)], share)
    measuring = updater(policy, updates_per_step=2, learning_rate=1e-12)
    expected = gradient_norms(policy, made).norms
    metrics = measuring.step(made, sample)
    plain = updater(policy, updates_per_step=2, learning_rate=1e-12).step(made)
    assert metrics.update_grad_norm == pytest.approx(plain.update_grad_norm, rel=1e-5)
    known = ~np.isnan(sample.squares)
    # Each class of both prompts is learned from, so its completions of advantage 0 count too.
    assert abs(known.sum() - share * 40) < 1
    np.testing.assert_allclose(np.sqrt(sample.squares[known]), expected[known], rtol=1e-5)


@pytest.mark.parametrize("loss", [RAFT, RATIO])
def test_a_measured_step_is_the_step(loss, policy):
    """The same weights and metrics after two steps of one update each as without norms."""
    made = with_zeros(examples(policy, 20))
    start = {name: value.clone() for name, value in policy.model.state_dict().items()}
    results = []
    for measured in (False, True):
        policy.model.load_state_dict(start)
        maker = updater(policy, loss, learning_rate=1e-3, updates_per_step=1)
        for _ in range(2):
            metrics = maker.step(made, NormSample.of([True] * len(made), 1.0) if measured else None)
        results.append((torch.cat([p.detach().flatten() for p in maker.parameters]), metrics))
    (plain, metrics), (weights, measured_metrics) = results
    # AdamW divides by the gradient's size, so tiny gradients keep no digits.
    assert (weights - plain).abs().max() < 1e-5
    assert measured_metrics.sequence_ratios == metrics.sequence_ratios
    for name in ("loss", "update_grad_norm", "entropy"):
        assert getattr(measured_metrics, name) == pytest.approx(getattr(metrics, name), rel=1e-4)


def test_norms_that_were_not_measured_count_nowhere():
    """Norms 3, unknown and 0, all accepted, and 2, rejected; log-probabilities -1, -9, -7 and -2.

    The means of norms are those of 3 and 0, and of 2. A completion of norm 0 says nothing by its
    log-probability; one of unknown norm does.
    """
    accepted, rewards = np.array([True, True, True, False]), np.array([1.0, 1.0, 1.0, 0.0])
    logprobs, norms = np.array([-1.0, -9.0, -7.0, -2.0]), np.array([3.0, np.nan, 0.0, 2.0])
    sums = completion_sums(accepted, rewards, np.ones(4), logprobs, norms)
    found = statistics(["a"], sums[None])
    assert found.trials.tolist() == [4]
    assert found.grad_norm.tolist() == [1.5]
    assert found.grad_norm_rejected is not None
    assert found.accepted is not None
    assert found.grad_norm_rejected.tolist() == [2.0]
    assert found.accepted.count.tolist() == [1]
    assert found.accepted.log_norm.tolist() == [np.log(3.0)]
    assert found.accepted.logprob.tolist() == [-5.0]
    assert found.accepted.likelihoods.tolist() == [2]
    assert sums[3 + 6 : 3 + 13].tolist() == [3, 3, 9, 9, 9, 2, 2]


def test_a_class_without_a_measured_norm_is_missing_and_not_zero():
    """Two visits: both accepted of the first are unknown, the one of the second has norm 4."""
    accepted, rewards = np.array([True, True]), np.ones(2)
    unknown = completion_sums(accepted, rewards, np.ones(2), -np.ones(2), np.full(2, np.nan))
    one = completion_sums(accepted[:1], rewards[:1], np.ones(1), -np.ones(1), np.array([4.0]))
    found = statistics(["a", "b"], np.stack([unknown, unknown + one]))
    np.testing.assert_array_equal(found.grad_norm, [np.nan, 4.0])
    assert found.accepted is not None
    np.testing.assert_array_equal(found.accepted.log_norm, [np.nan, np.log(4.0)])
    assert found.accepted.count.tolist() == [0, 1]
    assert found.accepted.likelihoods.tolist() == [2, 3]
    posterior = fit_posterior(found)
    assert posterior.norms.log_square[0] == pytest.approx(np.log(16), abs=1)


def test_a_model_whose_gradient_would_differ_is_refused(policy, monkeypatch):
    made = [replace(each, advantage=1.0) for each in examples(policy, 2)]
    check_weighted_gradient(policy, made)
    weighted = Products.add_outer

    def doubled(*given, **options):
        gradient = weighted(*given, **options)
        return None if gradient is None else 2 * gradient

    monkeypatch.setattr(Products, "add_outer", doubled)
    with pytest.raises(InputError, match="that measures norms would not have the same gradient"):
        check_weighted_gradient(policy, made)


def test_an_online_run_takes_in_what_its_updates_measured(tmp_path):
    """Two updates a step: every prompt is known after its first step, and a resumed run is the same."""
    options = ("--estimate.mode=online", "--estimate.grad_norm=update", "--data.size=8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, *options, "--train.steps=3", "--checkpoint.interval=2")
    run(parts, *options, "--train.steps=2", "--checkpoint.interval=2")
    more = ("--train.steps=3", "--resume=yes", "--allow_changes=true")
    run(parts, *options, "--checkpoint.interval=2", *more)
    assert untimed(parts)[-1] == untimed(whole)[-1]
    second = read_lines(whole / "allocations.jsonl")[1]
    assert any(norm is not None and norm > 0 for norm in second["grad_norm"])
