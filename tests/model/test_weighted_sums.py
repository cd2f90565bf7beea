"""Weighted sums of gradients from one batched backward pass, against torch.func and its products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from dibs.model.grad_norms import gradient_norms, gradient_sums, weighted_sums
from dibs.model.gradient_vector import Projection
from dibs.model.policy import Policy
from dibs.types import InputError
from tiny_gradients import SIZES, make_policy, reference, reference_products, with_lora
from tiny_policies import examples


def trainable(policy):
    return [p for p in policy.model.parameters() if p.requires_grad]


def factors_of(count):
    """Two sums without a sample in common, one over all with any factors, and an empty one."""
    rng = np.random.default_rng(0)
    first = (np.arange(count) % 3 == 0).astype(float)
    return np.stack([first, 1 - first, rng.normal(size=count), np.zeros(count)], axis=1)


def neox(policy, tied=False):
    """LayerNorm with bias, and biases everywhere."""
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if "key_value" not in k and k != "head_dim"}
    return Policy(
        GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, tie_word_embeddings=tied)).eval(),
        policy.tokenizer,
    )


def gpt2(policy):
    """Matrices stored transposed, learned positions, tied embeddings, and a padding token."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=60)
    return Policy(GPT2LMHeadModel(config).eval(), policy.tokenizer)


def with_output_bias(policy):
    policy = make_policy(policy, temperature=0.8)
    policy.model.set_output_embeddings(nn.Linear(16, 60, bias=True))
    policy.find_output_head()
    return policy


MODELS: dict[str, Callable[..., Policy]] = {
    "qwen2 with biases": make_policy,
    "qwen2, tied": lambda policy: make_policy(policy, tied=True, temperature=0.7),
    "qwen3, norms of heads": lambda policy: make_policy(policy, "qwen3"),
    "llama": lambda policy: make_policy(policy, "llama"),
    "neox": neox,
    "neox, tied": lambda policy: neox(policy, tied=True),
    "output bias": with_output_bias,
    "lora": lambda policy: with_lora(make_policy(policy), target_modules="all-linear"),
    "lora, tied": lambda policy: with_lora(
        make_policy(policy, tied=True), target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slow", [False, True])
def test_sums_are_those_of_torch_func(policy, name, slow):
    policy = MODELS[name](policy)
    made, factors = examples(policy, 7), factors_of(7)
    names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    rows = [reference(policy, each) for each in made]
    flat = torch.stack([torch.cat([row[n].flatten() for n in names]) for row in rows]).double()
    expected = torch.from_numpy(factors).T @ flat
    for tokens in (16384, 60):
        norms, sums = gradient_sums(
            policy, made, factors, Projection(trainable(policy)), slow=slow, max_tokens=tokens
        )
        error = (sums.double() - expected).norm(dim=1)
        assert (error <= 2e-6 * expected.norm(dim=1)).all()
        np.testing.assert_allclose(norms.norms, flat.norm(dim=1), rtol=1e-5)
    assert all(p.grad is None for p in policy.model.parameters())


def test_matrices_stored_transposed_have_the_same_inner_products(policy):
    policy = gpt2(policy)
    made, factors = examples(policy, 6), factors_of(6)
    expected = factors.T @ reference_products(policy, made) @ factors
    _, sums = gradient_sums(policy, made, factors, Projection(trainable(policy)))
    np.testing.assert_allclose((sums @ sums.T).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_blocks_of_any_size_give_the_same_sums(policy, monkeypatch):
    policy = make_policy(policy, tied=True)
    made, factors = examples(policy, 5), factors_of(5)
    project = Projection(trainable(policy), 0, 500)
    expected = gradient_sums(policy, made, factors, project)[1]
    for block in (1, 100):
        monkeypatch.setattr(weighted_sums, "_BLOCK", block)
        monkeypatch.setattr("dibs.model.gradient_vector._SPREAD", block)
        monkeypatch.setattr("dibs.model.grad_norms.output_layer._CHUNK", block)
        found = gradient_sums(policy, made, factors, project)[1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2, tied", "neox", "lora"])
def test_products_of_projected_sums_are_unbiased(policy, name):
    """Means over 300 projections within 5 standard errors of the exact products."""
    policy = MODELS[name](policy)
    made, factors = examples(policy, 4), np.eye(4)[:, :3] + 0.5
    exact = factors.T @ reference_products(policy, made) @ factors
    size, found = 256, []
    for seed in range(300):
        _, sums = gradient_sums(policy, made, factors, Projection(trainable(policy), seed, size))
        assert sums.shape == (3, size)
        found.append((sums.double() @ sums.double().T).numpy())
    products = np.array(found)
    error = products.std(0, ddof=1) / np.sqrt(len(products))
    assert (np.abs(products.mean(0) - exact) < 5 * error).all()
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()) / size)
    assert (products.std(0) < 2 * scale).all()


def test_gradient_checkpointing(policy):
    policy = make_policy(policy, "qwen3", True)
    made, factors = examples(policy, 5), factors_of(5)
    project = Projection(trainable(policy))
    expected = gradient_sums(policy, made, factors, project)[1]
    for reentrant in (True, False):
        policy.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        found = gradient_sums(policy, made, factors, project)[1]
        torch.testing.assert_close(found, expected)


def test_bfloat16(policy):
    policy = make_policy(policy)
    policy.model.bfloat16()
    made, factors = examples(policy, 6), np.ones((6, 1))
    norms, (vector,) = gradient_sums(policy, made, factors, Projection(trainable(policy)))
    rounded = make_policy(policy)
    rounded.model.load_state_dict({k: v.float() for k, v in policy.model.state_dict().items()})
    _, (expected,) = gradient_sums(rounded, made, factors, Projection(trainable(rounded)))
    assert (vector - expected).norm() < 0.03 * expected.norm()
    np.testing.assert_array_equal(norms.squares, gradient_norms(policy, made).squares)


def test_what_is_not_covered_is_refused(policy):
    policy = make_policy(policy)
    policy.model.model.layers[1].mlp = policy.model.model.layers[0].mlp
    made = examples(policy, 3)
    project = Projection(trainable(policy))
    with pytest.raises(InputError, match=r"used more than once.*exact_slow"):
        gradient_sums(policy, made, np.ones((3, 1)), project)
    _, (vector,) = gradient_sums(policy, made, np.ones((3, 1)), project, slow=True)
    expected = reference_products(policy, made).sum()
    assert float(vector.double() @ vector.double()) == pytest.approx(expected, rel=1e-5)
