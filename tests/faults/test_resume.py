"""Runs that are killed at any moment and resumed end as if nothing had happened, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

from dibs.config.load import load_config
from dibs.files import read_lines
from dibs.types import InputError
from tiny_runs import ONLINE, POOL, WORDS, finish, result, run, start, untimed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The result and the seconds of runs that were left alone, by what was asked for."""
    runs: dict[tuple[str, ...], tuple[list[object], float]] = {}

    def of(*more: str) -> tuple[list[object], float]:
        if more not in runs:
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            started = time.monotonic()
            finish(start(out, *more))
            runs[more] = result(out), time.monotonic() - started
        return runs[more]

    return of


def kill_and_resume(undisturbed, tmp_path, seed: int, *more: str, most: int = 1) -> None:
    """Kill a run at random moments, ``most`` times at most, and let it come to its end."""
    expected, seconds = undisturbed(*more)
    out = tmp_path / "run"
    chance = random.Random(seed)
    for _ in range(most):
        process = start(out, *more, "--resume=auto")
        try:
            process.wait(timeout=chance.uniform(0.4, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            continue
        assert process.returncode == 0, process.communicate()[0]
        break
    else:
        finish(start(out, *more, "--resume=auto"))
    assert result(out) == expected
    assert (out / "summary.json").exists()
    assert not list(out.rglob(".unfinished*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ONLINE,
        POOL,
        [*POOL, "--allocate.allocator=greso"],
        [*POOL, "--allocate.allocator=mopps"],
        [*ONLINE, "--allocate.allocator=cero"],
        [*ONLINE, "--allocate.allocator=uniform", "--allocate.rounds=reinforce_ada_pos"],
    ],
    ids=["online", "pool", "greso", "mopps", "cero", "rounds"],
)
def test_killed_online_runs_end_the_same(undisturbed, tmp_path, more):
    kill_and_resume(undisturbed, tmp_path, 4, *more)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_killed_runs_end_the_same_thirty_times(undisturbed, tmp_path, seed):
    kill_and_resume(undisturbed, tmp_path, seed, *(ONLINE if seed % 2 else []), most=3)


PHASES = (
    *("estimate", "update", "save"),
    *(
        pytest.param(phase, marks=pytest.mark.slow)
        for phase in ("allocate", "sample", "verify", "weigh", "evaluate")
    ),
)


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_in_each_phase(tmp_path, phase, monkeypatch):
    """In this process: the phase of the third step raises instead, and the run goes on from step 2."""
    measured = ("--variance.interval=1", "--allocate.lower=1")
    words = (*WORDS[6:], *measured, "--estimate.interval=1", "--evaluate.interval=1")

    class KilledError(BaseException):
        pass

    calls = {"n": 0}

    def interrupt(name):
        calls["n"] += name == phase
        if name == phase and calls["n"] == 3:
            raise KilledError

    from dibs.runs.checkpoints import Checkpoints
    from dibs.runs.console import PlainView

    monkeypatch.setattr(PlainView, "phase", lambda self, name: interrupt(name))
    saved = Checkpoints.save

    def save(self, *arguments):
        interrupt("save")
        return saved(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", *words)
    monkeypatch.setattr(PlainView, "phase", lambda self, name: None)
    monkeypatch.setattr(Checkpoints, "save", saved)
    run(tmp_path / "killed", *words, "--resume=yes")
    run(tmp_path / "whole", *words)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    # The window of measurements went on over the kill.
    last = read_lines(tmp_path / "whole" / "metrics.jsonl")[-1]
    assert last["measured_gain"] != last["measured_variance_uniform"] / last["measured_variance"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_finish_the_step_and_save(tmp_path, number):
    out = tmp_path / "run"
    # Also where no checkpoint was asked for.
    interval = 0 if number == signal.SIGTERM else 100000
    process = start(out, "--train.steps=100000", f"--checkpoint.interval={interval}")
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(read_lines(out / "metrics.jsonl")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{number.name}: stopping after this step; once more stops at once" in said
    last = read_lines(out / "metrics.jsonl")[-1]["step"]
    assert f"the last good checkpoint is {out}/checkpoints/step-{last:06d}" in said
    steps = f"--train.steps={last}"
    summary = run(out, *WORDS[6:], steps, "--resume=yes", "--allow_changes=true")
    assert summary["optimizer_updates"] == 4 * last


def test_a_request_to_stop_before_the_first_step_is_heard(tmp_path, monkeypatch):
    """The signal comes while the policy is scored for the first time."""
    from dibs.runs.console import PlainView

    said = []
    monkeypatch.setattr(PlainView, "phase", lambda self, _: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(PlainView, "message", lambda self, text: said.append(text))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *WORDS[6:], "--checkpoint.interval=0")
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [0]
    assert "SIGTERM: stopping after this step; once more stops at once" in said
    assert "step-000000. The same command with --resume goes on from it." in said[-1]


def test_a_request_to_stop_in_the_last_step_lets_the_run_end(tmp_path, monkeypatch):
    from dibs.runs.console import PlainView

    def step(self, metrics, steps):
        if metrics["step"] == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PlainView, "step", step)
    run(tmp_path / "run", *WORDS[6:], "--train.steps=2")
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_second_run_in_one_folder_is_refused(tmp_path):
    out = tmp_path / "run"
    first = start(out, "--train.steps=100000")
    while not (out / "metrics.jsonl").exists():
        time.sleep(0.05)
    for more in ("--resume=yes", "--overwrite=true"):
        with pytest.raises(InputError, match=f"is in use by process {first.pid}, started 20"):
            run(out, *WORDS[6:], "--train.steps=100000", more)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()


def test_other_configurations_are_refused_key_by_key(tmp_path):
    words = (*WORDS[6:], "--train.steps=2")
    out = tmp_path / "run"
    with pytest.raises(InputError, match="holds no run to resume"):
        run(out, *words, "--resume=yes")
    summary = run(out, *words, "--resume=auto")
    with pytest.raises(
        InputError, match=r"another configuration \(seed: 0 -> 1; train.steps: 2 -> 3\)"
    ):
        run(out, *words, "--resume=yes", "--seed=1", "--train.steps=3")
    # A finished run is not done again.
    assert run(out, *words, "--resume=yes", "--checkpoint.keep=5") == summary
    # With more steps to go it is gone on with, as configured now.
    more = (*words, "--resume=yes", "--allow_changes=true", "--update.schedule=constant")
    longer = run(out, *more, "--train.steps=3", "--update.learning_rate=5e-4")
    assert longer["optimizer_updates"] == 2 * 3
    assert untimed(out)[3]["learning_rate"] == pytest.approx(5e-4)
    assert load_config(out / "config.yaml").train.steps == 3
    (out / "summary.json").unlink()
    with pytest.raises(InputError, match=r"train.steps is 1, but the run in .* is at step"):
        run(out, *more, "--train.steps=1")
    for folder in (out / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    with pytest.raises(InputError, match="holds no whole checkpoint to resume from"):
        run(out, *more, "--train.steps=3")
