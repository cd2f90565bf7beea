"""Families beyond Qwen and Llama: gradient norms, advice, and no dropout of their own in updates."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
)

from dibs.config import PolicyConfig
from dibs.model.grad_norms import gradient_norms
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.rollouts.sampling.sampler import SampleRequest
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.losses import PolicyLoss
from dibs.types import InputError, Prompt, TrainingExample
from odd_models import byte_tokenizer, save_model
from tiny_policies import examples, updater

SMALL = {"vocab_size": 261, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
WITH_DROPOUT = {
    "gpt2": GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=128,
        resid_pdrop=0.5,
        embd_pdrop=0.5,
        attn_pdrop=0.5,
        **SMALL,
    ),
    "opt": OPTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
        dropout=0.5,
        attention_dropout=0.5,
        **SMALL,
    ),
}


def loaded(folder, family: str) -> Policy:
    save_model(folder, byte_tokenizer(), WITH_DROPOUT[family])
    return load_policy(PolicyConfig(model=str(folder), device="cpu"), 1.0)


@pytest.mark.parametrize("family", WITH_DROPOUT)
def test_the_dropout_of_a_checkpoints_own_configuration_is_off_in_updates(tmp_path, family):
    policy = loaded(tmp_path / "model", family)
    sampler = TransformersSampler(policy, 8, 4096)
    prompt = Prompt("00", "2+2=", tuple(policy.tokenizer.encode("2+2=")), "4")
    drawn = [each.completion for each in sampler.sample([SampleRequest(prompt, 6, (0,))])]
    made = [
        TrainingExample(prompt.token_ids, each.token_ids, 1.0, 1.0, each.sampling_logprobs)
        for each in drawn
    ]
    maker = updater(policy, PolicyLoss((0.2, 0.28)), updates_per_step=2, learning_rate=1e-30)
    metrics = maker.step(made)
    assert metrics.sampler_gap_max is not None
    assert metrics.sampler_gap_max < 1e-4
    assert metrics.clip_fraction == 0
    assert not any(module.training for module in policy.model.modules())


COMMON = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED = {**COMMON, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
WIDE = {**COMMON, "intermediate_size": 32}
GEMMA = {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 8}
FFN = {**COMMON, "ffn_dim": 32, "max_position_embeddings": 64}
FAMILIES = {
    "gemma": GemmaConfig(**GROUPED),
    "gemma2": Gemma2Config(**GEMMA),
    "gemma3": Gemma3TextConfig(**GEMMA),
    "gpt2": GPT2Config(**COMMON, n_positions=64),
    "opt": OPTConfig(**FFN, word_embed_proj_dim=16),
    "opt, norms after": OPTConfig(**FFN, word_embed_proj_dim=8, do_layer_norm_before=False),
    "neox": GPTNeoXConfig(**WIDE),
    "bloom": BloomConfig(**COMMON),
    "phi": PhiConfig(**WIDE),
    "phi3": Phi3Config(**WIDE),
    "mistral": MistralConfig(**GROUPED),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1),
}


def made(policy: Policy, family: str) -> Policy:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return Policy(model, policy.tokenizer)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral"])
def test_exact_norms_are_those_of_one_sample_at_a_time(policy, family):
    own = made(policy, family)
    drawn = examples(own, 5)
    slow = gradient_norms(own, drawn, "exact_slow", group_sizes=[2, 3])
    for tokens in (16, 4096):
        fast = gradient_norms(own, drawn, "exact", max_tokens=tokens)
        np.testing.assert_allclose(fast.squares, slow.squares, rtol=1e-4)
    fast = gradient_norms(own, drawn, "exact", group_sizes=[2, 3])
    for one, other in zip(fast.products or (), slow.products or (), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * slow.squares.max())


@pytest.mark.parametrize(
    ("family", "method", "advice"),
    [
        ("gemma2", "last_layer", "exact, exact_slow (one sample at a time) or none"),
        ("mixtral", "exact", "exact_slow (one sample at a time), last_layer or none"),
    ],
)
def test_advice_works_for_the_model_it_is_given_for(policy, family, method, advice):
    own = made(policy, family)
    drawn = examples(own, 2)
    with pytest.raises(InputError, match=re.escape(f"set grad_norm to {advice}")):
        gradient_norms(own, drawn, method)
    for other in re.findall(r"exact_slow|exact|last_layer", advice):
        assert (gradient_norms(own, drawn, other).squares > 0).all()


def test_a_frozen_model_with_capped_logits_has_no_norms(policy):
    own = made(policy, "gemma2")
    own.model.requires_grad_(False)
    for method in ("exact", "exact_slow", "last_layer"):
        with pytest.raises(InputError, match="set grad_norm to none"):
            gradient_norms(own, examples(own, 2), method)
