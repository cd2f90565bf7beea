"""What checkpoints cost: their share of a run's wall time, at the default interval and at every step.

Both runs are the demo's configuration, one after the other in one process.

    python benchmarks/saving.py [--steps 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from shared import positive

from dibs.config import CheckpointConfig, Config, WarmStartConfig
from dibs.config.load import load_config
from dibs.runs.console import PlainView
from dibs.runs.train_run import run_training

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def share(config: Config) -> dict[str, float]:
    """Train once; the seconds and the share of them that went into checkpoints."""
    summary = run_training(config, PlainView(Console(quiet=True)))
    seconds, saving = summary["wall_seconds"], summary["saving_seconds"]
    return {"wall_seconds": seconds, "saving_seconds": saving, "share": saving / seconds}


def main() -> None:
    """Run both and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=positive, default=20, help="training steps of each run")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of the policy's warm start; fewer for a quick try",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    default = CheckpointConfig().interval
    results = {}
    for name, interval in {"default_interval": default, "every_step": 1}.items():
        with tempfile.TemporaryDirectory() as folder:
            keys = {
                "output_dir": f"{folder}/run",
                "policy.warm_start.updates": str(args.warm_start_updates),
                "train.steps": str(args.steps),
                "checkpoint.interval": str(interval),
            }
            results[name] = {"interval": interval, **share(load_config(DEMO, keys))}
    if args.json:
        print(json.dumps({"steps": args.steps, **results}, indent=1))
        return
    table = Table("checkpoints", "steps apart", "run, s", "saving, s", "share", box=None)
    for name, row in results.items():
        table.add_row(
            name.replace("_", " "),
            str(row["interval"]),
            f"{row['wall_seconds']:.1f}",
            f"{row['saving_seconds']:.3f}",
            f"{row['share']:.2%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
