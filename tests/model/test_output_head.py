"""The output head is found when a policy is made, and only where logits are that layer's output."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from dibs.model.grad_norms import gradient_norms
from dibs.model.output_head import find_output_head
from dibs.model.policy import Policy
from tiny_policies import examples

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_making_a_policy_leaves_modes_and_the_random_state_alone(policy):
    policy.model.train()
    policy.model.model.norm.eval()
    modes = [module.training for module in policy.model.modules()]
    state = torch.get_rng_state()
    made = Policy(policy.model, policy.tokenizer)
    assert made.output_head is policy.model.get_output_embeddings()
    assert [module.training for module in policy.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not made.output_head._forward_hooks


def test_measuring_norms_does_not_change_how_logprobs_are_computed(policy):
    """Even where the model was changed in between: only a new look finds another head."""
    head = policy.output_head
    policy.model.lm_head.register_forward_hook(lambda *_: None)
    for method in ("exact", "exact_slow", "last_layer"):
        gradient_norms(policy, examples(policy, 2), method)
        assert policy.output_head is head
    policy.find_output_head()
    assert policy.output_head is None


def test_the_reference_and_a_mixed_policy_have_heads_of_their_own(policy):
    reference = policy.frozen_copy()
    assert reference.output_head is reference.model.get_output_embeddings()
    assert reference.output_head is not policy.output_head
    assert Policy(policy.model, policy.tokenizer, 0.7, mixed=True).output_head is policy.output_head


@pytest.mark.parametrize(
    "model",
    [
        lambda: CohereForCausalLM(CohereConfig(**SIZES, pad_token_id=0, logit_scale=0.1)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, pad_token_id=0)),
    ],
    ids=["scaled", "capped"],
)
def test_logits_that_are_more_than_a_layer_have_no_head(model):
    torch.manual_seed(0)
    assert find_output_head(model()) is None


def test_adapters_at_the_output_layer_leave_no_head(policy):
    for target, plain in (("q_proj", True), ("lm_head", False)):
        config = peft.LoraConfig(r=2, target_modules=[target])
        adapted = peft.get_peft_model(policy.frozen_copy().model, config)
        assert (find_output_head(adapted) is not None) == plain


def test_a_trainable_parameter_beside_the_decoder_leaves_no_head(policy):
    """It has no effect yet, but updates may give it one."""
    policy.model.logit_bias = nn.Parameter(torch.zeros(len(policy.tokenizer)))
    assert find_output_head(policy.model) is None
    policy.model.logit_bias.requires_grad_(False)
    assert find_output_head(policy.model) is not None
