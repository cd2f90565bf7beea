"""The closed form of the output layer's gradient norm against autograd, one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dibs import gradnorm
from dibs.gradnorm import check_output_layer, last_layer_norms
from dibs.policy import Policy
from dibs.types import InputError, NonFiniteError, TrainingExample
from test_policy import examples

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 60,
}


def make_policy(template: Policy, family: str, tied: bool, temperature: float) -> Policy:
    torch.manual_seed(0)
    config, model = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    made = model(config(**SIZES, tie_word_embeddings=tied, initializer_range=0.3))
    return Policy(made.eval(), template.tokenizer, temperature)


def autograd_norm(policy: Policy, example: TrainingExample) -> float:
    """Norm of the gradient through a detached copy of the output matrix, no padding, no batch."""
    weight = policy.model.get_output_embeddings().weight.detach().clone().requires_grad_()
    ids = torch.tensor([[*example.context_ids, *example.completion_ids]])
    hidden = policy.model.base_model(input_ids=ids).last_hidden_state[0].detach()
    table = (hidden @ weight.T / policy.temperature).log_softmax(-1)
    start = len(example.context_ids)
    logprob = sum(table[start + t - 1, y] for t, y in enumerate(example.completion_ids))
    (gradient,) = torch.autograd.grad(logprob, weight)
    return float(gradient.norm())


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [8192, 7])
def test_norms_match_autograd(policy, monkeypatch, family, tied, temperature, chunk):
    monkeypatch.setattr(gradnorm, "_VOCABULARY_CHUNK", chunk)
    policy = make_policy(policy, family, tied, temperature)
    made = examples(policy, 12)
    expected = [autograd_norm(policy, example) for example in made]
    np.testing.assert_allclose(last_layer_norms(policy, made), expected, rtol=1e-5)
    np.testing.assert_allclose(last_layer_norms(policy, made, max_tokens=60), expected, rtol=1e-5)


def test_an_empty_completion_has_norm_zero(policy):
    made = [TrainingExample((2, 3), (), 0.0, 0.0), *examples(policy, 1)]
    norms = last_layer_norms(policy, made)
    assert norms[0] == 0
    assert norms[1] > 0
    assert last_layer_norms(policy, made[:1]).tolist() == [0.0]
    assert last_layer_norms(policy, []).shape == (0,)


def test_an_output_bias_counts(policy):
    policy = make_policy(policy, "qwen2", tied=False, temperature=0.8)
    head = torch.nn.Linear(16, 60, bias=True)
    policy.model.set_output_embeddings(head)
    made = examples(policy, 3)
    for norm, example in zip(last_layer_norms(policy, made), made, strict=True):
        policy.model.zero_grad()
        policy.logprobs(policy.collate([example])).sum().backward()
        expected = (head.weight.grad.norm() ** 2 + head.bias.grad.norm() ** 2).sqrt()
        assert norm == pytest.approx(expected.item(), rel=1e-5)


def test_training_mode_is_put_back(policy):
    policy.model.train()
    last_layer_norms(policy, examples(policy, 2))
    assert policy.model.training


def test_norms_that_are_not_finite_are_refused(policy):
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="gradient norm"):
        last_layer_norms(policy, examples(policy, 2))


def test_a_model_that_changes_its_logits_is_refused(policy):
    example = examples(policy, 1)[0]
    check_output_layer(policy, example)
    inner = policy.model.forward

    def capped(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output

    policy.model.forward = capped
    with pytest.raises(InputError, match="changes its logits after the output layer"):
        check_output_layer(policy, example)
