"""Several processes of one run: shares, sums, and a run that equals that of a single process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dibs.cli import main
from dibs.files import read_lines
from dibs.processes import ALONE, Processes
from dibs.rollouts.sampling import SampleRequest
from dibs.rollouts.source import share_of_requests
from tiny_groups import make_prompt
from tiny_runs import POOL, WORDS


def requests(counts):
    return [SampleRequest(make_prompt(f"{i}", (1,)), n, (0, i)) for i, n in enumerate(counts)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_shares_of_requests_make_up_the_whole(size, seed):
    rng = np.random.default_rng(seed)
    counts = rng.geometric(0.2, 40) - 1
    costs = rng.lognormal(3, 1, 40)
    whole = requests(counts.tolist())
    shares = [share_of_requests(whole, Processes(rank, size), costs) for rank in range(size)]
    loads = []
    for share in shares:
        assert [r.prompt for r in share] == [r.prompt for r in whole]
        loads.append(sum(r.count * cost for r, cost in zip(share, costs, strict=True)))
    for i, request in enumerate(whole):
        numbers = [k for s in shares for k in range(s[i].first, s[i].first + s[i].count)]
        assert numbers == list(range(request.count))
    # As even as whole completions allow.
    assert max(loads) - min(loads) <= 2 * costs.max()


def test_shares_of_nothing():
    share = share_of_requests(requests([0, 0]), Processes(1, 2))
    assert [r.count for r in share] == [0, 0]
    assert Processes(0, 2).own_share([], []) == []


class Pair(Processes):
    """Process 0 of two; the other gives what this says."""

    def all_gather(self, mine):
        return [mine, (None, "InputError: no such row")]


def test_what_fails_in_one_process_is_raised_in_all():
    assert ALONE.all_gather_results(lambda: 3) == [3]
    pair = Pair(0, 2)
    with pytest.raises(RuntimeError, match=r"process 1 failed: InputError: no such row"):
        pair.all_gather_results(lambda: 3)

    def fails():
        raise KeyError("own")

    for processes in (ALONE, pair):
        with pytest.raises(KeyError, match="own"):
            processes.all_gather_results(fails)


def test_items_are_dealt_once_and_evenly():
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(4, 1, 101).tolist()
    shares = [Processes(rank, 4).own_share(range(101), lengths) for rank in range(4)]
    assert sorted(i for share in shares for i in share) == list(range(101))
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= 2 * max(lengths)
    assert all(a < b for share in shares for a, b in pairwise(share))


def test_a_single_process_is_left_alone():
    assert ALONE.all_gather("x") == ["x"]
    assert not ALONE.any(False)
    assert ALONE.own_share([3, 1], [1, 1]) == [3, 1]
    ALONE.require_same(1, "nothing")


def test_bfloat16_is_added_up_in_float32(monkeypatch):
    """1 + 4/512: in bfloat16 each 1/512 alone would be rounded away."""

    def four_others(flat):
        for _ in range(4):
            flat += 2.0**-9

    monkeypatch.setattr("torch.distributed.all_reduce", four_others)
    tensors = [torch.ones(3, dtype=torch.bfloat16), torch.ones(2, 2)]
    Processes(0, 5).all_reduce_sum(tensors)
    assert [each.dtype for each in tensors] == [torch.bfloat16, torch.float32]
    assert {value for each in tensors for value in each.flatten().tolist()} == {1 + 2.0**-7}


TRAIN = [
    "--train.steps=3",
    "--update.updates_per_step=1",
    "--update.schedule=constant",
    "--estimate.interval=1",
    "--evaluate.interval=1",
    "--checkpoint.interval=1",
]


def start(out, count: int, *more: str) -> subprocess.Popen:
    """The command line in ``count`` processes of torchrun."""
    where = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    words = ["train", *WORDS, *TRAIN, *more, f"--output_dir={out}"]
    return subprocess.Popen(
        [sys.executable, *where, "-m", "dibs", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    said, _ = process.communicate(timeout=150)
    assert process.returncode == status, said
    return said


def untimed(out):
    lines = read_lines(out / "metrics.jsonl")
    return [{key: v for key, v in line.items() if "second" not in key} for line in lines]


def test_two_processes_do_what_one_does(tmp_path):
    """The same counts and rollouts, and after 3 updates the same weights up to rounding."""
    process = start(tmp_path / "2", 2)
    assert main(["train", *WORDS, *TRAIN, f"--output_dir={tmp_path / '1'}"]) == 0
    said = finish(process)
    assert "2 processes on this machine share sampling and gradients" in said
    assert said.count("training prompts") == 1  # one of them speaks
    one, two = (read_lines(tmp_path / f"{n}" / "allocations.jsonl") for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert a["prompt_id"] == b["prompt_id"]
        assert a["count"] == b["count"]
        assert a["accepted"] == b["accepted"]
    samples = [read_lines(tmp_path / f"{n}" / "samples.jsonl") for n in (1, 2)]
    assert samples[0] == samples[1]
    for a, b in zip(untimed(tmp_path / "1"), untimed(tmp_path / "2"), strict=True):
        assert a["rollouts"] == b["rollouts"]
        assert a["completion_tokens"] == b["completion_tokens"]
        if a["step"]:
            assert a["update_grad_norm"] == pytest.approx(b["update_grad_norm"], rel=1e-4)
    assert untimed(tmp_path / "2")[-1]["token_imbalance"] < 1.5
    weights = [load_file(tmp_path / f"{n}" / "model" / "model.safetensors") for n in (1, 2)]
    for name, value in weights[0].items():
        difference = float((value - weights[1][name]).norm() / value.norm())
        assert difference < 1e-5, name


@pytest.mark.slow
def test_two_processes_choose_the_same_of_a_pool(tmp_path):
    for count in (1, 2):
        finish(start(tmp_path / f"{count}", count, *POOL))
    one, two = (read_lines(tmp_path / f"{n}" / "allocations.jsonl") for n in (1, 2))
    for key in ("prompt_id", "count", "accepted"):
        assert [line[key] for line in one] == [line[key] for line in two]
    # Norms differ by the rounding of two micro-batches.
    for alone, shared in zip(one, two, strict=True):
        assert shared["expected_count"] == pytest.approx(alone["expected_count"], rel=1e-4)


@pytest.mark.slow
def test_several_processes_resume_and_stop_together(tmp_path):
    out = tmp_path / "run"
    process = start(out, 2, "--train.steps=100000")
    wait_for_steps(process, out, 3)
    process.send_signal(signal.SIGTERM)
    said = finish(process, 1)  # torchrun's own status
    last = untimed(out)[-1]["step"]
    assert f"the last good checkpoint is {out}/checkpoints/step-{last:06d}" in said
    steps = f"--train.steps={last + 1}"
    said = finish(start(out, 2, steps, "--resume", "--allow_changes=true"))
    assert f"Going on from step {last}" in said
    assert [line["step"] for line in untimed(out)] == list(range(last + 2))
    assert "is finished" in finish(start(out, 2, steps, "--resume"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_run(tmp_path, rank):
    out = tmp_path / "run"
    process = start(out, 2, "--train.steps=100000")
    wait_for_steps(process, out, 2)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    ranks = {}
    for child in children:
        with open(f"/proc/{child}/environ", encoding="utf-8") as file:
            pairs = dict(pair.split("=", 1) for pair in file.read().split("\0") if "=" in pair)
        if "RANK" in pairs:
            ranks[int(pairs["RANK"])] = int(child)
    os.kill(ranks[rank], signal.SIGKILL)
    killed = time.monotonic()
    said, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert time.monotonic() - killed < 60
    assert "SIGKILL" in said


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_all_processes(tmp_path):
    """Only the first process writes; the second must not wait for it."""
    out = tmp_path / "run"
    process = start(out, 2, "--train.steps=100000", "--checkpoint.interval=30")
    wait_for_steps(process, out, 2)
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").write_text("in the way")
    said = finish(process, 1)  # torchrun's own status
    lines = [line for line in said.splitlines() if line.startswith("dibs train: ")]
    assert len(lines) == 1
    assert "cannot be written" in lines[0]
    assert (
        "Traceback" not in said.partition("ChildFailedError")[0].partition("torch/distributed")[0]
    )


def wait_for_steps(process: subprocess.Popen, out, steps: int) -> None:
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(read_lines(out / "metrics.jsonl")) < steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
