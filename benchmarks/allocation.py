"""How much gradient variance allocators save when they know prompts from a few completions only.

Two of the policies of ``measured_policies.py``, the warm-started one (A) and the same after five steps
of RAFT++ (B), and 96 held-out prompts with 256 completions each, whose moments are the truth. The
variance of an allocation is ``sum_i sigma_i^2 / n_i`` under the truth, for 8 completions a prompt on
average and at least one. Allocators see what N' completions drawn from the 256 tell:

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
import platform
import statistics
import time
import tracemalloc
from pathlib import Path

import numpy as np
from measured_policies import Pilots, Truth, add_options, policy
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shared import positive

from dibs.allocation.allocators import solve
from dibs.allocation.history import History
from dibs.allocation.least_variance import least_variance
from dibs.allocation.problem import Bounds, pose
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target

PER_PROMPT, VISITS = 8, 4
POLICIES = {"A": "arithmetic", "B": "arithmetic, 5 steps"}
TARGETS = {
    "log_likelihood": Target("log_likelihood", "none"),
    "expected_reward": Target("expected_reward", "none"),
    "expected_reward+mean": Target("expected_reward", "mean"),
    "grpo": Target("grpo", "mean"),
}
ALLOCATORS = ("gvm", "min_variance")


def rows(name: str, truth: Truth, repeats: int) -> list[dict]:
    """One row for each target, mode, N' and allocator."""
    result = []
    prompts = len(truth.squares)
    budget = PER_PROMPT * prompts
    bounds = np.ones(prompts, dtype=np.int64), np.full(prompts, budget)
    squares = {name: truth.sigma_squared(target) for name, target in TARGETS.items()}
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
                stats = pilot_statistics(*pilots.draw(n_pilot, range(prompts)))
            else:
                history = History(half_life=20.0)
                for visit in range(VISITS):
                    history.add(*pilots.draw(n_pilot, range(prompts)), step=visit)
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

    Times are medians of seven runs.
    """
    result = []
    for m in (most // 10, most):
        sigma = np.exp(np.random.default_rng(0).normal(0, 1.5, m))
        arguments = sigma, 8 * m, np.ones(m, dtype=np.int64), np.full(m, 8 * m)

        def seconds(run, *given, times: int = 7) -> float:
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
    for (name, target, mode, n_pilot, allocator), row in keyed.items():
        if allocator == "min_variance":
            gvm = keyed[name, target, mode, n_pilot, "gvm"]
            table.add_row(
                name,
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
    add_options(parser)
    parser.add_argument(
        "--repeats", type=positive, default=200, help="draws of pilots (default: 200)"
    )
    parser.add_argument(
        "--timed-prompts", type=int, default=10**7, help="most prompts of the timed allocation"
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows, variance only")
    parser.add_argument("--output", type=Path, help="also write rows and timings to this file")
    args = parser.parse_args()
    result = [
        row
        for name, recipe in POLICIES.items()
        for row in rows(name, policy(recipe, args), args.repeats)
    ]
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
