"""Models that a method does not cover: a right number or a refusal, never a wrong number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dibs.model.grad_norms import gradient_norms
from dibs.types import InputError, NonFiniteError, TrainingExample
from tiny_gradients import check_exact, make_policy, reference_products, with_lora
from tiny_policies import examples


@pytest.mark.parametrize("tied", [True, False])
def test_logits_changed_after_the_output_layer(policy, tied):
    """Capped logits: exact goes through the model's own logits, last_layer says it cannot."""
    policy = make_policy(policy, tied=tied)
    inner = policy.model.forward

    def capped(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = 5 * (output.logits / 5).tanh()
        return output

    policy.model.forward = capped
    policy.find_output_head()
    made = examples(policy, 4)
    check_exact(policy, made)
    with pytest.raises(InputError, match="not a Linear output layer of its last hidden state"):
        gradient_norms(policy, made, "last_layer")


class Scaled(nn.Module):
    """A module whose parameter is used in a way of its own."""

    def __init__(self, inner: nn.Module, use) -> None:
        super().__init__()
        self.inner, self.use = inner, use
        self.strength = nn.Parameter(torch.ones(16))

    def forward(self, hidden):
        return self.use(self.inner(hidden), self.strength)


@pytest.mark.parametrize(
    "use",
    [
        lambda hidden, strength: hidden * (1 + strength).square(),
        lambda hidden, strength: hidden + (2 * hidden.sum(2, keepdim=True)) * (1 + strength).cos(),
        lambda hidden, strength: hidden @ strength.diag(),
        lambda hidden, strength: hidden * strength.view(1, 1, -1).exp(),
    ],
)
def test_a_parameter_that_is_not_covered_is_named_and_exact_slow_covers_it(policy, use):
    policy = make_policy(policy)
    policy.model.model.norm = Scaled(policy.model.model.norm, use)
    made = examples(policy, 3)
    with pytest.raises(InputError, match=r"parameter model\.norm\.strength.*exact_slow"):
        gradient_norms(policy, made)
    assert all(p.grad is None and p.requires_grad for p in policy.model.parameters())
    expected = np.diag(reference_products(policy, made))
    measured = gradient_norms(policy, made, "exact_slow").squares
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_a_vector_made_of_a_parameter_is_covered(policy):
    """Gemma's norms multiply with ``1 + weight.float()``."""
    policy = make_policy(policy)
    norm = policy.model.model.norm
    policy.model.model.norm = Scaled(norm, lambda hidden, s: hidden * (1.5 + s.float().add(0.5)))
    check_exact(policy, examples(policy, 4))


def mixed_up(mlp, order: str):
    inner = mlp.forward

    def forward(hidden):
        size = hidden.shape
        if order == "sample by sample":
            return inner(hidden.flatten(0, 1)).view(size)
        if order == "token by token":
            turned = hidden.transpose(0, 1)
            return inner(turned.flatten(0, 1)).view(turned.shape).transpose(0, 1)
        rows = torch.arange(size[0] * size[1] - 1, -1, -1)
        return inner(hidden.flatten(0, 1)[rows])[rows].view(size)

    mlp.forward = forward


def test_all_tokens_sample_by_sample_are_covered(policy):
    policy = make_policy(policy)
    mixed_up(policy.model.model.layers[0].mlp, "sample by sample")
    check_exact(policy, examples(policy, 4))


@pytest.mark.parametrize("order", ["token by token", "backwards"])
def test_tokens_of_samples_mixed_up_are_refused(policy, order):
    """As mixtures of experts may do, which pick tokens."""
    policy = make_policy(policy)
    mixed_up(policy.model.model.layers[0].mlp, order)
    with pytest.raises(
        InputError, match=r"layers\.0\.mlp\..*whose first axis is not the batch of 3"
    ):
        gradient_norms(policy, examples(policy, 3))


def test_a_layer_used_twice_is_refused(policy):
    policy = make_policy(policy)
    layers = policy.model.model.layers
    layers[1].mlp = layers[0].mlp
    with pytest.raises(InputError, match=r"layers\.0\.mlp\..*more than once"):
        gradient_norms(policy, examples(policy, 3))


@pytest.mark.parametrize("method", ["exact", "exact_slow"])
def test_nothing_to_measure_is_said(policy, method):
    made = examples(policy, 2)
    with pytest.raises(InputError, match="no parameter of lora of Qwen2ForCausalLM is trainable"):
        gradient_norms(policy, made, method, parameters="lora")
    policy.model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of Qwen2ForCausalLM is trainable"):
        gradient_norms(policy, made, method)
    assert gradient_norms(policy, made, "last_layer").norms.min() > 0


def test_norms_that_are_not_finite_are_refused(policy):
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[0, 0] = torch.nan
    for method in ("exact", "exact_slow", "last_layer"):
        with pytest.raises(NonFiniteError, match="gradient norm"):
            gradient_norms(policy, examples(policy, 2), method)


class Subclassed(nn.Linear):
    """A Linear whose weight is not all there is to it, as loralib has it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        self.weight = base.weight
        self.extra = nn.Parameter(torch.randn(base.out_features, 1) * 0.3)

    def forward(self, hidden):
        return nn.functional.linear(hidden, self.weight) + nn.functional.linear(
            hidden[..., :1], self.extra
        )


def with_subclassed_head(model):
    model.lm_head = Subclassed(model.lm_head)


def with_weight_norm(model):
    nn.utils.parametrizations.weight_norm(model.lm_head)


def with_logit_bias(model):
    model.logit_bias = nn.Parameter(torch.zeros(60))
    inner = model.forward

    def biased(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = torch.add(output.logits, model.logit_bias)
        return output

    model.forward = biased


def with_small_softcap(model):
    inner = model.forward

    def capped(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = 1e4 * (output.logits / 1e4).tanh()
        return output

    model.forward = capped


@pytest.mark.parametrize(
    ("change", "covered"),
    [
        (with_subclassed_head, True),
        (with_weight_norm, False),
        (with_logit_bias, False),
        (with_small_softcap, True),
    ],
)
def test_an_output_layer_that_is_more_than_its_weight(policy, change, covered):
    """Never a wrong number: exact is right or refuses, last_layer refuses."""
    policy = make_policy(policy)
    change(policy.model)
    policy.find_output_head()
    made = examples(policy, 4)
    with pytest.raises(InputError, match="not a Linear output layer"):
        gradient_norms(policy, made, "last_layer")
    if covered:
        check_exact(policy, made)
    else:
        with pytest.raises(InputError, match="exact_slow"):
            gradient_norms(policy, made)
    expected = np.diag(reference_products(policy, made))
    np.testing.assert_allclose(
        gradient_norms(policy, made, "exact_slow").squares, expected, rtol=1e-5
    )


def test_gradients_cut_off_by_reentrant_checkpointing_are_refused(policy):
    policy = with_lora(make_policy(policy), target_modules=["q_proj"])
    policy.model.gradient_checkpointing_enable({"use_reentrant": True})
    policy.model.disable_input_require_grads()
    made = examples(policy, 2)
    with pytest.raises(InputError, match="gradients do not reach"):
        gradient_norms(policy, made)
    with pytest.raises(InputError, match="depends on none"):
        gradient_norms(policy, made, "exact_slow")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "Exact"}, "unknown method 'Exact'"),
        ({"parameters": "embeddings"}, "unknown parameters 'embeddings'"),
        ({"method": "last_layer", "parameters": "lora"}, "belongs to the exact methods"),
        ({"sketch": 8}, "belongs to the method last_layer"),
        ({"method": "last_layer", "sketch": 0}, "at least 1 entry"),
        ({"group_sizes": [3]}, "groups of 3 in all, but 2 sequences"),
        ({"group_sizes": [3, -1]}, "groups of 2 in all, but 2 sequences"),
    ],
)
def test_arguments_that_do_not_go_together(policy, options, message):
    with pytest.raises(ValueError, match=message):
        gradient_norms(policy, examples(policy, 2), **options)


def test_an_empty_context_is_refused(policy):
    with pytest.raises(ValueError, match="sequence 0 has an empty context"):
        gradient_norms(policy, [TrainingExample((), (3,), 0.0, 0.0)])


def test_exact_slow_takes_scalar_parameters(policy):
    policy = make_policy(policy)
    norm = Scaled(policy.model.model.norm, lambda hidden, strength: hidden * strength.exp())
    norm.strength = nn.Parameter(torch.tensor(0.1))
    policy.model.model.norm = norm
    made = examples(policy, 2)
    expected = np.diag(reference_products(policy, made))
    np.testing.assert_allclose(
        gradient_norms(policy, made, "exact_slow").squares, expected, rtol=1e-5
    )
