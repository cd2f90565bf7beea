"""Per-sample gradient norms against torch.func, one sample at a time, on real architectures."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import peft
import pytest
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

from dibs.model.grad_norms import gradient_norms, output_layer, recorder
from dibs.model.policy import Policy
from dibs.types import InputError, NonFiniteError, TrainingExample
from tiny_policies import examples

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
    template: Policy, family: str = "qwen2", tied: bool = False, temperature: float = 1.0, **options
) -> Policy:
    torch.manual_seed(0)
    config, model = FAMILIES[family]
    made = model(config(**SIZES, tie_word_embeddings=tied, **options))
    for parameter in made.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0, 0.3)
    return Policy(made.eval(), template.tokenizer, temperature)


def with_lora(policy: Policy, **options) -> Policy:
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


def reference_products(policy: Policy, made, names=None) -> np.ndarray:
    flat = [
        torch.cat([g.flatten() for n, g in reference(policy, e).items() if not names or n in names])
        for e in made
    ]
    flat = torch.stack(flat).double()
    return (flat @ flat.T).numpy()


def check_exact(policy: Policy, made, rtol: float = 1e-5, **options) -> None:
    expected = np.sqrt(np.diag(reference_products(policy, made)))
    measured = gradient_norms(policy, made, "exact", **options).norms
    np.testing.assert_allclose(measured, expected, rtol=rtol)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_exact_norms_match_torch_func(policy, family, tied, temperature):
    policy = make_policy(policy, family, tied, temperature)
    made = examples(policy, 8)
    check_exact(policy, made)
    check_exact(policy, made, max_tokens=1)
    check_exact(policy, made[:1])


@pytest.mark.parametrize("tied", [True, False])
def test_both_forms_of_a_linear_layer_agree(policy, monkeypatch, tied):
    policy = make_policy(policy, "qwen3", tied)
    made = examples(policy, 6)
    for block, chunk in itertools.product([2**20, 40], [2**22, 7 * 60, 30]):
        monkeypatch.setattr(recorder, "_BLOCK", block)
        monkeypatch.setattr(output_layer, "_CHUNK", chunk)
        for form in (True, False):
            monkeypatch.setattr(recorder, "gram_is_cheaper", lambda *shape, form=form: form)
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
    (products,) = gradient_norms(policy, made, group_sizes=[4]).products
    assert coefficients @ products @ coefficients == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [2**22, 30])
def test_last_layer_norms_match_autograd(policy, monkeypatch, family, tied, temperature, chunk):
    monkeypatch.setattr(output_layer, "_CHUNK", chunk)
    policy = make_policy(policy, family, tied, temperature)
    made = examples(policy, 12)
    flat = torch.stack([last_layer_gradient(policy, example).flatten() for example in made])
    expected = (flat @ flat.T).double().numpy()
    for max_tokens in (16384, 60):
        squares = gradient_norms(policy, made, "last_layer", max_tokens=max_tokens).squares
        np.testing.assert_allclose(squares, np.diag(expected), rtol=1e-5)
    products = gradient_norms(policy, made, "last_layer", group_sizes=[12]).products[0]
    np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-5 * expected.max())


def last_layer_gradient(policy: Policy, example: TrainingExample) -> torch.Tensor:
    """Gradient through a detached copy of the output matrix, so that tied embeddings are apart."""
    weight = policy.model.get_output_embeddings().weight.detach().clone().requires_grad_()
    ids = torch.tensor([[*example.context_ids, *example.completion_ids]])
    hidden = policy.model.base_model(input_ids=ids).last_hidden_state[0].detach()
    table = (hidden @ weight.T / policy.temperature).log_softmax(-1)
    start = len(example.context_ids)
    logprob = sum(table[start + t - 1, y] for t, y in enumerate(example.completion_ids))
    (gradient,) = torch.autograd.grad(logprob, weight)
    return gradient


def test_a_confident_token_keeps_its_precision(policy):
    """A probability of 1 - 1e-9 rounds to 1 in float32; its gradient must not round to 0."""
    policy = make_policy(policy)
    example = TrainingExample((7, 8), (9,), 0.0, 0.0)
    hidden = policy.hidden_states(policy.collate([example]))[0, 0].detach()
    with torch.no_grad():
        policy.model.lm_head.weight[9] += 25.0 * hidden / hidden.square().sum()
    weight = policy.model.lm_head.weight.detach().double()
    probabilities = (weight @ hidden.double()).softmax(0)
    error = -probabilities
    error[9] = probabilities.sum() - probabilities[9]
    expected = float(error.norm() * hidden.double().norm())
    assert expected < 1e-6
    measured = gradient_norms(policy, [example], "last_layer").norms[0]
    assert measured == pytest.approx(expected, rel=1e-4)


def test_a_sketch_is_unbiased_and_as_precise_as_it_says(policy):
    """Mean of 400 sketches within 5 standard errors; spread at most 1.2 sqrt(2 / size)."""
    policy = make_policy(policy)
    made = examples(policy, 4)
    exact = gradient_norms(policy, made, "last_layer").squares
    size, draws = 16, 400
    ratios = np.array(
        [
            gradient_norms(policy, made, "last_layer", sketch=size, seed=seed).squares / exact
            for seed in range(draws)
        ]
    )
    spread = ratios.std(axis=0)
    assert (np.abs(ratios.mean(axis=0) - 1) <= 5 * spread / np.sqrt(draws)).all()
    assert (spread <= 1.2 * np.sqrt(2 / size)).all()
    assert (spread > 0.01).all()


def test_a_sketch_walks_the_vocabulary_in_chunks(policy, monkeypatch):
    policy = make_policy(policy)
    made = examples(policy, 4)
    whole = gradient_norms(policy, made, "last_layer", sketch=16).squares
    monkeypatch.setattr(output_layer, "_CHUNK", 16 * 4 * 12)
    chunked = gradient_norms(policy, made, "last_layer", sketch=16).squares
    assert (np.abs(chunked / whole - 1) < 1).all()
    # As many entries as tokens, and one sum for each: the exact norm.
    every = gradient_norms(policy, made, "last_layer", sketch=60).squares
    np.testing.assert_allclose(every, gradient_norms(policy, made, "last_layer").squares, rtol=1e-5)


@pytest.mark.parametrize("method", ["exact", "exact_slow", "last_layer"])
def test_an_empty_completion_has_norm_zero(policy, method):
    made = [TrainingExample((2, 3), (), 0.0, 0.0), *examples(policy, 1)]
    norms = gradient_norms(policy, made, method).norms
    assert norms[0] == 0
    assert norms[1] > 0
    assert gradient_norms(policy, made[:1], method).norms.tolist() == [0.0]
    nothing = gradient_norms(policy, [], method, group_sizes=[0])
    assert nothing.norms.shape == (0,)
    assert nothing.products[0].shape == (0, 0)


def test_an_output_bias_counts(policy):
    policy = make_policy(policy, temperature=0.8)
    policy.model.set_output_embeddings(nn.Linear(16, 60, bias=True))
    policy.find_output_head()
    made = examples(policy, 3)
    check_exact(policy, made)
    expected = np.diag(reference_products(policy, made, ["lm_head.weight", "lm_head.bias"]))
    for method, parameters in (("last_layer", "all"), ("exact", "lm_head")):
        measured = gradient_norms(policy, made, method, parameters=parameters).squares
        np.testing.assert_allclose(measured, expected, rtol=1e-5)


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
        lambda hidden, strength: hidden * (1 + strength),
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


def test_tokens_of_samples_mixed_up_are_refused(policy):
    """Mixture-of-experts layers flatten the batch."""
    policy = make_policy(policy)
    mlp = policy.model.model.layers[0].mlp
    inner = mlp.forward
    mlp.forward = lambda hidden: inner(hidden.flatten(0, 1)).view_as(hidden)
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


def test_inference_mode(policy):
    made = examples(policy, 2)
    expected = gradient_norms(policy, made).norms
    with torch.inference_mode():
        assert gradient_norms(policy, made).norms.tolist() == expected.tolist()
        policy = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    with pytest.raises(InputError, match="inference_mode"):
        gradient_norms(policy, made)


def test_norms_that_are_not_finite_are_refused(policy):
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[0, 0] = torch.nan
    for method in ("exact", "exact_slow", "last_layer"):
        with pytest.raises(NonFiniteError, match="gradient norm"):
            gradient_norms(policy, examples(policy, 2), method)


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
    expected = gradient_norms(single, made).norms
    half = Policy(copy.deepcopy(single.model).to(torch.bfloat16), single.tokenizer, 0.9)
    for method, reference_norms in (
        ("exact", expected),
        ("last_layer", gradient_norms(single, made, "last_layer").norms),
    ):
        ratio = gradient_norms(half, made, method).norms / reference_norms
        assert np.abs(ratio - 1).max() < 0.03
        assert abs(ratio.mean() - 1) < 0.01


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
    expected = {m: gradient_norms(policy, made, m).norms for m in ("exact", "exact_slow")}
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.model.train()
    state = torch.get_rng_state()
    for method, norms in expected.items():
        np.testing.assert_allclose(gradient_norms(policy, made, method).norms, norms, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_cut_off_by_reentrant_checkpointing_are_refused(policy):
    policy = with_lora(make_policy(policy), target_modules=["q_proj"])
    policy.model.gradient_checkpointing_enable({"use_reentrant": True})
    policy.model.disable_input_require_grads()
    made = examples(policy, 2)
    with pytest.raises(InputError, match="gradients do not reach"):
        gradient_norms(policy, made)
    with pytest.raises(InputError, match="depends on none"):
        gradient_norms(policy, made, "exact_slow")


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
    for options in ({}, {"group_sizes": [5]}):
        for method in ("exact", "last_layer"):
            assert (gradient_norms(policy, made, method, **options).norms > 0).all()


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
