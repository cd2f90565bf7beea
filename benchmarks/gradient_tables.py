"""Policies of the embedded task as tables of completions with their gradients: a finite world.

Of each of some hundred training prompts a table holds some dozen completions, and of each completion its
gradient, folded onto 1,024 entries. Whole steps are played on a table again and again: completions are
drawn from it with replacement, and the step's gradient is a weighted sum of its vectors. So the
variance of any way to make a step is that of repeated steps, without a formula.

A table is made once and kept in the user's cache folder (``DIBS_CACHE``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measured_policies import RECIPES, Recipe, trained
from platformdirs import user_cache_dir
from rich.console import Console
from rich.progress import track

from dibs.model.grad_norms import gradient_norms
from dibs.model.gradient_vector import Projection
from dibs.rollouts.source import Purpose
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from dibs.types import Completion, Group, Prompt, Rollout

ENTRIES = 1024


@dataclass(frozen=True)
class Table:
    """Completions of every prompt, [N, K], and their folded gradients, float32 [N, K, 1024].

    ``norms``: ``||s||`` over all parameters. ``lengths``: tokens.
    """

    accepted: np.ndarray
    norms: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    vectors: np.ndarray


def table(name: str, prompts: int, samples: int, *, updates: int | None = None) -> Table:
    """The table of a policy of ``RECIPES``; made in some minutes, or read if it was kept.

    ``updates``: of the policy's warm start, fewer for a quick try, which is not kept.
    """
    torch.set_num_threads(1)
    default = user_cache_dir("dibs", appauthor=False)
    short = f"{name.replace(', ', '-').replace(' ', '-')}-{prompts}x{samples}"
    path = Path(os.environ.get("DIBS_CACHE", default)) / f"gradients-{short}.npz"
    if path.exists() and updates is None:
        with np.load(path) as stored:
            return Table(**{key: stored[key] for key in stored.files})
    recipe = RECIPES[name]
    settings = {**recipe.settings, "data.size": str(prompts)}
    if updates is not None:
        settings["policy.warm_start.updates"] = str(updates)
    made = _made(Recipe(settings, recipe.steps), prompts, samples)
    if updates is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vars(made))
    return made


def _made(recipe: Recipe, prompts: int, samples: int) -> Table:
    console = Console(stderr=True)
    trainer = trained(recipe, 2, console)
    groups = trainer.draw(trainer.prompts.train[:prompts], [samples] * prompts, Purpose.METER, 1)
    updater = Updater(trainer.policy, PolicyLoss(None, 0.0), trainer.config.update, 1)
    project = Projection(updater.parameters, 0, ENTRIES)
    trainer.policy.model.eval()
    vectors = np.zeros((prompts, samples, ENTRIES), dtype=np.float32)
    norms = np.zeros((prompts, samples))
    for i, group in enumerate(track(groups, "gradients", console=console)):
        examples = [rollout.example(1.0, 1.0) for rollout in group.rollouts]
        norms[i] = np.sqrt(gradient_norms(trainer.policy, examples).squares)
        for j, example in enumerate(examples):
            updater.optimizer.zero_grad(set_to_none=True)
            updater.gradient([example])
            vectors[i, j] = project().cpu().numpy()
    trainer.source.close()
    completions = [[rollout.completion for rollout in group.rollouts] for group in groups]
    # The gradient of the loss is that of -ln pi.
    return Table(
        np.array([group.accepted for group in groups]),
        norms,
        np.array([[sum(c.sampling_logprobs) for c in row] for row in completions]),
        np.array([[len(c.token_ids) for c in row] for row in completions]),
        -vectors,
    )


class World:
    """Draws completions of a table's prompts, with replacement, and adds up their gradients."""

    def __init__(self, table: Table, seed: int) -> None:
        self.table = table
        self.rng = np.random.default_rng(seed)
        count, samples = table.norms.shape
        self.prompts = [Prompt(f"{i:06x}", "", (i,), "") for i in range(count)]
        # The token of a completion is its place in the table.
        self.rollouts = [
            [
                Rollout(
                    prompt,
                    Completion(
                        (j,) * int(table.lengths[i, j]), "", (float(table.logprobs[i, j]),), True
                    ),
                    float(table.accepted[i, j]),
                    "",
                    bool(table.accepted[i, j]),
                )
                for j in range(samples)
            ]
            for i, prompt in enumerate(self.prompts)
        ]

    def draw(self, prompts: Sequence[Prompt], counts: Sequence[int]) -> list[Group]:
        """Completions of each prompt."""
        samples = self.table.norms.shape[1]
        groups = []
        for prompt, count in zip(prompts, counts, strict=True):
            own = self.rollouts[prompt.token_ids[0]]
            picks = self.rng.integers(0, samples, count)
            groups.append(Group(prompt, tuple(own[j] for j in picks)))
        return groups

    def norms(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """``||s||`` of the completions of each group."""
        return [
            self.table.norms[
                group.prompt.token_ids[0], [r.completion.token_ids[0] for r in group.rollouts]
            ]
            for group in groups
        ]
