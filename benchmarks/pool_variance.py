"""The variance of whole steps: uniform shapes, counts inside a batch, and prompts and counts together.

Every arm spends 128 completions a step on the same policy, which stays as it is. Its steps are played
one after the other on a table of completions and their gradients (``gradient_tables.py``): 512 training
prompts with 64 completions each. Every step goes through the loop's own choice of prompts and counts and
its own weights; online arms remember what they drew. After 40 steps that fill the history, the variance
of the next ones is that of their gradients about their mean, summed over coordinates. No formula of the
package says what it should be.

``lower`` is the variance of uniform 16 x 8 with the target's usual baseline over the arm's, and ``low``,
``high`` 95% of a bootstrap over steps. ``keeps`` is the length of the mean gradient along the true one,
over that of the true one (1: unbiased). ``at one length`` is ``lower`` where both means have the same
length, so that an arm gains nothing by learning less. ``best shape`` is the least variance of the
uniform shapes with the same baseline, over the arm's.

    python benchmarks/pool_variance.py [--steps 1000] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from gradient_tables import Table, World, table
from rich.console import Console
from rich.progress import track
from rich.table import Table as Shown
from shared import positive

from dibs.allocation.choice import choose
from dibs.allocation.cross_fit import (
    StepEstimate,
    assign_rollouts,
    cross_fit,
    missing_counts,
    pooled,
    undivided,
)
from dibs.allocation.history import History
from dibs.config import Config, WarmStartConfig
from dibs.data.curriculum import batches_or_pools
from dibs.training.examples import weighted_examples
from dibs.types import Group

PROMPTS, SAMPLES, BUDGET, FILLING = 512, 64, 128, 40
POLICIES = ("polar", "arithmetic")
TARGETS: dict[str, dict[str, Any]] = {
    "log_likelihood": {"objective": "log_likelihood", "baseline": "none"},
    "expected_reward": {"objective": "expected_reward", "baseline": "none"},
    "leave_one_out": {"objective": "expected_reward", "baseline": "leave_one_out"},
}


@dataclass(frozen=True)
class Arm:
    """How steps are made: settings of a run, and whether it is a uniform shape."""

    name: str
    settings: Mapping[str, Mapping[str, Any]]
    shape: bool = False


def shape(m: int, **algorithm: Any) -> Arm:
    """So many prompts, and as many completions of each as the budget has."""
    name = f"uniform {m} x {BUDGET // m}" + "".join(f", {value}" for value in algorithm.values())
    size = {
        "allocate": {"num_generations": BUDGET // m, "allocator": "uniform"},
        "train": {"prompts_per_step": m},
    }
    return Arm(name, {**size, "algorithm": algorithm}, shape=True)


def joint(group: int, share: float = 0.25, **algorithm: Any) -> Arm:
    """Prompts and counts from the whole training set."""
    name = f"joint, groups of {group}" + "".join(f", {value}" for value in algorithm.values())
    select = {"pool": "all", "group": group, "uniform_share": share}
    note = "" if share == 0.25 else f", share {share:g}"
    return Arm(name + note, {"select": select, "algorithm": algorithm})


def crossed(pool: int, **algorithm: Any) -> Arm:
    """Two pilots of each prompt of a pool decide where the rest goes."""
    return Arm(
        f"joint, cross_fit over {pool}",
        {
            "select": {"pool": pool},
            "estimate": {"mode": "cross_fit", "num_pilots": 2},
            "algorithm": algorithm,
        },
    )


def arms(target: str, shares: bool) -> list[Arm]:
    """The arms of a target; ``shares``: also other uniform shares."""
    grouped = target == "leave_one_out"
    more = [joint(2 if grouped else 1, share) for share in (0.1, 0.5)]
    return [
        shape(16),
        shape(32),
        shape(64),
        *([] if grouped else [shape(128)]),
        shape(64, baseline="shrinkage"),
        shape(128, baseline="history"),
        Arm("min_variance 16 x 8, online", {}),
        Arm("min_variance 16 x 8, cross_fit", {"estimate": {"mode": "cross_fit", "num_pilots": 4}}),
        *([] if grouped else [joint(1)]),
        joint(2),
        joint(2, baseline="shrinkage"),
        joint(1, baseline="history"),
        crossed(32),
        *(more if shares else []),
    ]


def configured(target: str, arm: Arm) -> Config:
    """The configuration of an arm."""
    sections: dict[str, dict[str, Any]] = {
        "algorithm": {"name": "raft", "estimator": "prompt_mean", **TARGETS[target]},
        "estimate": {"mode": "online", "half_life": 80},
        "allocate": {"num_generations": 8},
        "train": {"prompts_per_step": 16},
    }
    for name, own in arm.settings.items():
        sections[name] = {**sections.get(name, {}), **own}
    return Config.model_validate(sections)


def true_gradient(known: Table, target: str) -> np.ndarray:
    """The gradient of the target over all prompts of a table, [D]."""
    right = known.accepted.astype(np.float64)
    rate = right.mean(1, keepdims=True)
    if target == "log_likelihood":
        factors = right / np.maximum(rate, 1e-9)
    elif target == "expected_reward":
        factors = right
    else:
        samples = right.shape[1]
        factors = (right - rate) * samples / (samples - 1)
    return np.einsum("nk,nkd->d", factors, known.vectors) / right.size


def gradients(known: Table, config: Config, steps: int, seed: int) -> Iterator[np.ndarray]:
    """The gradients of steps on a policy that stays as it is, [D] each."""
    world, history = World(known, seed), History(config.estimate.half_life)
    drawn = batches_or_pools(world.prompts, config.model_copy(update={"seed": seed}))
    for step, prompts in enumerate(islice(drawn, steps), start=1):
        names = [prompt.prompt_id for prompt in prompts]
        if config.estimate.mode == "cross_fit":
            pilots = world.draw(prompts, [config.estimate.num_pilots] * len(prompts))
            estimate: StepEstimate = cross_fit(pilots, world.norms(pilots))
        elif config.select.pool is None:
            estimate = undivided(history.statistics(names, step), prompts)
        else:
            estimate = pooled(*history.pool_statistics(names, step))
        choice = choose(prompts, estimate, config, step + 1_000_000 * seed)
        missing = missing_counts(choice.allocations, choice.parts)
        fresh = world.draw(choice.prompts, np.sum(missing, axis=0))
        dealt = assign_rollouts(fresh, missing, choice.parts)
        total = np.zeros(known.vectors.shape[2])
        for example in weighted_examples(dealt, choice.parts, choice.problems, config):
            vector = known.vectors[example.context_ids[0], example.completion_ids[0]]
            total += example.weight * example.advantage * vector
        groups = [Group.merged(each) for each in zip(*dealt, strict=True)]
        history.add(groups, world.norms(groups), step)
        yield total


def measured(known: Table, target: str, arm: Arm, steps: int, filling: int) -> dict[str, Any]:
    """The variance of an arm's steps, and squared distances of each step from their mean."""
    config = configured(target, arm)
    found = np.array(list(gradients(known, config, filling + steps, seed=1)))[filling:]
    mean, truth = found.mean(0), true_gradient(known, target)
    squares = ((found - mean) ** 2).sum(1) * steps / (steps - 1)
    return {
        "arm": arm.name,
        "shape": arm.shape,
        "squares": squares,
        "keeps": float(mean @ truth / (truth @ truth)),
    }


def rows(known: Table, policy: str, target: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each arm."""
    console = Console(stderr=True)
    chosen = arms(target, args.shares)
    cells = [
        measured(known, target, arm, args.steps, args.filling)
        for arm in track(chosen, f"{policy}, {target}", console=console)
    ]
    first = cells[0]
    usual = [c["squares"].mean() for c, a in zip(cells, chosen, strict=True) if _usual_shape(a)]
    rng = np.random.default_rng(0)
    made = []
    for cell in cells:
        draws = rng.integers(0, args.steps, (2, 1000, args.steps))
        ratios = first["squares"][draws[0]].mean(1) / cell["squares"][draws[1]].mean(1)
        lower = float(first["squares"].mean() / cell["squares"].mean())
        made.append(
            {
                "policy": policy,
                "target": target,
                "arm": cell["arm"],
                "variance": float(cell["squares"].mean()),
                "lower": lower,
                "low": float(np.quantile(ratios, 0.025)),
                "high": float(np.quantile(ratios, 0.975)),
                "keeps": cell["keeps"],
                "at_one_length": lower * (cell["keeps"] / first["keeps"]) ** 2,
                "best_shape": float(min(usual) / cell["squares"].mean()),
            }
        )
    return made


def _usual_shape(arm: Arm) -> bool:
    """Whether an arm is a uniform shape with the target's usual baseline."""
    return arm.shape and not arm.settings["algorithm"]


def main() -> None:
    """Play the steps of every arm and print their variances."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--steps", type=positive, default=1000, help="steps of each arm")
    parser.add_argument("--filling", type=int, default=FILLING, help="steps before them")
    parser.add_argument("--shares", action="store_true", help="also other uniform shares")
    parser.add_argument("--prompts", type=positive, default=PROMPTS, help="training prompts")
    parser.add_argument("--samples", type=positive, default=SAMPLES, help="completions of each")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of the policies' warm start; fewer for a quick try",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    args = parser.parse_args()
    quick = args.warm_start_updates != WarmStartConfig().updates
    made = []
    for policy in args.policies:
        known = table(
            policy,
            args.prompts,
            args.samples,
            updates=args.warm_start_updates if quick else None,
        )
        for target in args.targets:
            made += rows(known, policy, target, args)
    if args.json:
        print(json.dumps(made, indent=1))
        return
    shown = Shown(box=None, padding=(0, 1, 0, 0))
    for name in ("policy", "target", "arm"):
        shown.add_column(name, no_wrap=True)
    for name in ("lower", "95%", "keeps", "at one length", "best shape"):
        shown.add_column(name, justify="right")
    for row in made:
        shown.add_row(
            row["policy"],
            row["target"],
            row["arm"],
            f"{row['lower']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['keeps']:.2f}",
            f"{row['at_one_length']:.2f}",
            f"{row['best_shape']:.2f}",
        )
    Console(width=110).print(shown)


if __name__ == "__main__":
    main()
