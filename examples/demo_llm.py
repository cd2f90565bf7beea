"""Train SmolLM2-135M-Instruct on sums with two ways of spending the same rollouts, and compare them.

Both arms make one optimizer update of 128 completions a step, so rollouts and updates are equal. uniform
draws 16 prompts with 8 completions each; pool draws from all prompts, more where the gradient is noisy.
Writes a run folder OUT/ARM for each arm, OUT/comparison.json, OUT/figures/ and OUT/report/. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from demo_comparison import TOTAL, comparison_rows, comparison_tables, differences
from dibs.config.load import load_config
from dibs.files import write_json
from dibs.report.figures import draw_figures
from dibs.report.write import write_report
from dibs.runs.console import view_for
from dibs.runs.train_run import run_training
from dibs.types import InputError

CONFIG = Path(__file__).parents[1] / "configs" / "smollm2.yaml"
ARMS = {
    "uniform": {
        "allocate.allocator": "uniform",
        "estimate.mode": "none",
        "select.pool": "null",
    },
    "pool": {},
}


def main() -> int:
    """Run the arms and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/demo-llm"),
        help="folder OUT (default: runs/demo-llm)",
    )
    parser.add_argument("--steps", type=int, help="training steps of each arm (default: 16)")
    parser.add_argument("--seed", type=int, help="seed of both arms (default: 0)")
    parser.add_argument(
        "--threads",
        type=int,
        help="CPU threads; give 1 on a busy machine (default: torch's choice)",
    )
    options = parser.parse_args()

    console = Console()
    started = time.perf_counter()
    wanted = {
        "train.steps": options.steps,
        "seed": options.seed,
        "policy.threads": options.threads,
    }
    given = {key: str(value) for key, value in wanted.items() if value is not None}
    runs = {arm: options.output_dir / arm for arm in ARMS}
    try:
        for arm, overrides in ARMS.items():
            console.rule(arm)
            place = {"output_dir": str(runs[arm]), "resume": "auto"}
            config = load_config(CONFIG, {**overrides, **given, **place})
            with closing(view_for(console)) as view:
                run_training(config, view)
    except InputError as error:
        print(f"demo-llm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130

    rows = comparison_rows(runs, {TOTAL: tuple(ARMS)})
    for row in rows:
        row["peak_memory_gb"] = peak_memory_gb()
    write_json(options.output_dir / "comparison.json", rows)
    draw_figures(runs, options.output_dir / "figures")
    written = write_report(list(runs.values()), options.output_dir / "report")
    console.rule("comparison")
    for table in comparison_tables(rows):
        console.print(table)
    for row in rows:
        console.print(rise(row), highlight=False, soft_wrap=True)
    for line in differences(rows):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        "Each arm is one run: the intervals are over held-out prompts and leave out the luck of a run."
    )
    console.print(
        f"Peak memory: {peak_memory_gb():.1f} GB. Total time: {time.perf_counter() - started:.0f} s. "
        f"Page: {written['page']}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def rise(row: Mapping[str, Any]) -> str:
    """How much an arm's held-out accuracy rose, with the 95% interval of Newcombe (1998, method 10).

    Both evaluations score the same prompts, which the interval leaves out of account: it is too wide.
    """
    before, after = float(row["accuracy_before"]), float(row["accuracy_after"])
    below = math.hypot(after - row["accuracy_after_low"], row["accuracy_before_high"] - before)
    above = math.hypot(row["accuracy_after_high"] - after, before - row["accuracy_before_low"])
    gain = after - before
    return (
        f"{row['arm']}: held-out accuracy {before:.3f} -> {after:.3f}, up by {gain:.3f} "
        f"(95% {gain - below:.3f} to {gain + above:.3f}), with {row['rollouts']:,} rollouts, "
        f"{row['completion_tokens']:,} tokens, {row['wall_seconds']:.0f} s"
    )


def peak_memory_gb() -> float:
    """The most memory that this process has held, in units of 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    raise SystemExit(main())
