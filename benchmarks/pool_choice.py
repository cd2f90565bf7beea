"""What it costs to choose the prompts of a step from a large pool: seconds and memory.

A pool of N prompts of which some are known: each of these had 16 completions, spread over the last 40
steps. ``PromptBudget.choose`` spends 128 completions on the pool, singly. ``seconds`` is the median of
ten choices, ``arrays`` the peak of new memory in arrays of N numbers of 8 bytes. Names and what is
remembered are there before and do not count.

``of a step`` compares with ``--step-seconds``, which is that of the demo's steps unless given.

    python benchmarks/pool_choice.py [--json]
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared import positive

from dibs import BudgetConfig, PromptBudget

CASES = ((512, 512), (100_000, 10_000), (1_000_000, 30_000), (1_000_000, 300_000))
REPEATS, BUDGET, STEP_SECONDS = 10, 128, 1.09


def filled(known: int, prompts: int) -> tuple[PromptBudget, list[str]]:
    """A budget that has seen some of the prompts."""
    rng = np.random.default_rng(0)
    budget = PromptBudget(
        BudgetConfig(objective="expected_reward", baseline="history", half_life=80), warns=False
    )
    names = [f"prompt {i}" for i in range(prompts)]
    seen = rng.choice(prompts, known, replace=False)
    for chosen in np.array_split(seen, 40):
        rates = rng.beta(0.4, 0.4, len(chosen))
        rewards = [rng.binomial(1, rate, 16).astype(float) for rate in rates]
        norms = [np.exp(rng.normal(0, 0.5, 16)) for _ in rates]
        budget.update([names[i] for i in chosen], rewards, grad_norms=norms)
    return budget, names


def row(prompts: int, known: int, repeats: int) -> dict[str, Any]:
    """Seconds and memory of a choice."""
    budget, names = filled(known, prompts)
    seconds = []
    for seed in range(repeats):
        began = time.perf_counter()
        chosen = budget.choose(names, BUDGET, seed=seed)
        seconds.append(time.perf_counter() - began)
    assert chosen.counts.sum() == BUDGET
    tracemalloc.start()
    budget.choose(names, BUDGET)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "prompts": prompts,
        "known": known,
        "seconds": float(np.median(seconds)),
        "slowest": float(max(seconds)),
        "arrays": peak / (8 * prompts),
        "gain": budget.metrics()["expected_gain"],
    }


def main() -> None:
    """Time choices and print what they cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=positive, default=REPEATS, help="choices that are timed")
    parser.add_argument("--largest", type=positive, default=1_000_000, help="largest pool")
    parser.add_argument(
        "--step-seconds", type=float, default=STEP_SECONDS, help="seconds of a step to compare with"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    args = parser.parse_args()
    rows = [row(*case, args.repeats) for case in CASES if case[0] <= args.largest]
    for each in rows:
        each["of_a_step"] = each["seconds"] / args.step_seconds
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("prompts", "known", "seconds", "slowest", "arrays", "of a step", "expected gain"):
        table.add_column(name, justify="right")
    for each in rows:
        table.add_row(
            f"{each['prompts']:,}",
            f"{each['known']:,}",
            f"{each['seconds']:.3f}",
            f"{each['slowest']:.3f}",
            f"{each['arrays']:.1f}",
            f"{each['of_a_step']:.1%}",
            f"{each['gain']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
