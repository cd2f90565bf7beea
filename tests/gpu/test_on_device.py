"""What must hold on a GPU, in tests that run on the CPU too; `make test-gpu` runs them on a card."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dibs.config import Config
from dibs.files import read_lines
from dibs.model.grad_norms import gradient_norms, gradient_sums
from dibs.model.gradient_vector import Projection
from dibs.model.packing import PackedBatch
from dibs.model.policy import Policy
from dibs.rollouts.sampling import SampleRequest, build_sampler, collected
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.norm_sample import NormSample
from dibs.training.norms_of_updates import check_weighted_gradient
from dibs.training.sharing_check import try_sharing
from dibs.types import TrainingExample
from tiny_gradients import FAMILIES, make_policy, with_lora
from tiny_groups import make_prompt
from tiny_policies import examples, gradient_of, updater
from tiny_runs import run

PROMPTS = [make_prompt(f"{i}", tuple(range(4, 8 + i))) for i in range(4)]
COUNTS = [3, 0, 9, 5]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return request.param


def moved(policy: Policy, device: str, dtype: torch.dtype = torch.float32, **options) -> Policy:
    """The same policy on a device."""
    model = copy.deepcopy(policy.model).to(device, dtype)
    return Policy(model, policy.tokenizer, policy.temperature, **options)


def float64_norms(policy: Policy, made: list[TrainingExample]) -> np.ndarray:
    """Norms by plain autograd on the CPU, in float64 throughout."""
    model = copy.deepcopy(policy.model).to("cpu", torch.float64)
    norms = []
    for example in made:
        model.zero_grad()
        start = len(example.context_ids)
        ids = torch.tensor([[*example.context_ids, *example.completion_ids]])
        table = model(input_ids=ids).logits[0].div(policy.temperature).log_softmax(-1)
        rows = torch.arange(start - 1, start - 1 + len(example.completion_ids))
        table[rows, torch.tensor(example.completion_ids)].sum().backward()
        squares = [float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None]
        norms.append(np.sqrt(sum(squares)))
    return np.array(norms)


@pytest.mark.parametrize("tied", [True, False])
def test_norms_against_float64(policy, device, tied):
    made = examples(policy, 12)
    whole = make_policy(policy, "qwen3", tied)
    exact = float64_norms(whole, made)
    found = gradient_norms(moved(whole, device), made).norms
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    half = moved(whole, device, torch.bfloat16)
    # The same rounded weights: what differs is the arithmetic alone.
    ratios = gradient_norms(half, made).norms / float64_norms(half, made)
    assert np.abs(ratios - 1).max() < 0.04
    assert abs(ratios.mean() - 1) < 0.015


def test_sums_of_gradients(policy, device):
    made, factors = examples(policy, 8), np.random.default_rng(0).normal(size=(8, 2))
    here = make_policy(policy, tied=True)
    there = moved(here, device)
    vectors = []
    for each in (here, there):
        project = Projection(list(each.model.parameters()), 0, 1000)
        vectors.append(gradient_sums(each, made, factors, project)[1].cpu())
    assert (vectors[0] - vectors[1]).norm() < 1e-4 * vectors[0].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampled_log_probabilities_are_the_learners(policy, device, dtype):
    policy = moved(policy, device, dtype)
    sampler = TransformersSampler(policy, 24, 4096)
    requests = [
        SampleRequest(prompt, count, (0, i))
        for i, (prompt, count) in enumerate(zip(PROMPTS, COUNTS, strict=True))
    ]
    groups = collected(requests, sampler.sample(requests))
    assert [len(group) for group in groups] == COUNTS
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            one = TrainingExample(prompt.token_ids, completion.token_ids, 0.0, 0.0)
            with torch.no_grad():
                own = policy.logprobs(policy.collate([one]))[0].cpu()
            gap = (own - torch.tensor(completion.sampling_logprobs)).abs().max()
            assert gap < (1e-3 if dtype == torch.float32 else 0.5)


@pytest.mark.gpu
def test_vllm_samples_from_the_policy(policy):
    pytest.importorskip("vllm", reason="vLLM is not installed in this environment")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    policy = moved(make_policy(policy), "cuda", torch.bfloat16)
    config = Config.model_validate(
        {
            "sampling": {"engine": "vllm", "max_completion_length": 24},
            "data": {"max_prompt_length": 64},
        }
    )
    sampler = build_sampler(config, policy)  # compares log-probabilities
    try:
        requests = [SampleRequest(PROMPTS[0], 5, (0, 0))]
        (group,) = collected(requests, sampler.sample(requests))
        assert len(group) == 5
        sampler.update_weights()  # compares them again
    finally:
        sampler.close()


def test_updates_have_the_gradient_of_the_cpu(policy, device):
    made = examples(policy, 12)
    here, there = policy, moved(policy, device)
    vectors = [gradient_of(updater(each), made).cpu() for each in (here, there)]
    assert (vectors[0] - vectors[1]).norm() < 1e-4 * vectors[0].norm()
    steps = [
        updater(each, updates_per_step=2, learning_rate=1e-3).step(made) for each in (here, there)
    ]
    for key in ("loss", "update_grad_norm"):
        assert getattr(steps[0], key) == pytest.approx(getattr(steps[1], key), rel=1e-2)
    check_weighted_gradient(there, made)


def test_lora(policy, device):
    here = with_lora(make_policy(policy), target_modules="all-linear")
    there = moved(here, device)
    made = examples(policy, 6)
    np.testing.assert_allclose(
        gradient_norms(there, made).norms, gradient_norms(here, made).norms, rtol=1e-4
    )
    vectors = [gradient_of(updater(each), made).cpu() for each in (here, there)]
    assert vectors[0].numel() < sum(p.numel() for p in here.model.parameters())
    assert (vectors[0] - vectors[1]).norm() < 1e-4 * vectors[0].norm()


def test_gradient_checkpointing(policy, device):
    policy = moved(make_policy(policy, "qwen3"), device)
    made = examples(policy, 6)
    expected, vector = gradient_norms(policy, made).norms, gradient_of(updater(policy), made)
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    np.testing.assert_allclose(gradient_norms(policy, made).norms, expected, rtol=1e-5)
    assert (gradient_of(updater(policy), made) - vector).norm() < 1e-5 * vector.norm()


@pytest.mark.slow
def test_a_compiled_policy_on_the_cpu(policy):
    check_compiled(policy, "cpu")


@pytest.mark.gpu
def test_a_compiled_policy_on_a_gpu(policy):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    check_compiled(policy, "cuda")


def check_compiled(policy: Policy, device: str) -> None:
    """Compiled log-probabilities and gradients are the plain ones."""
    plain, compiled = moved(policy, device), moved(policy, device, compiled=True)
    made = examples(policy, 6)
    vectors = [gradient_of(updater(each), made) for each in (plain, compiled)]
    assert (vectors[0] - vectors[1]).norm() < 1e-4 * vectors[0].norm()


def groups(policy: Policy, prompts: int = 3, size: int = 4) -> list[TrainingExample]:
    """Completions of a few prompts in turns; every third one has no advantage."""
    drawn = examples(policy, prompts * size)
    return [
        replace(each, context_ids=drawn[i % prompts].context_ids * 3, advantage=i % 3 - 1.0)
        for i, each in enumerate(drawn)
    ]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_computed_once(policy, device, dtype, kind):
    """The check before a run finds nothing, and the packed gradient is the plain one of the CPU."""
    here = moved(make_policy(policy, kind), "cpu", dtype)
    there = moved(here, device, dtype)
    made = groups(policy)
    assert try_sharing(there, made) is None
    batches = list(there.batches(made, 4096))
    assert any(isinstance(batch, PackedBatch) for _, batch in batches)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    expected = gradient_of(updater(here), made).float()
    found = gradient_of(updater(there), made).cpu().float()
    assert (found - expected).norm() < tolerance * expected.norm()


def test_groups_of_many_packed_batches(policy, device):
    """However small the micro-batches, the gradient is that of one."""
    policy = moved(make_policy(policy), device)
    made = groups(policy, 5, 6)
    assert try_sharing(policy, made) is None
    expected = gradient_of(updater(policy), made)
    for tokens in (40, 200):
        found = gradient_of(updater(policy, micro_batch_tokens=tokens), made)
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_norms_measured_beside_shared_prompts(policy, device):
    policy = moved(make_policy(policy), device)
    made = groups(policy, 4, 6)
    assert try_sharing(policy, made) is None
    expected = gradient_norms(policy, made).norms
    sample = NormSample.of([i % 2 == 0 for i in range(len(made))], 0.5)
    updater(policy, updates_per_step=1).step(made, sample)
    known = ~np.isnan(sample.squares)
    assert 0 < known.sum() < len(made)
    np.testing.assert_allclose(np.sqrt(sample.squares[known]), expected[known], rtol=1e-5)


def test_memory_that_does_not_suffice_halves_the_micro_batches(policy, device, monkeypatch):
    """On a GPU by a true limit of 1 GiB, on the CPU by a pretended one."""
    policy = moved(policy, device)
    made = examples(policy, 20_000 if device == "cuda" else 20)
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(2**30 / total)
    else:
        inner = Policy.logprobs_and_entropy

        def narrow(self, batch):
            if batch.input_ids.numel() > 150:
                raise torch.OutOfMemoryError("out of memory")
            return inner(self, batch)

        monkeypatch.setattr(Policy, "logprobs_and_entropy", narrow)
    most = 2**21
    maker = updater(policy, updates_per_step=1, micro_batch_tokens=most)
    try:
        metrics = maker.step(made)
    finally:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
    assert maker.micro_batch_tokens < most
    assert np.isfinite(metrics.update_grad_norm)


def test_a_run_goes_as_on_the_cpu(tmp_path, device):
    """Random numbers are drawn on the CPU, so the first steps sample the same completions."""
    steps = 20 if device == "cuda" else 2
    curves: list[list[dict[str, Any]]] = []
    for place in ("cpu", device):
        out = tmp_path / str(len(curves))
        run(out, f"--policy.device={place}", f"--train.steps={steps}")
        curves.append(list(read_lines(out / "metrics.jsonl")))
    here, there = curves
    assert len(here) == len(there)
    trained = [i for i, row in enumerate(here) if row.get("reward") is not None]
    first = trained[0]
    assert there[first]["reward"] == pytest.approx(here[first]["reward"], abs=0.02)
    rewards = [[rows[i]["reward"] for i in trained] for rows in curves]
    assert np.mean(rewards[0]) == pytest.approx(np.mean(rewards[1]), abs=0.05)
