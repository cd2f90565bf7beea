"""Families beyond Qwen and Llama: their own dropout is off, and sampler and learner agree."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, OPTConfig

from dibs.config import PolicyConfig
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.rollouts.sampling.sampler import SampleRequest
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.losses import PolicyLoss
from dibs.types import Prompt, TrainingExample
from odd_models import byte_tokenizer, save_model
from tiny_policies import updater

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
