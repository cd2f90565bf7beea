"""Whole runs of seconds: on problems of one step, in this process or by the command itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dibs.config.load import load_config, split_config
from dibs.files import read_lines
from dibs.runs.console import NoView, PlainView
from dibs.runs.train_run import run_training

EASY = "arithmetic-easy"
"""Problems of one step: four seconds of warm start give a policy that is right half the time."""
EASY_WARM_START = {"hidden_size": 48, "heads": 2, "layers": 1, "updates": 400, "batch_size": 64}
WORDS = [
    f"--policy.model={EASY}",
    f"--data.train={EASY}",
    "--data.size=64",
    "--data.eval_size=8",
    "--policy.threads=1",
    "--policy.device=cpu",
    "--sampling.max_completion_length=12",
    "--estimate.num_pilots=4",
    "--estimate.interval=3",
    "--allocate.num_generations=4",
    "--update.learning_rate=1e-3",
    "--update.schedule=cosine",
    "--train.steps=8",
    "--train.prompts_per_step=8",
    "--evaluate.interval=3",
    "--evaluate.num_generations=2",
    "--checkpoint.interval=2",
    "--tracking.samples_interval=1",
    *(f"--policy.warm_start.{key}={value}" for key, value in EASY_WARM_START.items()),
]
PILOT_FREE = ["--allocate.allocator", "uniform", "--estimate.mode", "none"]
ONLINE = ["--estimate.mode=online", "--estimate.interval=1"]
POOL = [*ONLINE, "--select.pool=all"]


def options(out: Path, *more: str) -> list[str]:
    small = {
        "output_dir": out,
        "policy.model": EASY,
        "policy.threads": 1,
        "policy.device": "cpu",
        "data.train": EASY,
        "data.size": 64,
        "data.eval_size": 8,
        "sampling.max_completion_length": 12,
        "estimate.num_pilots": 4,
        "allocate.num_generations": 4,
        "update.learning_rate": 1e-3,
        "update.updates_per_step": 2,
        "train.steps": 2,
        "train.prompts_per_step": 8,
        "evaluate.interval": 1,
        "evaluate.num_generations": 2,
    } | {f"policy.warm_start.{key}": value for key, value in EASY_WARM_START.items()}
    return [*(f"--{key}={value}" for key, value in small.items()), *more]


def run(out: Path, *more: str) -> dict:
    return run_training(
        load_config(*split_config(options(out, *more))), PlainView(Console(quiet=True))
    )


def untimed(out: Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if "second" not in key}
        for line in read_lines(out / "metrics.jsonl")
    ]


def start(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dibs", "train", *WORDS, *more, f"--output_dir={out}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def result(out: Path) -> list[object]:
    """All that must not depend on interruptions."""
    lines = [
        {key: value for key, value in line.items() if "second" not in key}
        for name in ("metrics.jsonl", "allocations.jsonl", "samples.jsonl")
        for line in read_lines(out / name)
    ]
    return [(out / "model" / "model.safetensors").read_bytes(), lines]


def whole_and_resumed(words: Callable[..., dict[str, str]], folder: Path) -> tuple[Path, Path]:
    """A run of two steps in one piece, and the same one stopped after the first step and resumed.

    ``words(out, **more)``: the keys of a run in a folder.
    """
    whole, parts = folder / "whole", folder / "parts"
    more = {"resume": "yes", "allow_changes": "true"}
    for own in (words(whole), words(parts, **{"train.steps": "1"}), words(parts, **more)):
        run_training(load_config(None, own), NoView())
    return whole, parts


def drawn(out: Path, *keys: str) -> list[list[object]]:
    """These keys of every step of allocations.jsonl."""
    return [[line.get(key) for key in keys] for line in read_lines(out / "allocations.jsonl")]
