"""Measure whether choosing prompts and counts will help on two tasks, then train both and see.

1. `dibs variance --shapes` on either task, side by side: how noisy a step's gradient is, what would make
   it less noisy, and how many times fewer steps that should take.
2. `dibs compare studies/demo.yaml`: every task with uniform counts as people run it, with the best
   uniform shape, and with prompts and counts chosen together; three seeds each. All rollouts are
   counted.
3. What was foretold beside what came, and a page for each task.

Everything is under OUT: results.md with all numbers, figures/, and report-TASK/index.html.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from dibs.report.terminal import shapes_table, shapes_title
from dibs.runs.console import view_for
from dibs.study.matrix import Study, read_study
from dibs.types import InputError

STUDY = Path(__file__).parents[1] / "studies" / "demo.yaml"
OURS = "ours"
CLEARLY = 1.5
"""So many times fewer steps are worth a change of settings."""


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/demo"), help="folder OUT (default: runs/demo)"
    )
    parser.add_argument("--steps", type=int, help="training steps of every run, for a quick try")
    parser.add_argument("--seeds", type=int, help="runs of every arm (default: 3)")
    parser.add_argument(
        "--warm-start-updates", type=int, help="updates of the warm starts, for a quick try"
    )
    options = parser.parse_args()
    console, started = Console(), time.perf_counter()
    try:
        study = _study(options)
        console.rule("1. Will it help? One measurement a task, before any training")
        foretold = _measured(study, options.output_dir, console)
        for task, found in foretold.items():
            console.print(f"\n[bold]{task}[/]: {shapes_title(found)}", highlight=False)
            console.print(shapes_table(found), highlight=False)
            console.print(found["advice"], highlight=False, markup=False)
        from dibs.report.write import write_report
        from dibs.study.compare import compare
        from dibs.study.result_tables import result_tables

        console.print()
        console.rule("2. Does it? Three ways to spend the same rollouts")
        with closing(view_for(console)) as view:
            rows = compare(study, view)
        for table in result_tables(rows):
            console.print(table, highlight=False)
            console.print()
        console.rule("3. Foretold and seen")
        for task, found in foretold.items():
            console.print(_verdict(task, found, rows), highlight=False, soft_wrap=True)
        for task in foretold:
            page = write_report(_runs(study, task), options.output_dir / f"report-{task}")["page"]
            console.print(f"Page of {task}: {page}", highlight=False, soft_wrap=True)
    except InputError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = error.strerror or error
        print(f"demo: cannot write to {options.output_dir}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "demo: interrupted; finished runs are kept, and the same command goes on",
            file=sys.stderr,
        )
        return 130
    console.print(
        f"All numbers: {options.output_dir / 'results.md'}", highlight=False, soft_wrap=True
    )
    console.print(f"Total time: {time.perf_counter() - started:.0f} s", highlight=False)
    return 0


def _study(options: argparse.Namespace) -> Study:
    wanted = {
        "compare.output_dir": options.output_dir,
        "compare.seeds": None if options.seeds is None else list(range(options.seeds)),
        "policy.warm_start.updates": options.warm_start_updates,
    }
    overrides = {key: str(value) for key, value in wanted.items() if value is not None}
    if options.steps is None:
        return read_study([STUDY], overrides)
    # Steps are a key of each task, which overrides of the whole study do not reach.
    values = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    for task in values["compare"]["tasks"].values():
        task["train"]["steps"] = options.steps
        task["evaluate.interval"] = 1
    with tempfile.TemporaryDirectory() as folder:
        shorter = Path(folder) / STUDY.name
        shorter.write_text(yaml.safe_dump(values), encoding="utf-8")
        return read_study([shorter], overrides)


def _measured(study: Study, out: Path, console: Console) -> dict[str, dict[str, Any]]:
    """What ``dibs variance --shapes`` says of every task, of all tasks at once."""
    out.mkdir(parents=True, exist_ok=True)
    commands = {}
    cells = {cell.task: cell for cell in study.cells if cell.arm == study.reference}
    for task in study.options.tasks:
        cell = cells[task]
        values = {key: value for key, value in cell.values.items() if key != "output_dir"}
        values["allocate"] = {**values["allocate"], "allocator": "min_variance"}
        values["estimate"] = {**values["estimate"], "grad_norm": "last_layer"}
        path = out / f"measure-{cell.task}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        words = ["variance", str(path), "--shapes", "--json"]
        commands[cell.task] = subprocess.Popen(
            [sys.executable, "-m", "dibs", *words],
            stdout=(out / f"measure-{cell.task}.json").open("w"),
            stderr=(out / f"measure-{cell.task}.log").open("w"),
        )
    try:
        with console.status("") as status:
            while any(command.poll() is None for command in commands.values()):
                status.update(" | ".join(f"{task}: {_last_line(out, task)}" for task in commands))
                if any(command.poll() is not None for command in commands.values()):
                    # A core is idle now, and these imports take seconds.
                    for module in ("dibs.study.compare", "dibs.report.write"):
                        import_module(module)
                time.sleep(1)
    finally:
        for command in commands.values():
            command.terminate()
    for task, command in commands.items():
        if command.wait() != 0:
            raise InputError(f"{task} could not be measured: {_last_line(out, task)}")
    return {
        task: json.loads((out / f"measure-{task}.json").read_text(encoding="utf-8"))["shapes"]
        for task in commands
    }


def _last_line(out: Path, task: str) -> str:
    lines = (out / f"measure-{task}.log").read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else "starting"


def _runs(study: Study, task: str) -> list[Path]:
    """The folders of a task's runs."""
    cells = [cell for cell in study.cells if cell.task == task]
    return [cell.config(seed).output_dir for cell in cells for seed in study.options.seeds]


def _verdict(task: str, found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What was foretold of a task and what came, and whether they agree."""
    (row,) = [row for row in rows if row["task"] == task and row["arm"] == OURS]
    fewer = found["fewer_steps"] or 1.0
    seen, low, high = (row[f"speedup_rollouts{end}"] for end in ("", "_low", "_high"))
    foretold = f"[bold]{task}[/]: about {fewer:.1f} times fewer steps foretold"
    if seen is None:
        return f"{foretold}; the runs do not tell"
    interval = f" (95% {low:.2g} to {high:.2g})" if low is not None and high is not None else ""
    if (fewer >= CLEARLY) != (seen >= CLEARLY):
        meant = "The measurement did not foretell this"
    elif seen < CLEARLY:
        meant = "It is not worth it here"
    elif row["verdict"] == "faster":
        meant = "Choosing prompts and counts pays here"
    else:
        meant = "It may pay here, but these seeds do not show it"
    return f"{foretold}, {seen:.1f} times fewer rollouts seen{interval}. {meant}."


if __name__ == "__main__":
    raise SystemExit(main())
