"""Train the embedded task with a per-prompt budget and with uniform counts, and compare the two.

The three arms have the same optimizer updates. gvm-8 is GVM-RAFT++ with 8 pilots and 8 training
completions for each prompt; uniform-8 and uniform-16 are RAFT++ with 8 and 16 completions. gvm-8 and
uniform-8 have equal training rollouts, and gvm-8 draws pilots in addition. gvm-8 and uniform-16 have
equal rollouts in all. Writes a run folder OUT/ARM for each arm, OUT/comparison.json and OUT/figures/.
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
    parser.add_argument(
        "--steps", type=int, help="training steps; the default is that of the configuration"
    )
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        help="updates of the warm start, fewer for a quick try (default: the configuration's)",
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
        "Each arm is one run: the intervals are over evaluation prompts and leave out the luck of a run."
    )
    console.print(f"Figures: {', '.join(map(str, figures))}", soft_wrap=True, highlight=False)
    console.print(f"Total time: {time.perf_counter() - started:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
