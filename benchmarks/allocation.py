"""How much gradient variance allocators save when they know prompts from a few completions only.

Two policies of the embedded task, the warm-started one (A) and the same after five steps of RAFT++ (B),
and 96 held-out prompts with 256 completions each. Their moments are taken as the truth: accept rate,
squared gradient norms over all parameters, and inner products for the mean gradient. The variance of an
allocation is ``sum_i sigma_i^2 / n_i`` under the truth, for 8 completions a prompt on average and at
least one. Allocators see what N' completions drawn from the 256 tell:

    pilot    N' of the prompt, now
    online   N' at each of 4 earlier visits

``ratio`` is the variance of uniform over the mean variance of 200 draws, ``captured`` is
(ratio - 1) / (oracle - 1). Everything is seeded. Also: seconds of exact integer allocation against
numpy's sort.

    python benchmarks/allocation.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dibs.allocation.allocators import solve
from dibs.allocation.history import History
from dibs.allocation.least_variance import least_variance
from dibs.allocation.problem import Bounds, pose
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.config import WarmStartConfig
from dibs.config.load import load_config
from dibs.model.grad_norms import gradient_norms
from dibs.rollouts.source import Purpose
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.types import Completion, Group, Prompt, Rollout

PROMPTS, SAMPLES, PER_PROMPT, VISITS = 96, 256, 8, 4
STEPS = 5
POLICIES = ("A", "B")
TARGETS = {
    "log_likelihood": Target("log_likelihood", "none"),
    "expected_reward": Target("expected_reward", "none"),
    "expected_reward+mean": Target("expected_reward", "mean"),
    "grpo": Target("grpo", "mean"),
}
ALLOCATORS = ("gvm", "min_variance")


@dataclass(frozen=True)
class Truth:
    """Samples of every prompt, [prompts, samples], and ``||E[s | accepted]||^2`` [prompts]."""

    accepted: np.ndarray
    squares: np.ndarray
    logprobs: np.ndarray
    mean_square: np.ndarray

    def sigma_squared(self, target: str) -> np.ndarray:
        """The variance of one completion's share of the gradient, [prompts]."""
        rate = self.accepted.mean(1)
        moments = [
            np.where(chosen, self.squares, 0).sum(1) / np.maximum(chosen.sum(1), 1)
            for chosen in (self.accepted, ~self.accepted)
        ]
        return TARGETS[target].variance(rate, *moments, self.mean_square)


def measure(args: argparse.Namespace, steps: int) -> Truth:
    """Sample a policy trained for ``steps`` steps and take its gradients' moments."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            Path(__file__).parents[1] / "configs" / "demo.yaml",
            {
                "allocate.allocator": "uniform",
                "estimate.mode": "none",
                "output_dir": f"{folder}/run",
                "train.steps": str(max(steps, 1)),
                "evaluate.interval": "0",
                "data.eval_size": str(args.prompts),
                "policy.warm_start.updates": str(args.warm_start_updates),
            },
        )
        trainer = build_trainer(config, PlainView(Console(stderr=True)))
        if steps:
            for _ in trainer.run():
                pass
    prompts = trainer.prompts.eval
    counts = [args.samples] * args.prompts
    groups = trainer.draw(prompts, counts, Purpose.EVALUATION, 1)
    squares, means = [], []
    for group in track(groups, "gradients", console=Console(stderr=True)):
        sequences = [rollout.example() for rollout in group.rollouts]
        measured = gradient_norms(trainer.policy, sequences, group_sizes=[args.samples])
        (products,) = measured.products
        chosen = products[np.ix_(group.accepted, group.accepted)]
        pairs = max(len(chosen) * (len(chosen) - 1), 1)
        squares.append(measured.squares)
        means.append((chosen.sum() - np.trace(chosen)) / pairs)
    return Truth(
        np.array([group.accepted for group in groups]),
        np.array(squares),
        np.array([[sum(r.completion.sampling_logprobs) for r in g.rollouts] for g in groups]),
        np.array(means),
    )


def truth_of(name: str, args: argparse.Namespace) -> Truth:
    """Measured once and, at the default sizes, cached; the measurement takes two to three minutes."""
    steps = 0 if name == "A" else args.steps
    sizes = (args.prompts, args.samples, args.steps, args.warm_start_updates)
    torch.set_num_threads(1)
    if sizes != (PROMPTS, SAMPLES, STEPS, WarmStartConfig().updates):
        return measure(args, steps)
    default = user_cache_dir("dibs", appauthor=False)
    path = Path(os.environ.get("DIBS_CACHE", default)) / f"benchmark-allocation-{name}.npz"
    if path.exists() and not args.again:
        with np.load(path) as stored:
            return Truth(**stored)
    truth = measure(args, steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **vars(truth))
    return truth


class Pilots:
    """Draws completions of a policy from the measured ones, with replacement."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.norms = np.sqrt(truth.squares)
        self.prompts = [Prompt(str(i), "", (0,), "") for i in range(len(truth.squares))]
        self.rollouts = [
            [
                Rollout(prompt, Completion((0,), "", (float(lp),), True), float(ok), "", bool(ok))
                for ok, lp in zip(accepted, logprobs, strict=True)
            ]
            for prompt, accepted, logprobs in zip(
                self.prompts, truth.accepted, truth.logprobs, strict=True
            )
        ]

    def draw(self, count: int) -> tuple[list[Group], list[np.ndarray]]:
        """Groups of ``count`` rollouts and their gradient norms."""
        prompts, samples = self.norms.shape
        picks = self.rng.integers(0, samples, (prompts, count))
        groups = [
            Group(prompt, tuple(rollouts[j] for j in row))
            for prompt, rollouts, row in zip(self.prompts, self.rollouts, picks, strict=True)
        ]
        return groups, [norms[row] for norms, row in zip(self.norms, picks, strict=True)]


def rows(name: str, truth: Truth, repeats: int) -> list[dict]:
    """One row for each target, mode, N' and allocator."""
    result = []
    prompts = len(truth.squares)
    budget = PER_PROMPT * prompts
    bounds = np.ones(prompts, dtype=np.int64), np.full(prompts, budget)
    squares = {target: truth.sigma_squared(target) for target in TARGETS}
    oracle = {
        target: (square / PER_PROMPT).sum()
        / (square / least_variance(np.sqrt(square), budget, *bounds)).sum()
        for target, square in squares.items()
    }
    for mode, n_pilot in [*(("pilot", n) for n in (4, 8, 16, 32)), ("online", 8)]:
        spent: dict[tuple[str, str], list[float]] = {}
        pilots = Pilots(truth, seed=n_pilot)
        what = f"policy {name}, {mode}, N' = {n_pilot}"
        for _ in track(range(repeats), what, console=Console(stderr=True)):
            if mode == "pilot":
                stats = pilot_statistics(*pilots.draw(n_pilot))
            else:
                history = History(half_life=20.0)
                for visit in range(VISITS):
                    history.add(*pilots.draw(n_pilot), step=visit)
                stats = history.statistics([p.prompt_id for p in pilots.prompts], step=VISITS)
            for target, wanted in TARGETS.items():
                problem = pose(stats, budget, wanted, bounds=Bounds(lower=1))
                for allocator in ALLOCATORS:
                    counts = solve(problem, allocator).counts
                    spent.setdefault((target, allocator), []).append(
                        (squares[target] / counts).sum()
                    )
        for (target, allocator), variances in spent.items():
            even = (squares[target] / PER_PROMPT).sum()
            ratio = float(even / np.mean(variances))
            result.append(
                {
                    "policy": name,
                    "target": target,
                    "mode": mode,
                    "n_pilot": n_pilot,
                    "allocator": allocator,
                    "ratio": ratio,
                    "oracle_ratio": float(oracle[target]),
                    "captured": float((ratio - 1) / (oracle[target] - 1)),
                    "worst_ratio": float(even / np.max(variances)),
                }
            )
    return result


def speed(most: int) -> list[dict]:
    """Exact integer allocation against numpy's sort, for ``most`` prompts and a tenth of them.

    Times are medians of five runs.
    """
    result = []
    for m in (most // 10, most):
        sigma = np.exp(np.random.default_rng(0).normal(0, 1.5, m))
        arguments = sigma, 8 * m, np.ones(m, dtype=np.int64), np.full(m, 8 * m)

        def seconds(run, *given, times: int = 5) -> float:
            spent = []
            for _ in range(times):
                started = time.perf_counter()
                run(*given)
                spent.append(time.perf_counter() - started)
            return statistics.median(spent)

        sort, solved = seconds(np.sort, sigma), seconds(least_variance, *arguments)
        tracemalloc.start()
        least_variance(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        result.append(
            {
                "prompts": m,
                "sort_seconds": sort,
                "seconds": solved,
                "over_sort": solved / sort,
                "peak_arrays": peak / (8 * m),
            }
        )
    return result


def print_tables(result: list[dict], timings: list[dict]) -> None:
    """For people."""
    console = Console(width=130)
    table = Table(
        "policy",
        "target",
        "mode",
        "N'",
        "oracle",
        *ALLOCATORS,
        "captured by min_variance",
        "worst draw",
    )
    keyed = {(r["policy"], r["target"], r["mode"], r["n_pilot"], r["allocator"]): r for r in result}
    for (policy, target, mode, n_pilot, allocator), row in keyed.items():
        if allocator == "min_variance":
            gvm = keyed[policy, target, mode, n_pilot, "gvm"]
            table.add_row(
                policy,
                target,
                mode,
                str(n_pilot),
                f"{row['oracle_ratio']:.2f}",
                f"{gvm['ratio']:.2f}",
                f"{row['ratio']:.2f}",
                f"{100 * row['captured']:.0f}%",
                f"{row['worst_ratio']:.2f}",
            )
    console.print(table)
    table = Table(
        "prompts", "numpy sort, s", "allocation, s", "over the sort", "peak memory, arrays"
    )
    for row in timings:
        table.add_row(
            f"{row['prompts']:,}",
            f"{row['sort_seconds']:.3f}",
            f"{row['seconds']:.3f}",
            f"{row['over_sort']:.1f}",
            f"{row['peak_arrays']:.1f}",
        )
    console.print(table)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="held-out prompts")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="completions of each prompt")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of policy B")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of policy A's warm start; fewer for a quick try",
    )
    parser.add_argument("--repeats", type=int, default=200, help="draws of pilots (default: 200)")
    parser.add_argument(
        "--timed-prompts", type=int, default=10**7, help="most prompts of the timed allocation"
    )
    parser.add_argument("--again", action="store_true", help="measure the truth again")
    parser.add_argument("--json", action="store_true", help="print a list of rows, variance only")
    parser.add_argument("--output", type=Path, help="also write rows and timings to this file")
    args = parser.parse_args()
    result = [row for name in POLICIES for row in rows(name, truth_of(name, args), args.repeats)]
    timings = [] if args.json and not args.output else speed(args.timed_prompts)
    if args.output:
        machine = {"processor": platform.processor() or platform.machine(), "timings": timings}
        args.output.write_text(json.dumps({"rows": result, **machine}, indent=1) + "\n")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_tables(result, timings)


if __name__ == "__main__":
    main()
