"""Updates that compute a prompt once: the steps of those that do not, and a check before a run."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
)

from dibs.config.load import load_config, split_config
from dibs.model import policy as policy_module
from dibs.model import prefix_attention
from dibs.model.grad_norms import gradient_norms
from dibs.model.packing import PackedBatch
from dibs.model.policy import Policy
from dibs.model.prompt_sharing import share_prompts
from dibs.processes import Processes
from dibs.rollouts.sampling.prompt_cache import PromptCache
from dibs.runs.console import PlainView
from dibs.runs.train_run import run_training
from dibs.training.losses import PolicyLoss
from dibs.training.norm_sample import NormSample
from dibs.training.sharing_check import try_holding, try_sharing
from dibs.types import TrainingExample
from tiny_gradients import make_policy, with_lora
from tiny_policies import RAFT, RATIO, examples, gradient_of, updater
from tiny_runs import options

LOSSES = {
    "raft": RAFT,
    "ratio": RATIO,
    "kl": PolicyLoss(clip=(0.2, 0.28), beta=0.1),
    "token ratios": PolicyLoss(clip=(0.2, 0.28), importance_sampling="token_truncate"),
}


def groups(policy: Policy, prompts: int = 3, size: int = 4) -> list[TrainingExample]:
    """Completions of ``prompts`` prompts in turns, some without an advantage."""
    drawn = examples(policy, prompts * size)
    made = [
        replace(each, context_ids=drawn[i % prompts].context_ids * 3)
        for i, each in enumerate(drawn)
    ]
    return [replace(each, advantage=0.0) if i % 5 == 4 else each for i, each in enumerate(made)]


def with_sampled(policy: Policy, made: list[TrainingExample]) -> list[TrainingExample]:
    """With log-probabilities of a sampler that is a little off."""
    with torch.no_grad():
        rows = policy.logprobs(policy.collate(made))
    return [
        replace(e, sampling_logprobs=tuple((row[: len(e.completion_ids)] - 0.1).tolist()))
        for e, row in zip(made, rows, strict=True)
    ]


@pytest.fixture
def packed(monkeypatch) -> list[int]:
    """Sizes of the batches that were packed."""
    sizes: list[int] = []
    pack = policy_module.pack

    def counted(sequences, *rest) -> PackedBatch:
        sizes.append(len(sequences))
        return pack(sequences, *rest)

    monkeypatch.setattr(policy_module, "pack", counted)
    return sizes


@pytest.mark.parametrize("kind", LOSSES)
def test_a_step_is_the_plain_step(policy, packed, kind):
    loss = LOSSES[kind]
    made = with_sampled(policy, groups(policy))
    start = {name: value.clone() for name, value in policy.model.state_dict().items()}
    results = []
    for on in (False, True):
        policy.model.load_state_dict(start)
        share_prompts(policy, on=on)
        maker = updater(policy, loss, learning_rate=1e-3, updates_per_step=2)
        gradients = gradient_of(maker, made)
        metrics = maker.step(made)
        weights = torch.cat([p.detach().flatten() for p in maker.parameters])
        results.append((gradients, weights, metrics))
    assert packed
    (plain, plain_weights, plain_metrics), (found, weights, metrics) = results
    assert (found - plain).norm() < 1e-5 * plain.norm()
    # AdamW divides by the gradient's size, so tiny gradients keep no digits.
    assert (weights - plain_weights).abs().max() < 1e-4
    for name in ("loss", "update_grad_norm", "entropy", "kl", "sampler_gap_max"):
        expected = getattr(plain_metrics, name)
        if expected is not None:
            expected = pytest.approx(expected, rel=1e-3)
        assert getattr(metrics, name) == expected


def test_the_gradient_does_not_depend_on_micro_batches_or_order(policy, packed):
    share_prompts(policy, on=True)
    made = groups(policy, prompts=4, size=6)
    whole = gradient_of(updater(policy, RATIO), made)
    before = len(packed)
    for tokens in (150, 60):
        maker = updater(policy, RATIO, micro_batch_tokens=tokens)
        assert (gradient_of(maker, made[::-1]) - whole).norm() < 1e-5 * whole.norm()
    assert len(packed) - before > 4


@pytest.mark.parametrize("share", [None, 0.3])
def test_shares_of_several_processes_add_up(policy, share):
    share_prompts(policy, on=True)
    made = groups(policy, prompts=4, size=6)
    norms = None if share is None else NormSample.of([True] * len(made), share)
    alone = updater(policy, RAFT, updates_per_step=1)
    (every,), chosen = alone._parts(made, 1, norms)
    assert chosen.any() == (share is not None)
    expected = gradient_of(alone, [made[i] for i in every])
    parts, total = [], torch.zeros_like(expected)
    for rank in range(3):
        maker = updater(policy, RAFT, updates_per_step=1)
        maker.processes = Processes(rank, 3)
        (mine,), same = maker._parts(made, 1, norms)
        assert (same == chosen).all()
        parts.append(mine)
        total += gradient_of(maker, [made[i] for i in mine])
    assert sorted(i for part in parts for i in part) == every
    assert (total - expected).norm() < 1e-5 * expected.norm()
    # At most two of four prompts are in two shares.
    assert sum(len({made[i].context_ids for i in part}) for part in parts) <= 6


def test_stretches_of_a_line():
    """Costs 4, 1, 1, 2 by two: the middles are 2, 4.5, 5.5 and 7 of 8."""
    shares = [Processes(rank, 2).own_stretch("abcd", (4, 1, 1, 2)) for rank in range(2)]
    assert shares == [["a"], ["b", "c", "d"]]
    assert [Processes(rank, 3).own_stretch("", ()) for rank in range(3)] == [[], [], []]
    assert [Processes(rank, 2).own_stretch("ab", (0, 0)) for rank in range(2)] == [["a", "b"], []]


def test_norms_are_measured_without_sharing(policy, packed):
    made = groups(policy)
    expected = gradient_norms(policy, made).norms
    share_prompts(policy, on=True)
    assert gradient_norms(policy, made).norms == pytest.approx(expected, rel=1e-5)
    assert not packed


def test_the_check_turns_sharing_on(policy):
    made = groups(policy)
    for own in (policy, make_policy(policy, "llama")):
        assert try_sharing(own, made) is None
        assert own.shares_prompts
        assert all(p.grad is None for p in own.model.parameters())
    assert try_sharing(policy, made, dropout=0.1) == "policy.lora.dropout is 0.1"
    adapted = with_lora(make_policy(policy), target_modules="all-linear")
    for module in adapted.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert try_sharing(adapted, made) is None


def test_the_check_compares_in_full_precision(policy):
    mixed = Policy(policy.model, policy.tokenizer, mixed=True)
    assert try_sharing(mixed, groups(policy)) is None
    assert mixed.mixed
    rounded = Policy(policy.model.bfloat16(), policy.tokenizer)
    assert try_sharing(rounded, groups(policy)) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2),
            "BloomForCausalLM runs the attention eager, not sdpa",
        ),
        (
            Gemma2Config(
                vocab_size=60,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            ),
            "Gemma2ForCausalLM runs the attention eager, not sdpa",
        ),
    ],
    ids=["bloom", "gemma2"],
)
def test_models_that_cannot_share_are_named(policy, config, reason):
    own = Policy(AutoModelForCausalLM.from_config(config).eval(), policy.tokenizer)
    before = own.model.config._attn_implementation
    assert try_sharing(own, groups(policy)) == reason
    assert not own.shares_prompts
    assert own.model.config._attn_implementation == before


def test_another_result_turns_sharing_off(policy, monkeypatch):
    attend = prefix_attention.PrefixLayout.attend
    monkeypatch.setattr(
        prefix_attention.PrefixLayout,
        "attend",
        lambda *given, **more: 1.01 * attend(*given, **more),
    )
    reason = "Qwen2ForCausalLM would have another gradient"
    assert try_sharing(policy, groups(policy)) == reason
    assert not policy.shares_prompts
    assert policy.model.config._attn_implementation == "sdpa"

    def refuse(*_, **__):
        raise ValueError("no\nway")

    monkeypatch.setattr(prefix_attention.PrefixLayout, "attend", refuse)
    assert try_sharing(policy, groups(policy)) == "Qwen2ForCausalLM does not compute them: no way"


HELD = ((5, 6, 7), (9,), (8, 4, 2, 30))
"""Prompts to try held keys and values with."""


def test_sampling_holds_prompts_only_where_updates_share_them_in_float32(policy):
    assert try_holding(policy, HELD, 8) is None
    assert not policy.holds_prompts
    share_prompts(policy, on=True)
    policy.mixed = True
    assert try_holding(policy, HELD, 8) is None
    assert not policy.holds_prompts
    policy.mixed = False
    assert try_holding(policy, HELD, 1) is None
    assert not policy.holds_prompts
    assert try_holding(policy, HELD, 8) is None
    assert policy.holds_prompts
    share_prompts(policy, on=False)
    assert not policy.holds_prompts


def test_samples_with_other_log_probabilities_leave_updates_as_they_are(policy, monkeypatch):
    share_prompts(policy, on=True)
    attend = PromptCache.attend
    monkeypatch.setattr(PromptCache, "attend", lambda *given, **more: 1.5 * attend(*given, **more))
    reason = try_holding(policy, HELD, 8)
    assert reason is not None
    assert reason.startswith("log-probabilities of Qwen2ForCausalLM would be off by 0.")

    def fail(*_, **__):
        raise IndexError("no\nway")

    monkeypatch.setattr(PromptCache, "attend", fail)
    assert try_holding(policy, HELD, 8) == "Qwen2ForCausalLM does not compute them: no way"
    assert policy.shares_prompts
    assert not policy.holds_prompts


def test_samples_of_one_token_try_nothing(policy, monkeypatch):
    share_prompts(policy, on=True)
    every = list(range(policy.model.config.vocab_size))
    monkeypatch.setattr(Policy, "eos_ids", property(lambda _: every))
    assert try_holding(policy, HELD, 8) == (
        "samples of Qwen2ForCausalLM end with their first token, so it could not be tried"
    )
    assert not policy.holds_prompts


@pytest.mark.parametrize("positions", [32, 33, 34, 40])
def test_the_check_of_held_prompts_keeps_to_the_models_positions(policy, positions):
    """Prompts of 30 tokens and completions that fill the rest."""
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=positions)
    own = Policy(AutoModelForCausalLM.from_config(config).eval(), policy.tokenizer)
    share_prompts(own, on=True)
    assert try_holding(own, [range(4, 34)], positions - 30) is None
    assert own.holds_prompts


def test_latent_attention_shares_prompts_in_updates_alone(policy):
    """Its cache holds compressed keys, which held prompts cannot be."""
    config = DeepseekV3Config(
        vocab_size=len(policy.tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        v_head_dim=12,
        qk_nope_head_dim=8,
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=2,
    )
    own = Policy(AutoModelForCausalLM.from_config(config).eval(), policy.tokenizer)
    assert try_sharing(own, groups(policy)) is None
    assert try_holding(own, HELD, 8) is not None
    assert own.shares_prompts
    assert not own.holds_prompts


def trained(out: Path, *more: str) -> str:
    """What a run of one step shows."""
    shown = StringIO()
    words = options(out, "--train.steps=1", "--update.updates_per_step=1", *more)
    view = PlainView(Console(file=shown, width=200))
    run_training(load_config(*split_config(words)), view)
    return " ".join(shown.getvalue().split())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), None),
        (("--policy.share_prompts=never",), None),
        (("--policy.lora.rank=2", "--policy.lora.dropout=0.25"), "policy.lora.dropout is 0.25"),
    ],
    ids=["auto", "never", "dropout"],
)
def test_a_run_shares_prompts_or_says_why_it_does_not(tmp_path, packed, words, reason):
    shown = trained(tmp_path / "out", *words)
    message = "Updates compute a prompt again for each of its completions"
    assert (message in shown) is (reason is not None)
    if reason is not None:
        assert f"{message}: {reason}" in shown
    # Of a run that shares, the first batch is that of the check.
    assert (len(packed) > 1) is (words == ())


@pytest.mark.parametrize("error", [AttributeError, IndexError, KeyError, AssertionError])
def test_whatever_a_models_own_code_raises_switches_sharing_off(policy, monkeypatch, error):
    def fail(*_, **__):
        raise error("no way")

    monkeypatch.setattr(prefix_attention.PrefixLayout, "attend", fail)
    reason = try_sharing(policy, groups(policy))
    assert reason is not None
    assert "no way" in reason
    assert not policy.shares_prompts


def test_memory_that_does_not_suffice_is_said_as_what_it_is(policy, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(prefix_attention.PrefixLayout, "attend", fail)
    with pytest.raises(torch.OutOfMemoryError):
        try_sharing(policy, groups(policy))
    assert not policy.shares_prompts


class BesideOneThatCannot(Processes):
    """The first of two processes; the other one's model differs."""

    def all_gather_results(self, work):
        return [work(), "the other model would have another gradient"]


def test_all_processes_share_prompts_or_none_does(policy):
    """They deal completions by that: else some would be computed twice and others by nobody."""
    reason = try_sharing(policy, groups(policy), processes=BesideOneThatCannot(0, 2))
    assert reason == "the other model would have another gradient"
    assert not policy.shares_prompts
    assert policy.model.config._attn_implementation == "sdpa"
    assert try_sharing(policy, groups(policy)) is None
    assert policy.shares_prompts
