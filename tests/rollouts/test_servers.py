"""Sampling from servers: shared out, tried again, taken over by others, and never from old weights."""

from __future__ import annotations

import socket

import pytest
import torch

from dibs.config import Config
from dibs.model.policy import Policy
from dibs.model.turn_end import Stops
from dibs.rollouts.sampling import SampleRequest, build_sampler, collected
from dibs.types import InputError, TrainingExample
from small_server import SmallServer
from tiny_groups import make_prompt

PROMPTS = [make_prompt("01", (5, 6, 7)), make_prompt("02", (9,)), make_prompt("03", (8, 4, 2, 30))]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("dibs.rollouts.sampling.vllm_client.WAITS", (0.01, 0.02))


@pytest.fixture
def servers(policy):
    started = [SmallServer(policy) for _ in range(2)]
    yield started
    for server in started:
        server.die()


def sampler_for(policy: Policy, *addresses: str, **options):
    sampling = {
        "engine": "vllm_server",
        "servers": list(addresses),
        "max_completion_length": 12,
        **options,
    }
    return build_sampler(Config.model_validate({"sampling": sampling}), policy)


def requests(counts):
    return [
        SampleRequest(prompt, count, (0, int(prompt.prompt_id)))
        for prompt, count in zip(PROMPTS, counts, strict=True)
    ]


def sample(sampler, counts, temperature=None):
    made = requests(counts)
    return collected(made, sampler.sample(made, temperature))


def test_counts_are_honored_by_all_servers_together(policy, servers):
    sampler = sampler_for(policy, *(s.address for s in servers), server_concurrency=1)
    before = [s.answered for s in servers]
    groups = sample(sampler, [30, 0, 19])
    assert [len(group) for group in groups] == [30, 0, 19]
    assert all(s.answered > b for s, b in zip(servers, before, strict=True))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            made = [TrainingExample(prompt.token_ids, completion.token_ids, 0.0, 0.0)]
            with torch.no_grad():
                row = policy.logprobs(policy.collate(made))[0].tolist()
            assert completion.sampling_logprobs == pytest.approx(row, abs=2e-5)
    assert "log-probabilities within" in sampler.description
    sampler.close()


def test_no_default_of_a_server_changes_what_is_sampled(policy, servers):
    """A server takes what a request leaves out from the model's generation config."""
    sampler = sampler_for(policy, servers[0].address)
    sample(sampler, [2, 0, 0], temperature=0.5)
    sampler.close()
    plain = {
        **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "temperature": 0.5},
        **{"stop_token_ids": policy.eos_ids, "ignore_eos": True},
    }
    body = servers[0].bodies[-1]
    assert {key: body.get(key) for key in plain} == plain


def test_a_server_ends_completions_at_texts(policy, servers):
    """It is asked to; tokens, log-probabilities and texts are those up to the end."""
    sampler = sampler_for(policy, servers[0].address)
    whole = sample(sampler, [12, 12, 12])
    assert "stop" not in servers[0].bodies[-1]
    texts = sorted(
        {each.text[len(each.text) // 2] for group in whole for each in group if each.text}
    )
    policy.stops = Stops(texts=tuple(texts[:2]))
    ended = sample(sampler, [12, 12, 12])
    sampler.close()
    assert servers[0].bodies[-1]["stop"] == texts[:2]
    cut = 0
    for long, short in zip(
        [c for g in whole for c in g], [c for g in ended for c in g], strict=True
    ):
        length = len(short.token_ids)
        assert long.token_ids[:length] == short.token_ids
        assert short.sampling_logprobs == pytest.approx(long.sampling_logprobs[:length], abs=2e-5)
        assert not any(text in short.text for text in texts[:2])
        cut += length < len(long.token_ids)
    assert cut > 3


def test_new_weights_arrive(policy, servers):
    sampler = sampler_for(policy, *(s.address for s in servers))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    sampler.update_weights()
    for server in servers:
        for mine, theirs in zip(
            policy.model.parameters(), server.policy.model.parameters(), strict=True
        ):
            assert torch.equal(mine, theirs)
    sampler.close()


def test_weights_that_did_not_arrive_stop_the_run(policy, servers):
    sampler = sampler_for(policy, *(s.address for s in servers))
    servers[1].stale = True
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    match = (
        rf"{servers[1].address} does not sample from the policy: it gives token \d+ the "
        r"log-probability -\d+\.\d+, the learner -\d+\.\d+; .* exceeds 0.001"
    )
    with pytest.raises(InputError, match=match):
        sampler.update_weights()
    sampler.close()


def test_failures_are_tried_again(policy, servers):
    sampler = sampler_for(policy, servers[0].address)
    servers[0].fail = [500, 0]
    assert [len(g) for g in sample(sampler, [3, 0, 0])] == [3, 0, 0]
    sampler.close()


def test_the_others_take_over_for_a_server_that_dies(policy, servers):
    sampler = sampler_for(policy, *(s.address for s in servers), server_concurrency=2)
    asked = []

    def die_once():
        asked.append(1)
        if len(asked) == 3:
            servers[0].http.server_close()
            servers[0].fail = [0] * 1000

    servers[0].when_asked = die_once
    assert [len(g) for g in sample(sampler, [80, 3, 40])] == [80, 3, 40]
    assert sampler._servers[0].fault is not None
    assert [len(g) for g in sample(sampler, [8, 3, 4])] == [8, 3, 4]
    sampler.close()


def test_a_server_with_other_weights_is_not_used(policy, servers):
    """It crashed, came back, and holds what it was started with."""
    sampler = sampler_for(policy, *(s.address for s in servers))
    servers[0].version = None
    before = servers[0].answered
    sample(sampler, [30, 0, 0])
    assert servers[0].answered == before
    assert "holds other weights than it was sent" in sampler._servers[0].fault
    sampler.update_weights()  # and is taken in again
    assert sampler._servers[0].fault is None
    sampler.close()


def test_no_server_left(policy, servers):
    sampler = sampler_for(policy, *(s.address for s in servers))
    for server in servers:
        server.fail = [503] * 1000
    with pytest.raises(InputError, match=r"no server is left: .*HTTP 503 .*; http.*HTTP 503"):
        sample(sampler, [3, 0, 0])
    sampler.close()


def test_fewer_completions_than_asked_for(policy, servers):
    sampler = sampler_for(policy, servers[0].address)
    servers[0].fewer = 1
    assert [len(g) for g in sample(sampler, [8, 0, 10])] == [7, 0, 8]  # of 8, and of 8 and 2
    sampler.close()


def test_bad_servers_are_told_at_the_start(policy, servers):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=rf"sampling.servers {nobody}: ConnectError"):
        sampler_for(policy, nobody)
    servers[0].models = ["a", "b"]
    with pytest.raises(
        InputError, match=r"no model is named; set sampling.server_model to one of: a, b$"
    ):
        sampler_for(policy, servers[0].address)
    with pytest.raises(
        InputError, match=r"c is not served; set sampling.server_model to one of: a, b$"
    ):
        sampler_for(policy, servers[0].address, server_model="c")
    sampler_for(policy, servers[0].address, server_model="b").close()


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        ({"engine": "vllm_server"}, "needs servers"),
        ({"servers": ["http://a"]}, "of no use to engine transformers"),
        ({"engine": "vllm_server", "servers": ["a:80"]}, "a:80 is no address; write http://"),
        ({"engine": "vllm_server", "servers": ["http://a", "http://a/"]}, "occurs twice"),
    ],
)
def test_bad_configurations(sampling, why):
    with pytest.raises(ValueError, match=why):
        Config.model_validate({"sampling": sampling})


def test_vllm_that_is_not_installed(policy):
    config = Config.model_validate({"sampling": {"engine": "vllm"}})
    with pytest.raises(
        InputError, match=r"vLLM cannot be imported .*pip install 'dibs-rl\[vllm\]'"
    ):
        build_sampler(config, policy)
