"""What a step with `min_variance` in mode `online` and exact norms takes, over a uniform one.

Three arms run in one process, step by step in turns, with equal rollouts and updates: uniform counts;
`estimate.grad_norm update`, whose norms come from the updates' own backward passes; and `exact`, which
takes a pass of its own. A step of the second and third is divided by the uniform step of the same round,
and the median over rounds counts. CPU seconds of the process are compared beside seconds, since other
programs of a busy machine hardly change them.

Two shapes: the embedded task as it is, and long prompts (256 tokens, completions of 64, 4 layers of
width 256, random weights). Their rewards are tosses of a coin, so that nearly every completion has an
advantage. The learning rate is tiny, so that the policy stays as it was. Lastly the norms of an update
are compared with those of the separate pass.

    python benchmarks/online_overhead.py [--json]
    python benchmarks/online_overhead.py --updates 4
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from long_prompts import LONG_COMPLETION, save_long_prompts
from rich.console import Console
from shared import positive

from dibs.config import Config, WarmStartConfig
from dibs.loop import Trainer
from dibs.model.grad_norms import gradient_norms
from dibs.model.warm_start import warm_started_policy
from dibs.rollouts.source import Purpose
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView

TASK = "arithmetic"
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"estimate": {"mode": "none"}, "allocate": {"allocator": "uniform"}},
    "update": {
        "estimate": {"mode": "online", "grad_norm": "update"},
        "allocate": {"allocator": "min_variance"},
    },
    "exact": {
        "estimate": {"mode": "online", "grad_norm": "exact"},
        "allocate": {"allocator": "min_variance"},
    },
}


def embedded(_: Path, updates: int) -> dict[str, Any]:
    """The embedded task's policy after its warm start."""
    model = warm_started_policy(TASK, WarmStartConfig(updates=updates), lambda *_: None)
    return {
        "policy": {"model": str(model)},
        "data": {"train": TASK},
        "sampling": {"max_completion_length": 16},
        "train": {"prompts_per_step": 64},
    }


def long_prompts(folder: Path, _: int) -> dict[str, Any]:
    """A random policy and random prompts, saved in ``folder``."""
    places = save_long_prompts(folder, 16)
    return {
        "policy": {"model": places["model"]},
        "data": {"train": places["prompts"]},
        "verify": {"verifier": "long_prompts:coin"},
        "sampling": {"max_completion_length": LONG_COMPLETION},
        "train": {"prompts_per_step": 4},
    }


SHAPES = {"embedded": embedded, "long_prompts": long_prompts}


def trainer_of(shape: dict[str, Any], arm: dict[str, Any], args: argparse.Namespace) -> Trainer:
    """A run that does nothing but steps; it has one more than are taken, since the last evaluates."""
    config = Config.model_validate(
        {
            "seed": 0,
            "policy": {**shape["policy"], "device": "cpu", "threads": 1},
            "data": {"template": "plain", **shape["data"]},
            "verify": {"workers": 1, **shape.get("verify", {})},
            "sampling": shape["sampling"],
            "algorithm": {"name": "grpo"},
            "estimate": arm["estimate"],
            "allocate": {"num_generations": 8, **arm["allocate"]},
            "update": {"learning_rate": 1e-8, "updates_per_step": args.updates},
            "train": {**shape["train"], "steps": args.warmup_rounds + args.rounds + 1},
            "variance": {"interval": 0},
            "evaluate": {"interval": 0},
        }
    )
    return build_trainer(config, PlainView(Console(stderr=True, quiet=True)))


def timed(records: Iterator[Any]) -> dict[str, float]:
    """Seconds of the next step, and what it did."""
    wall, cpu = time.perf_counter(), time.process_time()
    metrics = next(records).metrics
    taken = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    names = ("rollouts", "learned")
    names += ("estimate_seconds", "allocate_seconds", "sample_seconds", "verify_seconds")
    names += ("weigh_seconds", "update_seconds", "remember_seconds")
    return taken | {name: metrics.get(name, 0.0) for name in names}


def norm_error(trainer: Trainer) -> float:
    """Largest relative difference of an update's norms to those of a pass of their own."""
    prompts = trainer.prompts.train[:4]
    groups = [trainer.source.draw([p], [8], Purpose.TRAINING, 1)[0][0] for p in prompts]
    made = [rollout.example(1.0, 0.01) for group in groups for rollout in group.rollouts]
    squares = np.full(len(made), np.nan)
    trainer.updater.gradient(made, squares=squares)
    expected = gradient_norms(trainer.policy, made).norms
    return float(np.max(np.abs(np.sqrt(squares) / expected - 1)))


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ratios to uniform of one shape."""
    shape = SHAPES[name](folder, args.warm_start_updates)
    names = ["uniform", *args.arms]
    trainers = {arm: trainer_of(shape, ARMS[arm], args) for arm in names}
    runs = {arm: trainer.run() for arm, trainer in trainers.items()}
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(args.warmup_rounds + args.rounds):
        arms = names[number % len(names) :] + names[: number % len(names)]
        rounds.append({arm: timed(runs[arm]) for arm in arms})
    counted = rounds[args.warmup_rounds :]
    result: dict[str, Any] = {"norm_error": norm_error(trainers[names[-1]])}
    for records in runs.values():
        records.close()
    for trainer in trainers.values():
        trainer.source.verifier.close()
    for arm in args.arms:
        for key in ("seconds", "cpu_seconds"):
            ratios = [each[arm][key] / each["uniform"][key] for each in counted]
            result[f"{arm}_{key}_over_uniform"] = statistics.median(ratios)
            result[f"{arm}_{key}_range"] = [min(ratios), max(ratios)]
    result["arms"] = {
        arm: {key: statistics.median(each[arm][key] for each in counted) for key in counted[0][arm]}
        for arm in names
    }
    return result


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument(
        "--arms", nargs="+", choices=["update", "exact"], default=["update", "exact"]
    )
    parser.add_argument("--rounds", type=positive, default=12, help="timed steps of each arm")
    parser.add_argument("--warmup-rounds", type=int, default=3, help="steps before them")
    parser.add_argument("--updates", type=int, default=1, help="optimizer updates a step")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of the embedded policy's warm start; fewer for a quick try",
    )
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    os.chdir(Path(__file__).resolve().parent)  # where the verifier's processes find ``coin``
    with tempfile.TemporaryDirectory() as folder:
        shapes = {name: measure(name, args, Path(folder)) for name in args.shapes}
    result = {"shapes": shapes, "updates": args.updates, "rounds": args.rounds}
    result["hardware"] = platform.processor() or platform.machine()
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for name, row in shapes.items():
        found = ", ".join(
            f"{arm} {row[f'{arm}_seconds_over_uniform']:.2f} "
            f"(CPU seconds {row[f'{arm}_cpu_seconds_over_uniform']:.2f})"
            for arm in args.arms
        )
        print(
            f"{name}: over uniform, {found}; largest difference of a norm {row['norm_error']:.1e}"
        )


if __name__ == "__main__":
    main()
