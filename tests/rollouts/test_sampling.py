"""The transformers sampler: counts, seeds, log-probabilities and the distribution itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig

from dibs.config import Config
from dibs.model.policy import Policy
from dibs.model.prompt_sharing import share_prompts
from dibs.model.warm_start import build_tokenizer
from dibs.rollouts.sampling import SampleRequest, build_sampler, collected
from dibs.rollouts.sampling.annealing import Annealing
from dibs.rollouts.sampling.cache import GrowingLayer, new_cache
from dibs.rollouts.sampling.prompt_cache import PromptCache
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.losses import importance_weights
from dibs.types import InputError, TrainingExample
from tiny_groups import make_prompt
from tiny_policies import annealed_logprobs

PROMPTS = [make_prompt("01", (5, 6, 7)), make_prompt("02", (9,)), make_prompt("03", (8, 4, 2, 30))]


def requests(counts: list[int]) -> list[SampleRequest]:
    return [
        SampleRequest(prompt, count, (0, int(prompt.prompt_id)))
        for prompt, count in zip(PROMPTS, counts, strict=True)
    ]


def sample(sampler, made, temperature=None):
    return collected(made, sampler.sample(made, temperature))


def test_counts_are_honored_and_order_is_kept(policy):
    groups = sample(TransformersSampler(policy, 6, 1000), requests([3, 0, 5]))
    assert [len(group) for group in groups] == [3, 0, 5]
    assert sample(TransformersSampler(policy, 6, 1000), requests([0, 0, 0])) == [[], [], []]


def test_an_annealed_temperature_by_hand():
    """1 + 1.2 - e^(t/10): 1.2 at 0, 1.2 - .1052 at 1, the floor from where e^(t/10) exceeds 2.1."""
    found = Annealing(1.2, 0.1, 10.0).at(torch.tensor([0, 1, 7, 8, 100, 10**6]))
    assert found.tolist() == pytest.approx([1.2, 1.09483, 0.18625, 0.1, 0.1, 0.1], abs=1e-5)


def test_annealed_sampling_reports_what_it_drew_with(policy):
    """Each token's log-probability is the model's, at the temperature of its place."""
    annealing = Annealing(2.0, 0.3, 3.0)
    for batch_tokens in (25, 1000):  # rows of different age side by side
        groups = sample(
            TransformersSampler(policy, 6, batch_tokens, annealing), requests([3, 3, 3])
        )
        for prompt, group in zip(PROMPTS, groups, strict=True):
            for completion in group:
                expected = annealed_logprobs(policy, prompt, completion, annealing)
                assert completion.sampling_logprobs == pytest.approx(expected.tolist(), abs=2e-5)


def test_evaluations_are_not_annealed(policy):
    annealed = TransformersSampler(policy, 6, 1000, Annealing(3.0, 0.1, 2.0))
    plain = TransformersSampler(policy, 6, 1000)
    assert sample(annealed, requests([2, 2, 2]), 1.0) == sample(plain, requests([2, 2, 2]), 1.0)
    assert sample(annealed, requests([2, 2, 2])) != sample(plain, requests([2, 2, 2]))


def test_importance_weights_make_up_for_annealing(policy):
    """The mean of a token's ratio of probabilities is 1, within five standard errors."""
    one = [SampleRequest(PROMPTS[0], 2000, (3, 1))]
    drawn = sample(TransformersSampler(policy, 1, 10**6, Annealing(1.5, 0.1, 5.0)), one)[0]
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[0].token_ids])
        logprobs = policy.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    old = torch.stack([logprobs[list(each.token_ids)] for each in drawn])
    sampling = torch.tensor([each.sampling_logprobs for each in drawn])
    mask = torch.ones_like(old, dtype=torch.bool)
    ratio = importance_weights(old, sampling, mask, "token_truncate", 1e9)
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / np.sqrt(len(drawn))


def test_completions_depend_on_their_own_seed_only(policy):
    together = sample(TransformersSampler(policy, 6, 1000), requests([3, 2, 5]))
    alone = sample(TransformersSampler(policy, 6, 1), requests([3, 4, 0]))
    assert [c.token_ids for c in alone[0]] == [c.token_ids for c in together[0]]
    assert [c.token_ids for c in alone[1][:2]] == [c.token_ids for c in together[1]]
    other = sample(TransformersSampler(policy, 6, 1000), [SampleRequest(PROMPTS[0], 3, (1, 1))])
    assert [c.token_ids for c in other[0]] != [c.token_ids for c in together[0]]


def hold_prompts(policy, *, on: bool = True) -> None:
    share_prompts(policy, on=on)
    policy.holds_prompts = on


@pytest.fixture
def held(monkeypatch) -> list[int]:
    """Numbers of rows that went on from prompts held once."""
    rows: list[int] = []
    attend = PromptCache.attend

    def counted(own, module, query, *rest, **options):
        rows.append(len(query))
        return attend(own, module, query, *rest, **options)

    monkeypatch.setattr(PromptCache, "attend", counted)
    return rows


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 25, 60, 150, 10**6])
def test_rows_that_come_and_go_say_what_they_say_alone(policy, held, batch_tokens, shares):
    """Few places: rows join others in mid-sentence, finished ones leave, prompts are of mixed length."""
    made = [
        SampleRequest(make_prompt(f"{i}", tuple(range(4, 6 + 3 * i))), 5, (7, i)) for i in range(6)
    ]
    alone = [
        [each.completion for each in TransformersSampler(policy, 12, 1).sample([one])]
        for request in made
        for one in [SampleRequest(request.prompt, 1, request.seed, k) for k in range(5)]
    ]
    assert not held
    hold_prompts(policy, on=shares)
    together = sample(TransformersSampler(policy, 12, batch_tokens), made)
    assert bool(held) is shares
    for (expected,), found in zip(alone, [c for group in together for c in group], strict=True):
        assert found.token_ids == expected.token_ids
        assert found.sampling_logprobs == pytest.approx(expected.sampling_logprobs, abs=2e-5)


def test_completions_come_as_they_are_finished(policy):
    made = requests([40, 40, 40])
    stream = TransformersSampler(policy, 40, 500).sample(made)
    lengths = [len(each.completion.token_ids) for each in stream]
    assert lengths != sorted(lengths)
    assert lengths[0] < max(lengths)


VOCABULARY = len(build_tokenizer())
ENDS = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
SHAPE = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, **ENDS},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
LATENT = {
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 12},
    **{"qk_nope_head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 2},
    **{"topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
}
STATE = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    **{"expand": 2, **ENDS},
}
MODELS = {
    "learned positions": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ENDS
        )
    ),
    "no positions": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **ENDS)
    ),
    "heads of their own width": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**GROUPED, head_dim=16)
    ),
    "keys wider than values": lambda: transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(**SHAPE, **LATENT)
    ),
    "sliding windows": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=6)
    ),
    "a state": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**STATE)),
    "a state of several heads": lambda: transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(**STATE, num_heads=8, head_dim=8, n_groups=1, chunk_size=8)
    ),
}
RIGID = {"sliding windows", "a state", "a state of several heads"}
"""Whose rows cannot come and go: their batches are decoded to the end."""


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_all_kinds_are_sampled_from_as_they_are(kind):
    """Rows join and leave, or cannot; log-probabilities are the learner's and tokens the same."""
    torch.manual_seed(0)
    policy = Policy(MODELS[kind]().eval(), build_tokenizer())
    assert new_cache(policy.model)[1] == (kind not in RIGID)
    made = [
        SampleRequest(make_prompt(f"{i}", tuple(range(4, 5 + 3 * i))), 5, (7, i)) for i in range(5)
    ]
    written = []
    for batch_tokens in (1, 60, 10**6):
        groups = sample(TransformersSampler(policy, 12, batch_tokens), made)
        written.append([c.token_ids for group in groups for c in group])
        for request, group in zip(made, groups, strict=True):
            prompt = request.prompt.token_ids
            examples = [TrainingExample(prompt, c.token_ids, 0.0, 0.0) for c in group]
            with torch.no_grad():
                rows = policy.logprobs(policy.collate(examples))
            for row, completion in zip(rows, group, strict=True):
                expected = row[: len(completion.token_ids)].tolist()
                assert completion.sampling_logprobs == pytest.approx(expected, abs=2e-5)
    assert written[0] == written[1] == written[2]


SHARING = {
    "learned positions": MODELS["learned positions"],
    "heads of their own width": MODELS["heads of their own width"],
    "rotated in part": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**SHAPE, rotary_pct=0.25)
    ),
    "several heads a key": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**GROUPED)
    ),
    "no window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**GROUPED, sliding_window=None)
    ),
    "a window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**GROUPED, sliding_window=4)
    ),
}


@pytest.mark.parametrize("batch_tokens", [150, 10**6])
@pytest.mark.parametrize("kind", SHARING)
def test_prompts_held_once_give_the_tokens_of_prompts_held_by_every_row(held, kind, batch_tokens):
    """Where rows cannot come and go, which a window forbids, nothing is held once."""
    torch.manual_seed(0)
    policy = Policy(SHARING[kind]().eval(), build_tokenizer())
    made = [
        SampleRequest(make_prompt(f"{i}", tuple(range(4, 5 + 3 * i))), count, (7, i))
        for i, count in enumerate([1, 9, 0, 3, 4, 1])
    ]
    plain = sample(TransformersSampler(policy, 12, batch_tokens), made)
    assert not held
    hold_prompts(policy)
    found = sample(TransformersSampler(policy, 12, batch_tokens), made)
    assert bool(held) is (kind != "a window")
    for mine, theirs in zip(found, plain, strict=True):
        assert [each.token_ids for each in mine] == [each.token_ids for each in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert one.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=2e-5)


@pytest.mark.parametrize(
    ("counts", "holds"), [((1, 0, 1), False), ((1, 2, 1), False), ((1, 0, 3), True)]
)
def test_prompts_are_held_once_where_they_have_two_rows_in_the_mean(policy, held, counts, holds):
    hold_prompts(policy)
    sample(TransformersSampler(policy, 6, 1000), requests(list(counts)))
    assert bool(held) is holds


def test_prompts_with_about_as_many_rows_are_multiplied_together():
    """Rows by prompt: 8, 7, 4, 3, 1, 1. No prompt has less than half of the first of its run."""
    counts = torch.tensor([1, 4, 8, 1, 3, 7])
    owner = torch.arange(6).repeat_interleave(counts)[torch.randperm(24)]
    cache = transformers.Cache(layers=[GrowingLayer()])
    numbers = torch.arange(6.0).reshape(6, 1, 1, 1).repeat(1, 1, 2, 3)
    cache.update(numbers, numbers, 0)
    prompts = PromptCache(cache, torch.ones(6, 2, dtype=torch.bool), owner)
    assert [places.shape for _, places, _ in prompts._alike] == [(3, 8), (1, 3), (2, 1)]
    assert prompts.keys[0][:, 0, 0, 0].tolist() == [2, 5, 1, 4, 0, 3]
    assert [int(prompts.keys[0][g, 0, 0, 0]) for g in prompts.owner] == owner.tolist()
    every = torch.cat([places.flatten() for _, places, _ in prompts._alike])
    assert every[prompts._back].tolist() == list(range(24))
    kept = torch.tensor([i for i in range(24) if int(owner[i]) in (2, 3)])
    prompts.select(kept)
    assert [places.shape for _, places, _ in prompts._alike] == [(1, 8), (1, 1)]
    assert [int(prompts.keys[0][g, 0, 0, 0]) for g in prompts.owner] == owner[kept].tolist()


def test_attention_to_prompts_and_own_tokens_by_the_formula():
    """Three rows of two prompts, of 2 and 1 tokens: softmax over both parts at once, by hand."""
    torch.manual_seed(0)
    cache = transformers.Cache(layers=[GrowingLayer()])
    keys, values = torch.randn(2, 2, 1, 2, 3).unbind(0)  # [prompts, heads, tokens, width]
    cache.update(keys, values, 0)
    prompts = PromptCache(
        cache, torch.tensor([[True, True], [False, True]]), torch.tensor([1, 0, 1])
    )
    query = torch.randn(3, 2, 1, 3)  # two heads share a key
    own_keys, own_values = torch.randn(2, 3, 1, 2, 3).unbind(0)
    mask = torch.tensor([[True, True], [False, True], [True, True]])[:, None, None]
    module: Any = torch.nn.Module()
    module.layer_idx = 0
    found = prompts.attend(module, query, own_keys, own_values, mask, scaling=0.7)
    for row, (prompt, start, own_start) in enumerate([(1, 1, 0), (0, 0, 1), (1, 1, 0)]):
        seen = torch.cat([keys[prompt, 0, start:], own_keys[row, 0, own_start:]])
        said = torch.cat([values[prompt, 0, start:], own_values[row, 0, own_start:]])
        for head in range(2):
            weights = (seen @ query[row, head, 0] * 0.7).softmax(0)
            assert found[row, 0, head].tolist() == pytest.approx(
                (weights @ said).tolist(), abs=1e-6
            )


REFUSED = {
    "numbers of its own": (
        lambda: transformers.RwkvForCausalLM(
            transformers.RwkvConfig(
                vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, **ENDS
            )
        ),
        r"its RwkvForCausalLM, continued token by token, does not sample from the policy",
    ),
    "no cache": (
        lambda: transformers.OpenAIGPTLMHeadModel(
            transformers.OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)
        ),
        r"its OpenAIGPTLMHeadModel cannot be continued token by token \(RuntimeError: ",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_do_not_go_on_rightly_from_a_cache_are_refused(kind):
    """Sampler and learner would differ, or the first step would be a traceback."""
    make, message = REFUSED[kind]
    torch.manual_seed(0)
    policy = Policy(make().eval(), build_tokenizer())
    config = Config.model_validate({"policy": {"model": "some/model"}})
    with pytest.raises(InputError, match=message) as caught:
        build_sampler(config, policy)
    assert str(caught.value).startswith("policy.model some/model: ")
    assert str(caught.value).endswith(
        "use sampling.engine vllm, or a model of another architecture"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_those_of_the_policy(policy, temperature):
    policy = Policy(policy.model, policy.tokenizer, temperature)
    groups = sample(TransformersSampler(policy, 8, 1000), requests([4, 4, 4]))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        made = [TrainingExample(prompt.token_ids, c.token_ids, 0.0, 0.0) for c in group]
        with torch.no_grad():
            rows = policy.logprobs(policy.collate(made))
        for row, completion in zip(rows, group, strict=True):
            assert completion.sampling_logprobs == pytest.approx(
                row[: len(completion.token_ids)].tolist(), abs=2e-5
            )


def test_a_completion_ends_with_its_end_of_sequence(policy):
    (group,) = sample(TransformersSampler(policy, 40, 10**6), [requests([200, 0, 0])[0]])
    eos = policy.tokenizer.eos_token_id
    assert {c.finished for c in group} == {True, False}
    for completion in group:
        assert completion.finished == (completion.token_ids[-1] == eos)
        assert eos not in completion.token_ids[:-1]
        assert len(completion.token_ids) == len(completion.sampling_logprobs)
        assert completion.finished or len(completion.token_ids) == 40
        assert "<eos>" not in completion.text


def test_samples_follow_the_softmax_whatever_the_model_ships(policy):
    """First tokens against the exact distribution; 5 sigma in every cell that expects 5 or more."""
    policy.model.generation_config = GenerationConfig(
        do_sample=True, top_k=1, top_p=0.1, repetition_penalty=9.0, temperature=0.1, eos_token_id=1
    )
    shipped = policy.model.generation_config
    n = 4000
    (group,) = sample(TransformersSampler(policy, 1, 10**6), [requests([n, 0, 0])[0]])
    assert policy.model.generation_config is shipped
    with torch.no_grad():
        logits = policy.model(torch.tensor([PROMPTS[0].token_ids])).logits[0, -1]
    expected = n * logits.double().softmax(-1).numpy()
    seen = Counter(c.token_ids[0] for c in group)
    counts = np.array([seen[token] for token in range(len(expected))])
    common = expected >= 5
    assert common.sum() > 10
    sigma = np.sqrt(expected * (1 - expected / n))
    assert (np.abs(counts - expected)[common] < 5 * sigma[common]).all()


def test_sampling_leaves_the_model_as_it_was(policy):
    policy.model.train()
    state = torch.get_rng_state()
    sample(TransformersSampler(policy, 4, 1000), requests([1, 1, 1]))
    assert policy.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_temperature_overrides_the_policys(policy):
    cold = sample(TransformersSampler(policy, 4, 1000), requests([20, 0, 0]), temperature=1e-4)[0]
    assert len({c.token_ids for c in cold}) == 1


def test_batches_are_halved_where_memory_does_not_suffice(policy, monkeypatch):
    whole = sample(TransformersSampler(policy, 6, 1000), requests([6, 2, 6]))
    inner, tried = policy.model.forward, []

    def narrow(input_ids, **options):
        tried.append(len(input_ids))
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(input_ids=input_ids, **options)

    monkeypatch.setattr(policy.model, "forward", narrow)
    sampler = TransformersSampler(policy, 6, 1000)
    again = sample(sampler, requests([6, 2, 6]))
    assert [[c.token_ids for c in group] for group in again] == [
        [c.token_ids for c in group] for group in whole
    ]
    assert max(tried) > 4
    before = len(tried)
    sample(sampler, requests([6, 2, 6]))
    assert max(tried[before:]) <= 4  # learned once
    monkeypatch.setattr(policy.model, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(sampler, requests([1, 0, 0]))
