"""Whether ``dibs variance --shapes`` foretells which uniform shape learns with fewest rollouts.

For every cell of the studies of shapes (a family and an objective), the meter measures the starting
policy before any training. Its gains of uniform shapes over 16 x 8 are set against what the study found:
how many times fewer rollouts each shape needed than 16 x 8, every shape at its own best learning rate.
``rank correlation`` is Spearman's of the shapes of a cell; the last line has its mean over cells.
``within`` is what the uniform shape that the meter finds best needed, over what the best one in the
study needed (1: it is the best one).

    python benchmarks/shape_order.py [--prompts 128] [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared import positive

from dibs.config import Config
from dibs.runs.console import NoView
from dibs.runs.measure_variance import run_variance

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
POLAR = ("arithmetic-habit", "arithmetic-polar", 512)
FAMILIES = {
    "polar": POLAR,
    "wide": ("arithmetic", "arithmetic", 4096),
    "arithmetic": ("arithmetic", "arithmetic", 256),
    "lengths": ("arithmetic-hard", "arithmetic-lengths", 256),
}
"""Policy, data and training prompts of each family, as in the studies."""
ALGORITHMS = {
    "raft++": {"name": "raft++", "objective": "log_likelihood"},
    "rloo": {
        "name": "grpo",
        "objective": "expected_reward",
        "baseline": "leave_one_out",
        "estimator": "prompt_mean",
    },
}
SHAPES = ("16x8", "32x4", "64x2")
COMPLETIONS = 128


def found_in_studies() -> dict[tuple[str, str], dict[str, float]]:
    """How many times fewer rollouts than 16 x 8 each shape needed, by family and objective."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for name in ("joint", "joint-families"):
        for row in json.loads((STUDIES / name / "results.json").read_text(encoding="utf-8")):
            if row["arm"] in SHAPES and row.get("speedup_rollouts"):
                cell = cells.setdefault((row["task"], row["algorithm"]), {})
                cell[row["arm"]] = row["speedup_rollouts"]
    return {
        key: {shape: cell[shape] / cell["16x8"] for shape in SHAPES}
        for key, cell in cells.items()
        if set(cell) == {*SHAPES}
    }


def foretold(task: str, algorithm: str, prompts: int, cache: Any) -> dict[str, Any]:
    """What the meter says of the starting policy: the gain of every shape, and its advice."""
    policy, data, size = FAMILIES[task]
    config = Config.model_validate(
        {
            "policy": {"model": policy, "threads": 1, **cache},
            "data": {"train": data, "size": size, "eval_size": 64},
            "sampling": {"max_completion_length": 16},
            "algorithm": ALGORITHMS[algorithm],
            "estimate": {"mode": "online", "grad_norm": "last_layer"},
            "allocate": {"num_generations": 8},
            "train": {"prompts_per_step": 16},
            "variance": {"prompts": prompts, "num_generations": 32},
        }
    )
    found = run_variance(config, NoView(), shapes=True)["shapes"]
    gains = {
        f"{row['prompts']}x{row['completions']}": row["gain"]["value"] or 0.0
        for row in found["shapes"]
        if row["rule"] == "uniform"
    }
    return {"gains": {shape: gains[shape] for shape in SHAPES}, "advice": found["advice"]}


def rank_correlation(one: dict[str, float], other: dict[str, float]) -> float:
    """Spearman's, of the shapes of a cell; their values differ."""
    first, second = (np.argsort(np.argsort([each[s] for s in SHAPES])) for each in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=positive, default=128, help="prompts that are measured")
    parser.add_argument("--warm-start-updates", type=int, help="fewer make it quick, for tests")
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    quick = args.warm_start_updates
    cache = {} if quick is None else {"warm_start": {"updates": quick}}

    cells = []
    for (task, algorithm), needed in found_in_studies().items():
        meter = foretold(task, algorithm, args.prompts, cache)
        gains = meter["gains"]
        best = max(SHAPES, key=gains.__getitem__)
        cells.append(
            {
                "task": task,
                "algorithm": algorithm,
                "foretold": gains,
                "found": needed,
                "best_foretold": best,
                "within": max(needed.values()) / needed[best],
                "rank_correlation": rank_correlation(gains, needed),
                "advice": meter["advice"],
            }
        )
    result = {
        "cells": cells,
        "rank_correlation": float(np.mean([cell["rank_correlation"] for cell in cells])),
        "worst_within": max(cell["within"] for cell in cells),
    }
    print(json.dumps(result, indent=1)) if args.json else print_table(result)


def print_table(result: dict[str, Any]) -> None:
    """For people."""
    console = Console()
    table = Table(
        "family",
        "objective",
        *(f"{s}: foretold, found" for s in SHAPES[1:]),
        "rank correlation",
        "within",
    )
    for cell in result["cells"]:
        table.add_row(
            cell["task"],
            cell["algorithm"],
            *(f"{cell['foretold'][s]:.2f}, {cell['found'][s]:.2f}" for s in SHAPES[1:]),
            f"{cell['rank_correlation']:.2f}",
            f"{cell['within']:.2f}",
        )
    console.print(table)
    for cell in result["cells"]:
        console.print(f"{cell['task']}, {cell['algorithm']}: {cell['advice']}", highlight=False)
    console.print(f"mean rank correlation {result['rank_correlation']:.2f}", highlight=False)


if __name__ == "__main__":
    main()
