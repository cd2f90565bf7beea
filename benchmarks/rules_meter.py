"""Every rule of docs/rules.md by one meter: noise, cost and bias of its steps, without training.

For each task of studies/rules.yaml, completions of the starting policy are drawn and their gradients
measured once. Steps of every arm are then simulated on them, as ``dibs variance`` does. ``gain`` is how
many times less noisy steps are than those of 64 prompts x 2 completions at equal rollouts, pilots
counted, for gradients as long along the target's. ``keeps`` is that length, where 1 is the target's.
``cosine`` is that of the angle between the expected gradient and the target's: below 1 a rule aims
elsewhere, whatever its noise.

``trained`` is what the study found by training, if it is there: how many times fewer rollouts than 64 x
2. ``rank correlation`` is Spearman's of both columns over the rules of a task.

    python benchmarks/rules_meter.py [--tasks arithmetic polar lengths] [--prompts 64] [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from shared import positive

from dibs.allocation.simulated_steps import StepNoise
from dibs.config import Config
from dibs.data.curriculum import batches
from dibs.runs.build import build_trainer
from dibs.runs.console import NoView
from dibs.study.matrix import Cell, read_study
from dibs.training.measured_gradients import GradientSource, MeasuredGradients
from dibs.training.step_meter import step_noise, step_row

ROOT = Path(__file__).parents[1]
REFERENCE = "64x2"
ELSEWHERE = {"ead": "samples otherwise", "curverl": "weighs prompts", "maxrl": "has another target"}
"""Arms that the meter of GRPO's gradient says nothing of, and why."""


def cells_of(tasks: list[str], updates: int | None) -> dict[str, list[Cell]]:
    """The arms of each task under GRPO."""
    more = {} if updates is None else {"policy.warm_start.updates": str(updates)}
    study = read_study([ROOT / "studies" / "rules.yaml"], more)
    grpo = [cell for cell in study.cells if cell.algorithm == "grpo"]
    return {task: [cell for cell in grpo if cell.task == task] for task in tasks}


def measured_at_start(
    config: Config, prompts: int, completions: int
) -> tuple[MeasuredGradients, int]:
    """Gradients of the starting policy, and how many training prompts there are."""
    variance = config.variance.model_copy(update={"num_generations": completions})
    config = config.model_copy(update={"variance": variance})
    trainer = build_trainer(config, NoView())
    try:
        source = GradientSource(config, trainer.policy, trainer.source, trainer.gradients)
        # Parts of a mixture come one after the other; a batch is drawn from all.
        batch = next(batches(trainer.prompts.train, prompts, config.seed))
        return source.measure(batch), len(trainer.prompts.train)
    finally:
        trainer.source.close()


def trained(task: str) -> dict[str, float | None]:
    """How many times fewer rollouts than the reference each arm needed in the study."""
    path = ROOT / "docs" / "studies" / "rules" / "results.json"
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    own = (row for row in rows if (row["task"], row["algorithm"]) == (task, "grpo"))
    return {row["arm"]: row["speedup_rollouts"] for row in own}


def rows_of(task: str, cells: list[Cell], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a rule."""
    arms = {cell.arm: cell.config(0) for cell in cells}
    measured, available = measured_at_start(arms[REFERENCE], options.prompts, options.completions)
    noise: dict[str, StepNoise] = {
        arm: step_noise(config, measured, available, steps=options.steps)
        for arm, config in arms.items()
        if arm not in ELSEWHERE
    }
    found = trained(task)
    return [
        {"task": task, "arm": arm, "trained": found.get(arm)}
        | (step_row(noise[arm], noise[REFERENCE]) if arm in noise else {"left_out": ELSEWHERE[arm]})
        for arm in arms
    ]


def rank_correlation(rows: list[dict[str, Any]]) -> float | None:
    """Of the meter's gain and the study's, over the rules that have both."""
    both = [
        (row["gain_per_rollout"]["value"], row["trained"])
        for row in rows
        if row["trained"] is not None and row.get("gain_per_rollout", {}).get("value") is not None
    ]
    return float(spearmanr(*zip(*both, strict=True)).statistic) if len(both) > 2 else None


def show(task: str, rows: list[dict[str, Any]], console: Console) -> None:
    """A table of one task."""
    table = Table(title=task, box=None, padding=(0, 1, 0, 0))
    for name in ("rule", "rollouts", "prompts", "gain (95%)", "keeps", "cosine", "trained"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for row in rows:
        if "left_out" in row:
            table.add_row(row["arm"], f"- {row['left_out']}")
            continue
        gain, pilots = row["gain_per_rollout"], row["pilot_rollouts"]
        table.add_row(
            row["arm"],
            f"{row['rollouts']:.0f}" + (f"+{pilots:.0f}" if pilots else ""),
            f"{row['trained_prompts']:.0f}",
            "-"
            if gain["value"] is None
            else f"{gain['value']:.2f} ({gain['low'] or 0:.2f}-{gain['high'] or 0:.2f})",
            f"{row['kept']['value'] or 0:.2f}",
            f"{row['cosine']['value'] or 0:.3f}",
            "-" if row["trained"] is None else f"{row['trained']:.2f}",
        )
    console.print(table)


def main() -> None:
    """Measure, simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "polar", "lengths"])
    parser.add_argument("--prompts", type=positive, default=64, help="measured, of each task")
    parser.add_argument("--completions", type=positive, default=48, help="of each measured prompt")
    parser.add_argument("--steps", type=positive, default=500, help="simulated, of each rule")
    parser.add_argument("--warm-start-updates", type=int, help="of the starting policy; for tests")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    console = Console()
    result: dict[str, Any] = {"rows": [], "rank_correlation": {}}
    for task, cells in cells_of(options.tasks, options.warm_start_updates).items():
        rows = rows_of(task, cells, options)
        result["rows"] += rows
        result["rank_correlation"][task] = rank_correlation(rows)
        if not options.json:
            show(task, rows, console)
            known = result["rank_correlation"][task]
            console.print(
                f"rank correlation with the study: {'-' if known is None else f'{known:.2f}'}"
            )
    if options.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
