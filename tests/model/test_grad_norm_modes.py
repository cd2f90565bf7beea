"""Gradient norms in training and inference mode, under checkpointing, and in half precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dibs.config import GradNormMethod
from dibs.model.grad_norms import gradient_norms, output_layer, recorder
from dibs.model.policy import Policy
from dibs.types import InputError
from tiny_gradients import make_policy, with_lora
from tiny_policies import examples


def test_inference_mode(policy):
    made = examples(policy, 2)
    expected = gradient_norms(policy, made).norms
    with torch.inference_mode():
        assert gradient_norms(policy, made).norms.tolist() == expected.tolist()
        policy = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    with pytest.raises(InputError, match="inference_mode"):
        gradient_norms(policy, made)


@pytest.mark.parametrize("method", ["exact", "exact_slow", "last_layer"])
def test_the_model_and_the_random_state_are_left_as_they_were(policy, method):
    policy = with_lora(make_policy(policy), target_modules=["q_proj"])
    model = policy.model.train()
    model.base_model.model.model.norm.eval()
    model.base_model.model.model.norm.weight.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()

    first = gradient_norms(policy, examples(policy, 3), method, parameters="all")
    again = gradient_norms(policy, examples(policy, 3), method, parameters="all")

    assert first.norms.tolist() == again.norms.tolist()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        if parameter.requires_grad:
            assert (parameter.grad == 0.5).all()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_gradient_checkpointing(policy, reentrant, tied):
    policy = make_policy(policy, "qwen3", tied)
    made = examples(policy, 5)
    expected = gradient_norms(policy, made).norms
    policy.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    mlp = policy.model.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    for mode in (True, False):
        policy.model.train(mode)
        calls.clear()
        np.testing.assert_allclose(gradient_norms(policy, made).norms, expected, rtol=1e-6)
        # The forward pass and its repetition.
        assert len(calls) == 2


def test_bfloat16(policy):
    """Against float32 with the same weights: single norms within 3%, no bias beyond 1%."""
    single = make_policy(policy, "qwen3", temperature=0.9)
    single.model.to(torch.bfloat16).float()
    made = examples(single, 24)
    half = Policy(copy.deepcopy(single.model).to(torch.bfloat16), single.tokenizer, 0.9)
    methods: tuple[GradNormMethod, ...] = ("exact", "last_layer")
    for method in methods:
        expected = gradient_norms(single, made, method).norms
        ratio = gradient_norms(half, made, method).norms / expected
        assert np.abs(ratio - 1).max() < 0.03
        assert abs(ratio.mean() - 1) < 0.01


def test_checkpointed_layers_that_ask_for_dropout_themselves(policy):
    """OPT's decoder layers call dropout with their own training flag."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=60,
        word_embed_proj_dim=16, dropout=0.5, init_std=0.3, max_position_embeddings=64,
    )  # fmt: skip
    policy = with_lora(Policy(OPTForCausalLM(config), policy.tokenizer), target_modules=["q_proj"])
    made = examples(policy, 3)
    methods: tuple[GradNormMethod, ...] = ("exact", "exact_slow")
    expected = {method: gradient_norms(policy, made, method).norms for method in methods}
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.model.train()
    state = torch.get_rng_state()
    for method, norms in expected.items():
        np.testing.assert_allclose(gradient_norms(policy, made, method).norms, norms, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_products_get_factors_that_a_gpu_takes(policy, monkeypatch):
    """torch.mm and torch.bmm, the float32 products of bfloat16 factors on a GPU, do not broadcast."""

    def strict(left, right):
        assert left.dtype == right.dtype or torch.float32 in (left.dtype, right.dtype)
        assert left.ndim == right.ndim <= 3
        assert left.shape[:-2] == right.shape[:-2]
        return left.float() @ right.float()

    monkeypatch.setattr(recorder, "product", strict)
    monkeypatch.setattr(output_layer, "product", strict)
    policy = make_policy(policy, tied=True)
    policy.model.to(torch.bfloat16)
    made = examples(policy, 5)
    methods: tuple[GradNormMethod, ...] = ("exact", "last_layer")
    for sizes in (None, [5]):
        for method in methods:
            assert (gradient_norms(policy, made, method, group_sizes=sizes).norms > 0).all()
