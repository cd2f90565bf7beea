"""Prompts computed once for several completions: the same log-probabilities and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from dibs.model import packing
from dibs.model.batching import pass_cost
from dibs.model.packing import COPY_MEMORY, cheapest_batches, packed_batches
from dibs.model.policy import Policy
from dibs.model.prompt_sharing import share_prompts, unseen_window, why_not_shared
from dibs.training.dropout import set_update_mode
from dibs.types import TrainingExample
from tiny_gradients import with_lora

COMMON = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
GROUPED = {**COMMON, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
SLIDING = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5}
FAMILIES = {
    "qwen2": Qwen2Config(**GROUPED),
    "qwen2, one layer with a window": Qwen2Config(**GROUPED, **SLIDING),
    "qwen3": Qwen3Config(**GROUPED),
    "llama": LlamaConfig(**GROUPED),
    "mistral, no window": MistralConfig(**GROUPED, sliding_window=None),
    "mistral, window 4": MistralConfig(**GROUPED, sliding_window=4),
    "mistral, window 11": MistralConfig(**GROUPED, sliding_window=11),
    "neox": GPTNeoXConfig(**COMMON, intermediate_size=32),
    "gemma3": Gemma3TextConfig(**GROUPED, query_pre_attn_scalar=8, sliding_window=6),
    "gpt2": GPT2Config(**COMMON, n_positions=64),
    "opt": OPTConfig(
        **COMMON, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3
    ),
    "phi3": Phi3Config(**COMMON, intermediate_size=32, pad_token_id=0),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1),
}
LENGTHS = [(9, (4, 1, 7, 3)), (5, (6,)), (12, (2, 8)), (1, (3, 3)), (7, (0, 5)), (9, (1,))]
"""Of a prompt, and of each of its completions."""


def made(policy: Policy, family: str) -> Policy:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family])).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return Policy(model, policy.tokenizer)


def groups(lengths: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[TrainingExample]:
    """Random tokens; the completions of different prompts in turns."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 60, (count,), generator=draw).tolist())

    made = []
    for prompt, completions in lengths:
        context = tokens(prompt)
        made += [TrainingExample(context, tokens(length), 1.0, 1.0) for length in completions]
    return made[::2] + made[1::2]


def gradient(policy: Policy, batches, slopes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of the log-probabilities, each weighed by its slope."""
    policy.model.zero_grad(set_to_none=True)
    for indices, batch in batches:
        logprobs = policy.logprobs(batch)
        for i, row in zip(indices, logprobs, strict=True):
            (row[: len(slopes[i])] * slopes[i]).sum().backward(retain_graph=True)
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def slopes_of(sequences: Sequence[TrainingExample]) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(len(s.completion_ids), generator=draw) for s in sequences]


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() <= tolerance * expected.norm()


def assert_same_as_plain(policy: Policy, sequences: Sequence[TrainingExample]) -> None:
    plain, slopes = policy.collate(sequences), slopes_of(sequences)
    every = range(len(sequences))
    expected = policy.logprobs_and_entropy(plain)
    expected_gradient = gradient(policy, [(every, plain)], slopes)
    share_prompts(policy, on=True)
    packed = policy.pack(sequences)
    for one, other in zip(policy.logprobs_and_entropy(packed), expected, strict=True):
        assert_close(one, other)
    assert_close(gradient(policy, [(every, packed)], slopes), expected_gradient)
    # A batch that is not packed is computed as before.
    assert torch.equal(policy.logprobs(plain), expected[0])
    share_prompts(policy, on=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_the_plain_path(policy, family):
    own = made(policy, family)
    assert why_not_shared(own) is None
    assert_same_as_plain(own, groups(LENGTHS))


@pytest.mark.parametrize("family", ["qwen2, one layer with a window", "neox"])
def test_the_gradient_does_not_depend_on_how_groups_are_packed(policy, family):
    own = made(policy, family)
    sequences = groups(LENGTHS)
    slopes = slopes_of(sequences)
    share_prompts(own, on=True)
    found = []
    for most in (10**6, 70, 30, 1):
        packed, _ = packed_batches(sequences, most, 1000.0, 16)
        assert sorted(i for indices in packed for i in indices) == list(range(len(sequences)))
        batches = [(indices, own.pack([sequences[i] for i in indices])) for indices in packed]
        found.append((len(batches), gradient(own, batches, slopes)))
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    for _, each in found[1:]:
        assert_close(each, found[0][1])


def test_each_token_is_computed_once(policy):
    """Completions (7, 8, 9) and (7) of prompt (5, 6); an empty one and (3, 2) of prompt (4,)."""
    sequences = [
        TrainingExample((5, 6), (7, 8, 9), 0.0, 0.0),
        TrainingExample((4,), (), 0.0, 0.0),
        TrainingExample((5, 6), (7,), 0.0, 0.0),
        TrainingExample((4,), (3, 2), 0.0, 0.0),
    ]
    batch = policy.pack(sequences)
    assert batch.input_ids.tolist() == [[5, 6, 4, 7, 8, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 2, 3, 1]]
    pad = policy.pad_id
    assert batch.completion_ids.tolist() == [[7, 8, 9], [pad] * 3, [7, pad, pad], [3, 2, pad]]
    assert batch.completion_mask.sum(1).tolist() == [3, 0, 1, 2]
    places = [row.tolist() for row in batch.predictors.split((3, 0, 1, 2))]
    assert places == [[1, 3, 4], [], [1], [2, 5]]


def test_the_output_layer_sees_no_padding(policy):
    """One completion of nine tokens beside seven of one: 16 rows, not 72."""
    sequences = [TrainingExample((5, 6), (7,) * (9 if i == 0 else 1), 0.0, 0.0) for i in range(8)]
    batch = policy.pack(sequences)
    assert policy.hidden_states(batch).shape[0] == 16
    assert policy.logits(batch).shape[0] == 16
    assert policy.logprobs(batch).shape == (8, 9)


@pytest.mark.parametrize(
    "lengths",
    [[(1, (1,))], [(6, (1, 1, 1))], [(3, (0, 0))], [(4, (5, 5, 5)), (4, (5, 5))]],
    ids=["one token", "no tail", "empty completions", "equal lengths"],
)
def test_degenerate_groups(policy, lengths):
    own = made(policy, "llama")
    sequences = groups(lengths)
    expected = own.logprobs(own.collate(sequences))
    share_prompts(own, on=True)
    found = own.logprobs(own.pack(sequences))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_adapters_and_checkpointed_layers(policy):
    own = with_lora(made(policy, "qwen2"), target_modules="all-linear")
    own.model.gradient_checkpointing_enable({"use_reentrant": False})
    set_update_mode(own.model)
    for name, module in own.model.named_modules():
        if ".lora_dropout." in name:
            module.training = False
    assert any(module.training for module in own.model.modules())
    assert_same_as_plain(own, groups(LENGTHS))


def test_a_model_without_a_plain_output_layer(policy):
    own = made(policy, "llama")
    own.output_head = None
    assert_same_as_plain(own, groups(LENGTHS))


def test_a_copy_of_the_policy_takes_packed_batches(policy):
    own = made(policy, "llama")
    share_prompts(own, on=True)
    batch = own.pack(groups(LENGTHS))
    torch.testing.assert_close(own.frozen_copy().logprobs(batch), own.logprobs(batch))


def test_memory_is_bounded():
    """Weights of batches: tokens, and an eighth for each copied key."""
    sequences = groups([(20, (7,) * 9), (31, (3, 9, 1)), (2, (40,))])
    for most in (60, 100, 300):
        for indices in packed_batches(sequences, most, 10.0, 64)[0]:
            chosen = [sequences[i] for i in indices]
            contexts = {s.context_ids for s in chosen}
            tails = [len(s.completion_ids) - 1 for s in chosen]
            copies = len(chosen) * (max(map(len, contexts)) + max(tails))
            tokens = sum(map(len, contexts)) + sum(tails)
            assert len(chosen) == 1 or tokens + COPY_MEMORY * copies <= most


def test_prompts_are_shared_where_that_costs_less():
    device = torch.device("cpu")
    for lengths, shared in (
        ([(256, (64,) * 8)], True),
        ([(16, (32,) * 8)] * 4, True),
        ([(256, (64,))] * 4, False),
        ([(1, (64, 64))] * 4, False),
        ([(300, (64,)), (200, (30, 30))], True),
    ):
        sequences = [e for i, one in enumerate(lengths) for e in groups([one], seed=i)]
        found = [cheapest_batches(sequences, 4096, device, 256) for _ in range(2)]
        assert found[0] == found[1]
        indices, packed = found[0]
        assert packed is shared
        assert sorted(i for each in indices for i in each) == list(range(len(sequences)))


def test_the_shorter_search_chooses_what_both_searches_would(monkeypatch):
    """Plain batches are grouped only where they may be cheaper; the choice is that of grouping both."""
    rng = np.random.default_rng(0)
    device = torch.device("cpu")
    grouped: list[int] = []
    plain_ones = packing.micro_batches

    def counted(sequences, *rest):
        grouped.append(len(sequences))
        return plain_ones(sequences, *rest)

    monkeypatch.setattr(packing, "micro_batches", counted)
    chosen = []
    for trial in range(60):
        longest = 5 if trial % 2 else 150  # of the prompts
        lengths = [
            (int(rng.integers(1, longest)), tuple(rng.integers(1, 60, rng.integers(1, 9)).tolist()))
            for _ in range(6)
        ]
        sequences = [e for i, one in enumerate(lengths) for e in groups([one], seed=10 * trial + i)]
        _, packed_cost = packed_batches(sequences, 2000, pass_cost(device), 16)
        plain_cost = 0.0
        for indices in plain_ones(sequences, 2000, device):
            contexts = max(len(sequences[i].context_ids) for i in indices)
            length = contexts + max(len(sequences[i].completion_ids) for i in indices)
            plain_cost += len(indices) * (length + length**2 / (12 * 16)) + pass_cost(device)
        _, packed = cheapest_batches(sequences, 2000, device, 16)
        assert packed is (packed_cost < plain_cost)
        chosen.append(packed)
    assert 0 < sum(chosen) < 60
    assert 0 < len(grouped) < 60


def test_what_the_configuration_shows(policy):
    own = made(policy, "mistral, window 4")
    assert why_not_shared(own, dropout=0.25) == "policy.lora.dropout is 0.25"
    compiled = Policy(own.model, own.tokenizer, compiled=True)
    assert why_not_shared(compiled) == "policy.compile compiles the model"
    own.model.config.layer_types = ["full_attention", "linear_attention"]
    assert why_not_shared(own) == "MistralForCausalLM has layers of linear_attention"
    own.model.set_attn_implementation("eager")
    assert why_not_shared(own) == "MistralForCausalLM runs the attention eager, not sdpa"


def test_a_window_that_attention_does_not_get_is_noticed(policy):
    own = made(policy, "mistral, window 4")
    share_prompts(own, on=True)
    batch = own.pack(groups(LENGTHS))
    message = "MistralForCausalLM does not pass its sliding window to attention"
    assert unseen_window(own, batch) == message
    own.logprobs(batch)
    assert unseen_window(own, batch) is None
    own.model.config.sliding_window = 5
    assert unseen_window(own, batch) == message
