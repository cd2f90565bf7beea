"""Train the embedded task with a per-prompt budget and uniformly, and compare both ways.

Three arms, all with the same optimizer updates: GVM-RAFT++ with 8 pilots and 8 training completions a
prompt, and RAFT++ uniform with 8 and with 16. Against uniform-8 the training rollouts are equal and
the pilots come on top; against uniform-16 everything sampled is equal. Writes OUT/<arm>/ (a run folder
each), OUT/comparison.json and OUT/figures/.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path

from rich.console import Console

from demo_comparison import (
    TOTAL,
    TRAINING,
    comparison_rows,
    comparison_tables,
    differences,
)
from dibs.config.load import load_config
from dibs.files import write_json
from dibs.report.figures import draw_figures
from dibs.runs.console import view_for
from dibs.runs.train_run import run_training
from dibs.types import InputError

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
UNIFORM = {"allocate.allocator": "uniform", "estimate.mode": "none"}
ARMS = {
    "gvm-8": {},
    "uniform-8": UNIFORM,
    "uniform-16": {**UNIFORM, "allocate.num_generations": "16"},
}
ACCOUNTINGS = {TRAINING: ("gvm-8", "uniform-8"), TOTAL: ("gvm-8", "uniform-16")}


def main() -> int:
    """Run the arms and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/demo"), help="folder OUT (default: runs/demo)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: the config's)")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        help="updates of the warm start (default: the config's); fewer for a quick try",
    )
    options = parser.parse_args()

    console = Console()
    started = time.perf_counter()
    wanted = {
        "train.steps": options.steps,
        "policy.warm_start.updates": options.warm_start_updates,
    }
    shorten = {key: str(value) for key, value in wanted.items() if value is not None}
    runs = {arm: options.output_dir / arm for arm in ARMS}
    try:
        for arm, overrides in ARMS.items():
            console.rule(arm)
            place = {"output_dir": str(runs[arm]), "overwrite": "true"}
            config = load_config(CONFIG, {**overrides, **shorten, **place})
            with closing(view_for(console)) as view:
                run_training(config, view)
    except InputError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2

    rows = comparison_rows(runs, ACCOUNTINGS)
    write_json(options.output_dir / "comparison.json", rows)
    figures = draw_figures(runs, options.output_dir / "figures")
    console.rule("comparison")
    console.print(
        "Held-out accuracy at equal optimizer updates. Rollouts and tokens include the pilots.",
        highlight=False,
    )
    for table in comparison_tables(rows):
        console.print(table)
    for line in differences(rows):
        console.print(line, highlight=False)
    console.print(
        "One seed: the intervals cover the choice of evaluation prompts, not the luck of a run."
    )
    console.print(f"Figures: {', '.join(map(str, figures))}", soft_wrap=True, highlight=False)
    console.print(f"Total time: {time.perf_counter() - started:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
