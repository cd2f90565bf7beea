"""Log-probabilities, padding, micro-batches, loading."""

from __future__ import annotations

import pytest
import torch

from dibs.config import PolicyConfig
from dibs.model.batching import micro_batches
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.model.token_logprobs import full_logprobs, token_logprobs
from dibs.types import InputError
from tiny_policies import examples, gradient_of, naive_logprobs, updater


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padded_logprobs_match_one_sequence_at_a_time(policy, temperature):
    policy = Policy(policy.model, policy.tokenizer, temperature)
    made = examples(policy, 9)
    with torch.no_grad():
        rows = policy.logprobs(policy.collate(made))
    for row, example in zip(rows, made, strict=True):
        length = len(example.completion_ids)
        torch.testing.assert_close(row[:length], naive_logprobs(policy, example))
        assert not row[length:].any()


def test_an_end_that_is_also_the_padding_is_learned(policy):
    """Masks are made of lengths: a tokenizer without a pad token of its own loses no end."""
    made = examples(policy, 9)
    end = policy.tokenizer.eos_token_id
    maker = updater(policy)
    expected = policy.logprobs(policy.collate(made)), gradient_of(maker, made)
    assert policy.pad_id != end
    policy.pad_id = end
    found = policy.logprobs(policy.collate(made)), gradient_of(maker, made)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    for row, example in zip(found[0], made, strict=True):
        assert example.completion_ids[-1] == end
        assert row[len(example.completion_ids) - 1] < 0


def test_micro_batches_cover_everything_once_within_the_limit(policy):
    made = examples(policy, 50)
    groups = list(micro_batches(made, 100))
    assert sorted(i for group in groups for i in group) == list(range(50))
    for group in groups:
        width = max(len(made[i].context_ids) for i in group)
        width += max(len(made[i].completion_ids) for i in group)
        assert len(group) * width <= 100
    assert [len(group) for group in micro_batches(made, 1)] == [1] * 50
    assert list(micro_batches([], 10)) == []


def test_a_saved_policy_loads_with_the_same_tokenizer_and_weights(policy, tmp_path):
    policy.save(tmp_path)
    loaded = load_policy(PolicyConfig(model=str(tmp_path), device="cpu"), 1.0)
    text = "17A+4B*3="
    # AutoTokenizer would take Qwen2's own class, which splits 17 into two tokens.
    assert loaded.tokenizer.encode(text) == policy.tokenizer.encode(text)
    assert len(loaded.tokenizer.encode(text)) == 8
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    made = examples(policy, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.logprobs(loaded.collate(made)), policy.logprobs(policy.collate(made))
        )


def test_a_missing_model_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"policy.model .*nowhere: no such folder") as caught:
        load_policy(PolicyConfig(model=str(tmp_path / "nowhere")), 1.0)
    assert "\n" not in str(caught.value)


def test_the_reference_does_not_move_with_the_policy(policy):
    made = examples(policy, 2)
    reference = policy.frozen_copy()
    before = reference.logprobs(reference.collate(made))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(reference.logprobs(reference.collate(made)), before)
    assert not any(p.requires_grad for p in reference.model.parameters())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_of_logits_give_what_full_logits_give(monkeypatch, temperature, bias):
    """Values, entropies and all three gradients, with blocks of three tokens."""
    monkeypatch.setattr("dibs.model.token_logprobs._BLOCK", 3 * 50)
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(8, 50, bias=bias)
    hidden = torch.randn(4, 5, 8, generator=generator, requires_grad=True)
    tokens = torch.randint(50, (4, 5), generator=generator)
    slopes = torch.randn(4, 5, generator=generator)
    wanted = [hidden, *layer.parameters()]

    def gradients(values):
        return torch.autograd.grad((values * slopes).sum(), wanted)

    logprobs, entropy = token_logprobs(hidden, layer, tokens, temperature)
    expected, of_table = full_logprobs(layer(hidden) / temperature, tokens)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, of_table)
    assert not entropy.requires_grad
    for one, other in zip(gradients(logprobs), gradients(expected), strict=True):
        torch.testing.assert_close(one, other)


def test_blocks_of_logits_under_autocast():
    """bfloat16 products of float32 weights, forward and backward; sums of gradients in float32."""
    layer = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(6, 8, requires_grad=True)
    tokens = torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = token_logprobs(hidden, layer, tokens, 1.0)
        expected, _ = full_logprobs(layer(hidden).float(), tokens)
    torch.testing.assert_close(logprobs, expected)
    one, other = (
        torch.autograd.grad(values.sum(), [hidden, layer.weight]) for values in (logprobs, expected)
    )
    for a, b in zip(one, other, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)


def test_logits_that_are_changed_after_the_output_layer_are_used_whole(policy):
    """Gemma caps its logits; blocks of the bare layer would be wrong."""
    made = examples(policy, 4)
    plain = policy.logprobs(policy.collate(made))
    assert policy.output_head is policy.model.lm_head
    inner = policy.model.forward

    def capped(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = 0.5 * (output.logits / 0.5).tanh()
        return output

    policy.model.forward = capped
    policy = Policy(policy.model, policy.tokenizer)
    batch = policy.collate(made)
    expected, _ = full_logprobs(policy.logits(batch), batch.completion_ids)
    found = policy.logprobs(batch)
    assert policy.output_head is None
    torch.testing.assert_close(found, expected * batch.completion_mask)
    assert not torch.allclose(found, plain, atol=1e-3)
