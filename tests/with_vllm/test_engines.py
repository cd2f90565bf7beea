"""vLLM itself: counts, log-probabilities before and after new weights, training, servers that die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from threading import Timer

import pytest
import torch

from dibs.config import Config, WarmStartConfig
from dibs.config.load import load_config, split_config
from dibs.files import read_lines
from dibs.model.policy import Policy
from dibs.model.warm_start import build_model, build_tokenizer, warm_started_policy
from dibs.rollouts.sampling import SampleRequest, build_sampler, collected
from dibs.rollouts.sampling.annealing import Annealing
from dibs.runs.console import PlainView
from dibs.runs.train_run import run_training
from dibs.types import InputError, TrainingExample
from tiny_groups import make_prompt
from tiny_policies import annealed_logprobs
from tiny_runs import EASY, EASY_WARM_START

pytestmark = pytest.mark.vllm
WARM_START = {**EASY_WARM_START, "hidden_size": 64}
"""vLLM's attention on a CPU wants heads of 32."""
PROMPTS = [make_prompt(f"{i}", tuple(range(4, 8 + i))) for i in range(4)]


def tiny(tied: bool, temperature: float = 1.0) -> Policy:
    tokenizer = build_tokenizer()
    model = build_model(WarmStartConfig(hidden_size=64, heads=2), tokenizer)
    if not tied:
        model.config.tie_word_embeddings = False
        model = type(model)(model.config)
    return Policy(model.eval(), tokenizer, temperature)


def engine_config(length: int = 24, **sampling) -> Config:
    sampling = {"engine": "vllm", "max_completion_length": length, **sampling}
    algorithm = {"importance_sampling": "token_truncate"} if "anneal_from" in sampling else {}
    sections = {"sampling": sampling, "data": {"max_prompt_length": 64}, "algorithm": algorithm}
    return Config.model_validate(sections)


def requests(counts):
    return [
        SampleRequest(prompt, count, (0, i))
        for i, (prompt, count) in enumerate(zip(PROMPTS, counts, strict=True))
    ]


def furthest(policy: Policy, groups) -> float:
    """Largest difference between the engine's and the learner's log-probabilities."""
    gaps = [0.0]
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            made = [TrainingExample(prompt.token_ids, completion.token_ids, 0.0, 0.0)]
            with torch.no_grad():
                row = policy.logprobs(policy.collate(made))[0]
            gaps.append(float((row - torch.tensor(completion.sampling_logprobs)).abs().max()))
    return max(gaps)


def moved(policy: Policy) -> None:
    """The policy after an update."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def counts_and_parity(policy: Policy, sampler) -> None:
    """Counts are honored, and log-probabilities agree, before and after 4 new sets of weights."""
    for _ in range(5):
        made = requests([3, 0, 19, 5])
        groups = collected(made, sampler.sample(made))
        assert [len(group) for group in groups] == [3, 0, 19, 5]
        gap = furthest(policy, groups)
        sys.stdout.write(f"largest difference {gap:.1e}\n")
        assert gap < 1e-4
        moved(policy)
        sampler.update_weights()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_counts_and_logprobs_in_process(tied, temperature):
    policy = tiny(tied, temperature)
    sampler = build_sampler(engine_config(), policy)
    try:
        counts_and_parity(policy, sampler)
        alike_when_split(sampler)
        a_stream_that_is_left(sampler)
        weights_that_do_not_arrive(policy, sampler)
    finally:
        sampler.close()


def alike_when_split(sampler) -> None:
    """Completion k is the same whoever asks for it, and the first comes before the last is finished."""
    whole = collected(made := requests([0, 0, 9, 0]), sampler.sample(made))[2]
    rest = [SampleRequest(PROMPTS[2], 4, (0, 2), first=5)]
    assert [c.token_ids for c in collected(rest, sampler.sample(rest))[0]] == [
        c.token_ids for c in whole[5:]
    ]
    lengths = [len(each.completion.token_ids) for each in sampler.sample(requests([40, 0, 0, 0]))]
    assert lengths[0] < max(lengths)


def a_stream_that_is_left(sampler) -> None:
    """A reader that goes away takes its requests with it."""
    next(iter(sampler.sample(requests([40, 0, 0, 0]))))
    made = requests([0, 2, 0, 0])
    assert [len(g) for g in collected(made, sampler.sample(made))] == [0, 2, 0, 0]


def weights_that_do_not_arrive(policy: Policy, sampler) -> None:
    """The check after each update catches them."""
    moved(policy)
    load, sampler._engine.collective_rpc = sampler._engine.collective_rpc, lambda *_, **__: None
    with pytest.raises(InputError, match=r"vllm does not sample from the policy: .* the learner"):
        sampler.update_weights()
    sampler._engine.collective_rpc = load
    sampler.update_weights()


def test_an_annealed_temperature_in_process():
    """A token has the learner's log-probability at the temperature of its place; scores are plain."""
    policy = tiny(tied=True, temperature=0.9)
    annealing = Annealing(1.6, 0.4, 8.0)
    sampler = build_sampler(
        engine_config(anneal_from=1.6, anneal_floor=0.4, anneal_tokens=8.0), policy
    )
    made = requests([3, 0, 19, 5])
    try:
        groups = collected(made, sampler.sample(made))
        plain = collected(made, sampler.sample(made, 0.9))
    finally:
        sampler.close()
    assert [len(group) for group in groups] == [3, 0, 19, 5]
    gaps = []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            drawn = annealed_logprobs(policy, prompt, completion, annealing)
            gaps.append(float((drawn - torch.tensor(completion.sampling_logprobs)).abs().max()))
    assert max(gaps) < 1e-4
    assert furthest(policy, groups) > 0.1
    assert furthest(policy, plain) < 1e-4


TRAIN = [
    *("--policy.model", EASY),
    *("--data.train", EASY),
    *("--data.size", "64"),
    *("--data.eval_size", "8"),
    *("--data.max_prompt_length", "64"),
    *("--policy.threads", "1"),
    *("--policy.device", "cpu"),
    *("--sampling.max_completion_length", "12"),
    *("--estimate.num_pilots", "4"),
    *("--allocate.num_generations", "4"),
    *("--update.learning_rate", "1e-3"),
    *("--train.steps", "5"),
    *("--train.prompts_per_step", "8"),
    *("--evaluate.interval", "0"),
    *("--evaluate.num_generations", "2"),
    *(f"--policy.warm_start.{key}={value}" for key, value in WARM_START.items()),
]


def train(out: Path, *more: str):
    from rich.console import Console

    config = load_config(*split_config([*TRAIN, *more, "--output_dir", str(out)]))
    return run_training(config, PlainView(Console(quiet=True)))


def check_run(out: Path, steps: int = 5) -> None:
    lines = read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(steps + 1))
    for line in lines[1:]:
        assert line["count_sum"] == 32
        assert line["missing_completions"] == 0
        assert line["sampler_gap_max"] < 1e-4


@pytest.mark.parametrize("adapters", [(), ("--policy.lora.rank=4",)])
def test_training_in_process(tmp_path, adapters):
    train(tmp_path / "run", "--sampling.engine=vllm", *adapters)
    check_run(tmp_path / "run")


class Server:
    """vLLM's own server in a process of its own."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.model, self.port, self.log = model, port, log
        self.process = self._started()

    def _started(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--port", str(self.port), "--host", "127.0.0.1"]
        command += ["--dtype", "float32", "--max-model-len", "128", "--enforce-eager"]
        command += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
        command += ["--worker-extension-cls", "dibs.WeightLoader"]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
        }
        environment = {**os.environ, **environment}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        return subprocess.Popen(
            command,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
        )

    def restart(self) -> None:
        """Begin anew at the same address, with the weights of the beginning."""
        self.process = self._started()
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/v1/models", timeout=2)
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                assert time.monotonic() < deadline, self.log.read_text()[-2000:]
                time.sleep(0.5)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def servers(tmp_path):
    folder = warm_started_policy(EASY, WarmStartConfig(**WARM_START), lambda *_: None)
    started = [Server(folder, tmp_path / f"server-{i}.log") for i in range(2)]
    try:
        for server in started:
            server.wait()
        yield started
    finally:
        for server in started:
            server.kill()


def test_servers(servers, tmp_path, monkeypatch):
    """One pair of servers for all of it: they take a minute to start."""
    policy = tiny_like(servers)
    sampler = build_sampler(
        engine_config(engine="vllm_server", servers=[s.address for s in servers]), policy
    )
    try:
        counts_and_parity(policy, sampler)
    finally:
        sampler.close()

    words = ["--sampling.engine=vllm_server"]
    words += ["--sampling.servers", "[" + ", ".join(s.address for s in servers) + "]"]
    train(tmp_path / "run", *words)
    check_run(tmp_path / "run")

    # One of them is killed in the middle of the third step's sampling.
    samples = {"n": 0}

    def phase(self, name):
        samples["n"] += name == "sample"
        if name == "sample" and samples["n"] == 3:
            Timer(0.03, servers[0].kill).start()

    monkeypatch.setattr(PlainView, "phase", phase)
    train(tmp_path / "killed", *words)
    assert servers[0].process.poll() is not None
    check_run(tmp_path / "killed")
    monkeypatch.undo()
    servers[1].kill()
    with pytest.raises(InputError, match=rf"sampling.servers {servers[0].address}: ConnectError"):
        train(tmp_path / "nobody", *words)


def tiny_like(servers) -> Policy:
    """The policy that the servers were started with, at a temperature that is not 1."""
    from dibs.config import PolicyConfig
    from dibs.model.pretrained import load_policy

    folder = warm_started_policy(EASY, WarmStartConfig(**WARM_START), lambda *_: None)
    return load_policy(PolicyConfig(model=str(folder), device="cpu"), 0.7)


def test_a_server_that_is_killed_twice(servers, tmp_path, monkeypatch):
    """Each time in the middle of sampling; it is back two steps later and gets the weights of then."""
    server, samples = servers[0], {"n": 0}
    back: list[int] = []

    def phase(self, name):
        samples["n"] += name == "sample"
        if name == "sample" and samples["n"] in (3, 7):
            Timer(0.03, server.kill).start()
        if name == "update" and samples["n"] >= 5 + 4 * len(back) and server.process.poll():
            server.restart()
            back.append(samples["n"])

    monkeypatch.setattr(PlainView, "phase", phase)
    words = ["--sampling.engine=vllm_server", "--train.steps=12"]
    words += ["--sampling.servers", "[" + ", ".join(s.address for s in servers) + "]"]
    before = len(os.listdir("/proc/self/fd"))
    train(tmp_path / "run", *words)
    check_run(tmp_path / "run", steps=12)
    assert len(back) == 2, (back, samples)
    assert server.process.poll() is None
    assert len(os.listdir("/proc/self/fd")) <= before + 4
