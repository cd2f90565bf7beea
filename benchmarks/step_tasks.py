"""The shapes that ``step.py`` compares, and the policy and prompts of each."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from long_prompts import LONG_COMPLETION, save_long_prompts

from dibs.config import Config, WarmStartConfig
from dibs.model.warm_start import warm_started_policy
from dibs.runs.console import PlainView

LEARNING_RATE = 1e-8
SHAPES: dict[str, dict[str, int]] = {
    "embedded": {
        "prompts": 64,
        "updates": 4,
        "length": 16,
        "hidden_size": WarmStartConfig().hidden_size,
        "layers": WarmStartConfig().layers,
    },
    "long_prompts": {
        "prompts": 4,
        "updates": 1,
        "length": LONG_COMPLETION,
        "hidden_size": 256,
        "layers": 4,
    },
}
"""What the command line may change."""


@dataclass(frozen=True)
class Task:
    """The folder of a policy, the name or file of its prompts, and whether rewards are tosses."""

    model: str
    prompts: str
    tosses: bool


def embedded(args: argparse.Namespace, _: Path, view: PlainView) -> Task:
    """The embedded task after its warm start."""
    sizes = WarmStartConfig(
        hidden_size=args.hidden_size, layers=args.layers, updates=args.warm_start_updates
    )
    model = warm_started_policy(
        "arithmetic",
        sizes,
        lambda done, total, loss: view.preparing("warm start", done, total, f"loss {loss:.3f}"),
    )
    return Task(str(model), "arithmetic", tosses=False)


def long_prompts(args: argparse.Namespace, folder: Path, _: PlainView) -> Task:
    """Random weights and prompts, saved in ``folder``; no completion ends before its length."""
    places = save_long_prompts(
        folder, 64, hidden_size=args.hidden_size, layers=args.layers, endless=True
    )
    return Task(places["model"], places["prompts"], tosses=True)


TASKS = {"embedded": embedded, "long_prompts": long_prompts}


def of_shape(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The options of a shape: what the command line gives, else the shape's own numbers."""
    given = {key: value for key, value in vars(args).items() if value is not None}
    return argparse.Namespace(**{**SHAPES[name], **given})


def configuration(args: argparse.Namespace, task: Task, seed: int) -> Config:
    """A run of dibs without anything but steps.

    It has one step more than are taken: the last one would evaluate.
    """
    return Config.model_validate(
        {
            "seed": seed,
            "policy": {"model": task.model, "device": "cpu", "threads": args.threads},
            "data": {"train": task.prompts, "template": "plain"},
            "verify": {"verifier": "long_prompts:coin"} if task.tosses else {},
            "sampling": {"max_completion_length": args.length},
            "algorithm": {
                "name": "grpo",
                "estimator": "flat",
                "length_normalization": "sequence",
                "epsilon_high": None,
            },
            "estimate": {"mode": "none"},
            "allocate": {"allocator": "uniform", "num_generations": args.generations},
            "update": {"learning_rate": LEARNING_RATE, "updates_per_step": args.updates},
            "train": {
                "steps": args.warmup_steps + args.steps + 1,
                "prompts_per_step": args.prompts,
            },
            "variance": {"interval": 0},
            "evaluate": {"interval": 0},
        }
    )
