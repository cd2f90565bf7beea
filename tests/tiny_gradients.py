"""Tiny policies of real architectures, and gradients of their completions the slow way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import peft
import torch
from torch import nn
from torch.func import functional_call, grad
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dibs.model.grad_norms import gradient_norms
from dibs.model.policy import Policy
from dibs.types import TrainingExample

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 60,
    "initializer_range": 0.3,
}
FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def make_policy(
    template: Policy,
    family: str = "qwen2",
    tied: bool = False,
    temperature: float = 1.0,
    **options: Any,
) -> Policy:
    torch.manual_seed(0)
    config, model = FAMILIES[family]
    made = model(config(**SIZES, tie_word_embeddings=tied, **options))
    for parameter in made.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0, 0.3)
    return Policy(made.eval(), template.tokenizer, temperature)


def with_lora(policy: Policy, **options: Any) -> Policy:
    config = peft.LoraConfig(r=3, lora_dropout=0.2, init_lora_weights=False, **options)
    return Policy(
        peft.get_peft_model(policy.model, config).eval(), policy.tokenizer, policy.temperature
    )


def reference(policy: Policy, example: TrainingExample) -> dict[str, torch.Tensor]:
    """torch.func: gradient of one completion's log-probability, no padding, no batch."""
    ids = torch.tensor([[*example.context_ids, *example.completion_ids]])
    start = len(example.context_ids)
    trainable = {n: p.detach() for n, p in policy.model.named_parameters() if p.requires_grad}

    def logprob(parameters):
        logits = functional_call(policy.model, parameters, (ids,), tie_weights=True).logits[0]
        table = (logits.float() / policy.temperature).log_softmax(-1)
        return sum(
            (table[start + t - 1, y] for t, y in enumerate(example.completion_ids)),
            start=table.sum() * 0,
        )

    return grad(logprob)(trainable)


def reference_products(
    policy: Policy, made: Sequence[TrainingExample], names: Sequence[str] | None = None
) -> np.ndarray:
    rows = [
        torch.cat([g.flatten() for n, g in reference(policy, e).items() if not names or n in names])
        for e in made
    ]
    flat = torch.stack(rows).double()
    return (flat @ flat.T).numpy()


def check_exact(
    policy: Policy, made: Sequence[TrainingExample], rtol: float = 1e-5, **options: Any
) -> None:
    expected = np.sqrt(np.diag(reference_products(policy, made)))
    measured = gradient_norms(policy, made, "exact", **options).norms
    np.testing.assert_allclose(measured, expected, rtol=rtol)
