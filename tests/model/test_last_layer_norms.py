"""Norms over the output layer against autograd, tokens of high confidence, and sketches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dibs.model.grad_norms import gradient_norms, output_layer
from dibs.model.policy import Policy
from dibs.types import TrainingExample
from tiny_gradients import make_policy
from tiny_policies import examples


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [2**22, 30])
def test_last_layer_norms_match_autograd(policy, monkeypatch, family, tied, temperature, chunk):
    monkeypatch.setattr(output_layer, "_CHUNK", chunk)
    policy = make_policy(policy, family, tied, temperature)
    made = examples(policy, 12)
    flat = torch.stack([last_layer_gradient(policy, example).flatten() for example in made])
    expected = (flat @ flat.T).double().numpy()
    for max_tokens in (16384, 60):
        squares = gradient_norms(policy, made, "last_layer", max_tokens=max_tokens).squares
        np.testing.assert_allclose(squares, np.diag(expected), rtol=1e-5)
    (products,) = gradient_norms(policy, made, "last_layer", group_sizes=[12]).products or ()
    np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-5 * expected.max())


def last_layer_gradient(policy: Policy, example: TrainingExample) -> torch.Tensor:
    """Gradient through a detached copy of the output matrix, so that tied embeddings are apart."""
    weight = policy.model.get_output_embeddings().weight.detach().clone().requires_grad_()
    ids = torch.tensor([[*example.context_ids, *example.completion_ids]])
    hidden = policy.model.base_model(input_ids=ids).last_hidden_state[0].detach()
    table = (hidden @ weight.T / policy.temperature).log_softmax(-1)
    start = len(example.context_ids)
    logprob = sum(table[start + t - 1, y] for t, y in enumerate(example.completion_ids))
    (gradient,) = torch.autograd.grad(logprob, weight)
    return gradient


def test_a_confident_token_keeps_its_precision(policy):
    """A probability of 1 - 1e-9 rounds to 1 in float32; its gradient must not round to 0."""
    policy = make_policy(policy)
    example = TrainingExample((7, 8), (9,), 0.0, 0.0)
    hidden = policy.hidden_states(policy.collate([example]))[0, 0].detach()
    with torch.no_grad():
        policy.model.lm_head.weight[9] += 25.0 * hidden / hidden.square().sum()
    weight = policy.model.lm_head.weight.detach().double()
    probabilities = (weight @ hidden.double()).softmax(0)
    error = -probabilities
    error[9] = probabilities.sum() - probabilities[9]
    expected = float(error.norm() * hidden.double().norm())
    assert expected < 1e-6
    measured = gradient_norms(policy, [example], "last_layer").norms[0]
    assert measured == pytest.approx(expected, rel=1e-4)


def test_a_sketch_is_unbiased_and_as_precise_as_it_says(policy):
    """Mean of 400 sketches within 5 standard errors; spread at most 1.2 sqrt(2 / size)."""
    policy = make_policy(policy)
    made = examples(policy, 4)
    exact = gradient_norms(policy, made, "last_layer").squares
    size, draws = 16, 400
    ratios = np.array(
        [
            gradient_norms(policy, made, "last_layer", sketch=size, seed=seed).squares / exact
            for seed in range(draws)
        ]
    )
    spread = ratios.std(axis=0)
    assert (np.abs(ratios.mean(axis=0) - 1) <= 5 * spread / np.sqrt(draws)).all()
    assert (spread <= 1.2 * np.sqrt(2 / size)).all()
    assert (spread > 0.01).all()


def test_a_sketch_walks_the_vocabulary_in_chunks(policy, monkeypatch):
    policy = make_policy(policy)
    made = examples(policy, 4)
    whole = gradient_norms(policy, made, "last_layer", sketch=16).squares
    monkeypatch.setattr(output_layer, "_CHUNK", 16 * 4 * 12)
    chunked = gradient_norms(policy, made, "last_layer", sketch=16).squares
    assert (np.abs(chunked / whole - 1) < 1).all()
    # As many entries as tokens, and one sum for each: the exact norm.
    every = gradient_norms(policy, made, "last_layer", sketch=60).squares
    np.testing.assert_allclose(every, gradient_norms(policy, made, "last_layer").squares, rtol=1e-5)
