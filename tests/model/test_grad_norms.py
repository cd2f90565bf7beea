"""Per-sample gradient norms against torch.func, one sample at a time, on real architectures."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dibs.config import GradNormMethod, GradNormParameters
from dibs.model.grad_norms import gradient_norms, output_layer, products
from dibs.model.grad_norms.products import Products
from dibs.model.grad_norms.recorder import Recorder
from dibs.model.policy import Policy
from dibs.types import TrainingExample
from tiny_gradients import (
    FAMILIES,
    SIZES,
    check_exact,
    make_policy,
    reference,
    reference_products,
    with_lora,
)
from tiny_policies import examples


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_exact_norms_match_torch_func(policy, family, tied, temperature):
    policy = make_policy(policy, family, tied, temperature)
    made = examples(policy, 8)
    check_exact(policy, made)
    check_exact(policy, made, max_tokens=1)
    check_exact(policy, made[:1])


def test_nothing_of_a_measurement_is_left(policy):
    """A graph that is kept with what was recorded would be kept for good."""
    made = examples(policy, 4)
    for _ in range(3):
        gradient_norms(policy, made)
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) in (Recorder, Products)] == []


@pytest.mark.parametrize("tied", [True, False])
def test_both_forms_of_a_linear_layer_agree(policy, monkeypatch, tied):
    policy = make_policy(policy, "qwen3", tied)
    made = examples(policy, 6)
    for block, chunk in itertools.product([2**20, 40], [2**22, 7 * 60, 30]):
        monkeypatch.setattr(products, "_BLOCK", block)
        monkeypatch.setattr(output_layer, "_CHUNK", chunk)
        for form in (True, False):
            monkeypatch.setattr(products, "gram_is_cheaper", lambda *shape, form=form: form)
            check_exact(policy, made)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", [["q_proj"], "all-linear", ["up_proj", "lm_head"]])
def test_exact_norms_of_lora_weights(policy, family, target):
    policy = with_lora(make_policy(policy, family, temperature=0.8), target_modules=target)
    check_exact(policy, examples(policy, 5))
    check_exact(policy, examples(policy, 5), parameters="lora")


def test_lora_beside_a_trained_output_layer(policy):
    policy = with_lora(make_policy(policy), target_modules=["v_proj"], modules_to_save=["lm_head"])
    made = examples(policy, 4)
    check_exact(policy, made)
    lora = [name for name, _ in policy.model.named_parameters() if "lora_" in name]
    expected = np.diag(reference_products(policy, made, lora))
    measured = gradient_norms(policy, made, parameters="lora").squares
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


@pytest.mark.parametrize("parameters", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("tied", [True, False])
def test_norms_over_one_named_matrix(policy, parameters, tied):
    policy = make_policy(policy, tied=tied)
    made = examples(policy, 5)
    name = "lm_head.weight" if parameters == "lm_head" and not tied else "model.embed_tokens.weight"
    expected = np.diag(reference_products(policy, made, [name]))
    for method in ("exact", "exact_slow"):
        measured = gradient_norms(policy, made, method, parameters=parameters).squares
        np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_the_padding_row_of_an_embedding_has_no_gradient(policy):
    policy = make_policy(policy, pad_token_id=5)
    made = [TrainingExample((3, 5, 5, 4), (5, 6), 0.0, 0.0), TrainingExample((5,), (5,), 0.0, 0.0)]
    check_exact(policy, made)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["exact", "exact_slow"])
def test_inner_products_within_groups(policy, tied, method):
    policy = make_policy(policy, "qwen3", tied, 0.7)
    made = examples(policy, 6)
    expected = reference_products(policy, made)
    measured = gradient_norms(policy, made, method, group_sizes=[4, 0, 2])
    assert measured.products is not None
    np.testing.assert_allclose(measured.squares, np.diag(expected), rtol=1e-5)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    for got, rows in zip(measured.products, [slice(0, 4), slice(0, 0), slice(4, 6)], strict=True):
        np.testing.assert_allclose(
            got / scale[rows, rows], (expected / scale)[rows, rows], atol=1e-5
        )


def test_inner_products_give_the_norm_of_a_mean_gradient(policy):
    policy = make_policy(policy, tied=True)
    made = examples(policy, 4)
    coefficients = np.array([1.0, -0.5, 0.25, 2.0])
    gradients = [reference(policy, example) for example in made]
    total = sum(
        float(sum(c * g[name] for c, g in zip(coefficients, gradients, strict=True)).norm() ** 2)
        for name in gradients[0]
    )
    (products,) = gradient_norms(policy, made, group_sizes=[4]).products or ()
    assert coefficients @ products @ coefficients == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("method", ["exact", "exact_slow", "last_layer"])
def test_an_empty_completion_has_norm_zero(policy, method):
    made = [TrainingExample((2, 3), (), 0.0, 0.0), *examples(policy, 1)]
    norms = gradient_norms(policy, made, method).norms
    assert norms[0] == 0
    assert norms[1] > 0
    assert gradient_norms(policy, made[:1], method).norms.tolist() == [0.0]
    nothing = gradient_norms(policy, [], method, group_sizes=[0])
    assert nothing.norms.shape == (0,)
    (products,) = nothing.products or ()
    assert products.shape == (0, 0)


def test_an_output_bias_counts(policy):
    policy = make_policy(policy, temperature=0.8)
    policy.model.set_output_embeddings(nn.Linear(16, 60, bias=True))
    policy.find_output_head()
    made = examples(policy, 3)
    check_exact(policy, made)
    expected = np.diag(reference_products(policy, made, ["lm_head.weight", "lm_head.bias"]))
    pairs: list[tuple[GradNormMethod, GradNormParameters]] = [
        ("last_layer", "all"),
        ("exact", "lm_head"),
    ]
    for method, parameters in pairs:
        measured = gradient_norms(policy, made, method, parameters=parameters).squares
        np.testing.assert_allclose(measured, expected, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_layer_norms_and_biases(policy, tied):
    """GPT-NeoX: LayerNorm with bias, biases everywhere, and parallel residuals."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if "key_value" not in k and k != "head_dim"}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, tie_word_embeddings=tied)).eval()
    policy = Policy(model, policy.tokenizer)
    check_exact(policy, examples(policy, 5))


def test_torchs_own_rms_norm(policy):
    policy = make_policy(policy)
    policy.model.model.norm = nn.RMSNorm(16, eps=1e-6)
    nn.init.normal_(policy.model.model.norm.weight)
    check_exact(policy, examples(policy, 4))
