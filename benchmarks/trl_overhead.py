"""What the TRL plug-in costs: DIBSGRPOTrainer with allocator ``uniform`` against stock GRPOTrainer.

Both train the same random model with GRPO on the CPU in float32, from the same seed, so they draw the
same completions and make the same updates; rewards are by chance, from the text. A round trains each
from the start, in turns: in every other round the plug-in goes first. A step is timed from the end of
the one before to its own end, generation included; the first is left out. ``overhead`` is the median
over rounds of the ratio of median step times, less 1; ``cpu_overhead`` the same in time of the process,
which neighbors on the machine disturb less.

    make bench-trl
    .venv-trl/bin/python benchmarks/trl_overhead.py [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
import transformers
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from shared import positive
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from dibs.config import WarmStartConfig
from dibs.integrations.trl import DIBSConfig, DIBSGRPOTrainer
from dibs.model.warm_start import build_model, build_tokenizer

SIDES = ("stock", "uniform")
CLOCKS = ("wall", "cpu")


class Clock(TrainerCallback):
    """Time of each step, by the wall and of this process."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def medians(self) -> dict[str, float]:
        """Seconds a step, without the first."""
        steps = np.diff(np.array(self.ends), axis=0)
        return dict(zip(CLOCKS, np.median(steps, axis=0).tolist(), strict=True))


def chance(completions: list[str], **_: Any) -> list[float]:
    """1 for a third of all texts."""
    return [float(crc32(text.encode()) % 3 == 0) for text in completions]


def train(side: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Median seconds of a step of one run."""
    tokenizer = build_tokenizer()
    model = build_model(WarmStartConfig(hidden_size=args.hidden_size), tokenizer)
    rows = [{"prompt": f"{i // 29}A+{i % 29}B=", "answer": str(i % 29)} for i in range(800)]
    clock = Clock()
    given: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "reward_funcs": chance,
        "train_dataset": Dataset.from_list(rows),
        "callbacks": [clock],
        "args": GRPOConfig(
            output_dir=str(folder),
            seed=0,
            per_device_train_batch_size=args.prompts * args.generations,
            num_generations=args.generations,
            max_completion_length=args.length,
            max_steps=args.steps + 1,
            learning_rate=1e-6,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    }
    if side == "stock":
        trainer = GRPOTrainer(**given)
    else:
        trainer = DIBSGRPOTrainer(**given, dibs=DIBSConfig(allocator="uniform", mode=args.mode))
    trainer.train()
    return clock.medians()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds as one object."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for i in range(args.rounds):
            order = SIDES if i % 2 == 0 else SIDES[::-1]
            rounds.append({side: train(side, args, Path(folder)) for side in order})
    ratios = {
        clock: sorted(each["uniform"][clock] / each["stock"][clock] - 1 for each in rounds)
        for clock in CLOCKS
    }
    return {
        "overhead": statistics.median(ratios["wall"]),
        "cpu_overhead": statistics.median(ratios["cpu"]),
        "overhead_of_rounds": ratios,
        "step_seconds": {
            side: {
                clock: statistics.median(each[side][clock] for each in rounds) for clock in CLOCKS
            }
            for side in SIDES
        },
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "numpy")},
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=positive, default=32, help="a step")
    parser.add_argument("--generations", type=positive, default=8, help="a prompt")
    parser.add_argument("--length", type=positive, default=48, help="most tokens of a completion")
    parser.add_argument("--hidden-size", type=positive, default=96, help="of the model")
    parser.add_argument("--steps", type=positive, default=6, help="timed ones of a run")
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--mode", default="online", choices=("online", "none"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("trainer", *(f"{clock} seconds a step" for clock in CLOCKS))
    for side, seconds in found["step_seconds"].items():
        table.add_row(side, *(f"{each:.3f}" for each in seconds.values()))
    console = Console()
    console.print(table)
    for clock, name in zip(CLOCKS, ("overhead", "cpu_overhead"), strict=True):
        rounds = found["overhead_of_rounds"][clock]
        low, high = rounds[0], rounds[-1]
        console.print(f"{name} {found[name]:.1%} (rounds: {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
