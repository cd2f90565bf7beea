"""Whether measured_gain, pooled over its window, is the true gain of the counts that training chose.

Runs of `dibs train` whose learning rate is next to 0, so that the policy stays the warm start. A step
has 16 prompts and 128 completions, and every step is measured. Windows of 16 steps do not overlap.
``measured_gain`` and its 95% interval are what the run recorded at the end of a window.

``true_gain`` is of the same prompts and the same counts. Each prompt has 96 further completions.
``sigma^2`` is the trace of the sample covariance of ``a s`` over them, by exact gradients over all
parameters and their inner products, with ``a`` at the moments of the 96. The variance of a step is
``sum_i sigma_i^2 / n_i``, a mean over parts under cross_fit. The gain is uniform's, summed over the
window, over the chosen counts'. ``second_moment_gain`` is the same without subtracting the mean
gradient, which training leaves in too. ``mean_of_ratios`` is the mean over steps of their own ratios.

A cell is a policy, a target and a mode. ``off`` is the factor between measured and true gain, less 1;
numbers are medians over the windows of a cell.

    python benchmarks/measured_gain.py [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shared import positive

from dibs.config import WarmStartConfig
from dibs.config.load import load_config
from dibs.loop import Trainer
from dibs.model.grad_norms import gradient_norms
from dibs.rollouts.source import Purpose
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView

PROMPTS, SAMPLES, PER_STEP, WINDOW, WINDOWS = 96, 96, 16, 16, 4
POLICIES = {
    "arithmetic": {},
    "polar": {"policy.model": "arithmetic-habit", "data.train": "arithmetic-polar"},
}
Advantages = Callable[[np.ndarray], np.ndarray]
TARGETS: dict[str, tuple[dict[str, str], Advantages]] = {
    "log_likelihood": (
        {"algorithm.objective": "log_likelihood"},
        lambda r: r / max(r.mean(), 1e-9),
    ),
    "expected_reward": (
        {"algorithm.objective": "expected_reward", "algorithm.baseline": "leave_one_out"},
        lambda r: r - r.mean(),
    ),
    "grpo": (
        {"algorithm.objective": "grpo", "algorithm.baseline": "mean"},
        lambda r: (r - r.mean()) / max(r.std(), 1e-9),
    ),
}
MODES = {
    "cross_fit": {"estimate.num_pilots": "4"},
    "online": {},
}


def trainer_of(args: argparse.Namespace, folder: str, settings: dict[str, str]) -> Trainer:
    """A run that measures every step and leaves its policy as it is."""
    config = load_config(
        Path(__file__).parents[1] / "configs" / "demo.yaml",
        {
            "output_dir": f"{folder}/run",
            "data.size": str(args.prompts),
            "data.eval_size": "2",
            "evaluate.interval": "0",
            "evaluate.num_generations": "1",
            "estimate.grad_norm": "exact",
            "allocate.allocator": "min_variance",
            "allocate.lower": "1",
            "update.learning_rate": "1e-30",
            "update.updates_per_step": "1",
            "train.prompts_per_step": str(args.per_step),
            "train.steps": str(args.window * args.windows),
            "variance.interval": "1",
            "variance.window": str(args.window),
            "policy.warm_start.updates": str(args.warm_start_updates),
            **settings,
        },
    )
    return build_trainer(config, PlainView(Console(stderr=True)))


def truth(args: argparse.Namespace, policy: str) -> dict[str, dict[str, tuple[float, float]]]:
    """``sigma^2`` and ``E[a^2 ||s||^2]`` of every target and prompt id, by inner products."""
    found: dict[str, dict[str, tuple[float, float]]] = {target: {} for target in TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"allocate.allocator": "uniform", "estimate.mode": "none"}
        trainer = trainer_of(args, folder, {**POLICIES[policy], **settings})
        prompts = trainer.prompts.train
        groups = trainer.draw(prompts, [args.samples] * len(prompts), Purpose.METER, 0)
        for group in track(groups, f"truth, {policy}", console=Console(stderr=True)):
            n = len(group.rollouts)
            examples = [rollout.example() for rollout in group.rollouts]
            measured = gradient_norms(trainer.policy, examples, group_sizes=[n])
            for target, (_, advantages) in TARGETS.items():
                a = advantages(group.rewards)
                products = measured.products[0] * np.outer(a, a)
                square = products.trace()
                variance = (square - products.sum() / n) / (n - 1)
                found[target][group.prompt.prompt_id] = (variance, square / n)
        trainer.source.close()
    return found


def windows_of(
    args: argparse.Namespace, settings: dict[str, str], sigmas: dict[str, tuple[float, float]]
) -> Iterator[dict[str, float | None]]:
    """What a run recorded at the end of each window, and the truth."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(args, folder, settings)
        counts: list[tuple[list[str], list[np.ndarray]]] = []
        judged = trainer.gradients.gain

        def noted(groups_of_parts, problems, allocations):
            counts.append((allocations[0].prompt_ids, [each.counts for each in allocations]))
            return judged(groups_of_parts, problems, allocations)

        trainer.gradients.gain = noted
        steps = []
        for record in trainer.run():
            steps.append(record.metrics)
            if record.step % args.window == 0:
                part = slice(record.step - args.window, record.step)
                yield {**summary(steps[part]), **true_gains(counts[part], sigmas)}
        trainer.source.close()


def summary(steps: list[dict]) -> dict[str, float | None]:
    """The recorded gain of a window, and what the mean of its steps' ratios would be."""
    ratios = [
        step["measured_variance_uniform"] / step["measured_variance"]
        for step in steps
        if step["measured_variance"]
    ]
    keys = ("measured_gain", "measured_gain_low", "measured_gain_high")
    recorded = {key: steps[-1][key] for key in keys}
    return {**recorded, "mean_of_ratios": float(np.mean(ratios)) if ratios else None}


def true_gains(counts, sigmas: dict[str, tuple[float, float]]) -> dict[str, float | None]:
    """Summed variances of uniform counts over those of the chosen, by the truth."""
    sums = np.zeros((2, 2))
    for prompt_ids, parts in counts:
        squares = np.array([sigmas[each] for each in prompt_ids])
        each = sum(part.sum() for part in parts) / len(prompt_ids)
        chosen = sum(1 / part for part in parts) / len(parts) ** 2
        sums += np.stack([squares.sum(0) / each, chosen @ squares])
    gains = [float(even / own) if own > 0 else None for even, own in sums.T]
    return {"true_gain": gains[0], "second_moment_gain": gains[1]}


def measure(args: argparse.Namespace) -> list[dict]:
    """One row for each window of each cell."""
    rows = []
    for policy, task in POLICIES.items():
        sigmas = truth(args, policy)
        for mode in args.modes:
            for target, (settings, _) in TARGETS.items():
                options = {**task, **settings, **MODES[mode], "estimate.mode": mode}
                for i, found in enumerate(windows_of(args, options, sigmas[target])):
                    cell = {"policy": policy, "target": target, "mode": mode, "window": i + 1}
                    rows.append({**cell, **found})
                    print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def _median(values: np.ndarray) -> float | None:
    """Of those that are known."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def cells(rows: list[dict]) -> list[dict]:
    """Medians over the windows of each cell, and the share of intervals that hold the truth."""
    found = []
    for name in dict.fromkeys((row["policy"], row["target"], row["mode"]) for row in rows):
        own = [row for row in rows if (row["policy"], row["target"], row["mode"]) == name]
        measured, true, moments, ratios = (
            np.array([row[key] for row in own], dtype=np.float64)
            for key in ("measured_gain", "true_gain", "second_moment_gain", "mean_of_ratios")
        )
        covered = [
            row["measured_gain_low"] <= row["true_gain"] <= row["measured_gain_high"]
            for row in own
            if None not in (row["measured_gain_low"], row["true_gain"])
        ]
        found.append(
            {
                **dict(zip(("policy", "target", "mode"), name, strict=True)),
                "measured_gain": _median(measured),
                "true_gain": _median(true),
                "second_moment_gain": _median(moments),
                "mean_of_ratios": _median(ratios),
                "off": _median(np.expm1(abs(np.log(measured / true)))),
                "mean_of_ratios_off": _median(np.expm1(abs(np.log(ratios / true)))),
                "covered": float(np.mean(covered)) if covered else None,
            }
        )
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=positive, default=PROMPTS, help="prompts of the task")
    parser.add_argument(
        "--samples", type=positive, default=SAMPLES, help="completions of the truth"
    )
    parser.add_argument("--per-step", type=positive, default=PER_STEP, help="prompts of a step")
    parser.add_argument("--window", type=positive, default=WINDOW, help="steps of a window")
    parser.add_argument("--windows", type=positive, default=WINDOWS, help="windows of a cell")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["cross_fit", "online"])
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of the warm start; fewer for a quick try",
    )
    parser.add_argument("--json", action="store_true", help="print cells and windows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args)
    found = cells(rows)
    off = {
        key: _median(np.array([cell[key] for cell in found], dtype=np.float64))
        for key in ("off", "mean_of_ratios_off")
    }
    if args.json:
        print(json.dumps({"median_cell": off, "cells": found, "windows": rows}, indent=1))
        return
    names = ("policy", "target", "mode")
    columns = [key for key in found[0] if key not in names]
    table = Table(*names, *(key.replace("_", " ") for key in columns))
    for cell in found:
        values = ("-" if cell[key] is None else f"{cell[key]:.2f}" for key in columns)
        table.add_row(*(cell[key] for key in names), *values)
    console = Console(width=150)
    console.print(table)
    if None not in off.values():
        console.print(
            f"median cell: measured gain off by {off['off']:.1%}, "
            f"mean of ratios by {off['mean_of_ratios_off']:.1%}"
        )


if __name__ == "__main__":
    main()
