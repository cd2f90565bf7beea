"""Policies of the embedded task whose prompts were measured with many completions, as a finite truth.

Each policy has a few dozen prompts with some hundred completions each. These completions are the world
of a benchmark: an allocator sees a few, drawn from them with replacement, and the moments over all of
them say what its counts are worth. Nothing here is fitted.

A policy is measured once and kept in the user's cache folder (``DIBS_CACHE``).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_dir
from rich.console import Console
from rich.progress import track
from shared import positive

from dibs.allocation.target import Target
from dibs.config import WarmStartConfig
from dibs.config.load import load_config
from dibs.loop import Trainer
from dibs.model.grad_norms import gradient_norms
from dibs.rollouts.source import Purpose
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.types import Completion, Group, Prompt, Rollout

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
_POLAR = {
    "policy.model": "arithmetic-habit",
    "data.train": "arithmetic-polar",
    "data.size": "512",
    "update.learning_rate": "6e-4",
    "update.updates_per_step": "1",
    "train.prompts_per_step": "16",
}


@dataclass(frozen=True)
class Recipe:
    """How a policy is made: settings beside the demo's, and training steps with uniform counts."""

    settings: Mapping[str, str]
    steps: int


def language_model(folder: str, data: str) -> Recipe:
    """A real model, from its folder, on questions of a file; as it is, without training."""
    return Recipe(
        {
            "policy.model": folder,
            "policy.dtype": "float32",
            "data.train": data,
            "sampling.max_completion_length": "40",
            "verify.answer_from": "anywhere",
            "update.micro_batch_tokens": "2048",
        },
        0,
    )


RECIPES = {
    "arithmetic": Recipe({}, 0),
    "arithmetic, 5 steps": Recipe({}, 5),
    "polar": Recipe(_POLAR, 0),
    "polar, 48 steps": Recipe(_POLAR, 48),
}


@dataclass(frozen=True)
class Truth:
    """Completions of every prompt, [prompts, samples], and ``||E[s | accepted]||^2`` [prompts].

    ``squares``: ``||s||^2`` over all parameters. ``lengths``: tokens.
    """

    accepted: np.ndarray
    squares: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    mean_square: np.ndarray

    def sigma_squared(self, target: Target) -> np.ndarray:
        """The variance of one completion's share of the gradient, [prompts]."""
        rate = self.accepted.mean(1)
        moments = [
            np.where(chosen, self.squares, 0).sum(1) / np.maximum(chosen.sum(1), 1)
            for chosen in (self.accepted, ~self.accepted)
        ]
        return target.variance(rate, *moments, self.mean_square)


PROMPTS, SAMPLES = 96, 256
"""Measured prompts of a policy of the embedded task, and completions of each."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of a benchmark that measures policies; :func:`policy` reads them."""
    parser.add_argument(
        "--prompts", type=positive, default=PROMPTS, help="measured prompts of a policy"
    )
    parser.add_argument(
        "--samples", type=positive, default=SAMPLES, help="completions of each prompt"
    )
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of the policies' warm start; fewer for a quick try",
    )
    parser.add_argument("--again", action="store_true", help="measure the policies again")


def policy(name: str, args: argparse.Namespace) -> Truth:
    """The truth of a policy of ``RECIPES``; kept if it is of the usual size."""
    recipe, updates = RECIPES[name], str(args.warm_start_updates)
    recipe = Recipe({**recipe.settings, "policy.warm_start.updates": updates}, recipe.steps)
    size = (args.prompts, args.samples)
    usual = (*size, args.warm_start_updates) == (PROMPTS, SAMPLES, WarmStartConfig().updates)
    return measured(name, recipe, *size, again=args.again, keep=usual)


def measured(
    name: str, recipe: Recipe, prompts: int, samples: int, *, again: bool = False, keep: bool = True
) -> Truth:
    """The truth of a policy: measured, which takes some minutes, or read if it was kept."""
    torch.set_num_threads(1)
    default = user_cache_dir("dibs", appauthor=False)
    short = f"{name.replace(', ', '-').replace(' ', '-')}-{prompts}x{samples}"
    path = Path(os.environ.get("DIBS_CACHE", default)) / f"measured-{short}.npz"
    if path.exists() and keep and not again:
        with np.load(path) as stored:
            return Truth(**stored)
    truth = _measure(recipe, prompts, samples)
    if keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vars(truth))
    return truth


def trained(recipe: Recipe, prompts: int, console: Console) -> Trainer:
    """A run at its end, with so many held-out prompts."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            CONFIG,
            {
                "allocate.allocator": "uniform",
                "estimate.mode": "none",
                "output_dir": f"{folder}/run",
                "evaluate.interval": "0",
                "data.eval_size": str(prompts),
                **recipe.settings,
                "train.steps": str(max(recipe.steps, 1)),
            },
        )
        trainer = build_trainer(config, PlainView(console))
        if recipe.steps:
            for _ in trainer.run():
                pass
    return trainer


def _measure(recipe: Recipe, prompts: int, samples: int) -> Truth:
    console = Console(stderr=True)
    trainer = trained(recipe, prompts, console)
    groups = trainer.draw(trainer.prompts.eval, [samples] * prompts, Purpose.EVALUATION, 1)
    squares, means = [], []
    for group in track(groups, "gradients", console=console):
        found = gradient_norms(
            trainer.policy, [rollout.example() for rollout in group.rollouts], group_sizes=[samples]
        )
        assert found.products is not None
        chosen = found.products[0][np.ix_(group.accepted, group.accepted)]
        pairs = max(len(chosen) * (len(chosen) - 1), 1)
        squares.append(found.squares)
        means.append((chosen.sum() - np.trace(chosen)) / pairs)
    completions = [[rollout.completion for rollout in group.rollouts] for group in groups]
    return Truth(
        np.array([group.accepted for group in groups]),
        np.array(squares),
        np.array([[sum(c.sampling_logprobs) for c in row] for row in completions]),
        np.array([[len(c.token_ids) for c in row] for row in completions]),
        np.array(means),
    )


class Pilots:
    """Draws completions of a policy from the measured ones, with replacement."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.norms = np.sqrt(truth.squares)
        self.prompts = [Prompt(str(i), "", (0,), "") for i in range(len(truth.squares))]
        rows = zip(truth.accepted, truth.logprobs, truth.lengths, strict=True)
        self.rollouts = [
            [
                Rollout(
                    prompt,
                    Completion((0,) * int(length), "", (float(lp),), True),
                    float(ok),
                    "",
                    bool(ok),
                )
                for ok, lp, length in zip(*row, strict=True)
            ]
            for prompt, row in zip(self.prompts, rows, strict=True)
        ]

    def draw(self, count: int, chosen: Sequence[int]) -> tuple[list[Group], list[np.ndarray]]:
        """Groups of ``count`` rollouts of the chosen prompts, and their gradient norms."""
        picks = self.rng.integers(0, self.norms.shape[1], (len(chosen), count))
        groups = [
            Group(self.prompts[i], tuple(self.rollouts[i][j] for j in row))
            for i, row in zip(chosen, picks, strict=True)
        ]
        return groups, [self.norms[i][row] for i, row in zip(chosen, picks, strict=True)]
