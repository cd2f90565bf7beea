"""Make the runs of a comparison, and write its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dibs.config.secrets import without_secrets
from dibs.files import read_lines, to_json, write_json, write_text
from dibs.runs.console import View
from dibs.runs.folder import RunFolder
from dibs.study.make_runs import make_runs
from dibs.study.matrix import Study
from dibs.study.result_tables import markdown, study_figures
from dibs.study.results import compared_again, curves, rows
from dibs.study.stored_rows import whole_rows
from dibs.types import InputError


def compare(study: Study, view: View) -> list[dict[str, Any]]:
    """Make the runs that are missing, write the results and return them, one row for each arm.

    Raises:
        InputError: the output folder cannot be written, is in use or holds other runs, or no run could
            be made.
        KeyboardInterrupt: after Ctrl-C, once the runs in progress are saved. The same call resumes.
    """
    out = study.options.output_dir
    try:
        out.mkdir(parents=True, exist_ok=True)
        with RunFolder(out) as folder:
            folder.lock()
            return _compared(study, view, out)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from None


def _compared(study: Study, view: View, out: Path) -> list[dict[str, Any]]:
    outcomes = make_runs(study, view.preparing)
    table = json.loads(to_json(rows(study, outcomes)))
    figures = study_figures(study, outcomes, out)
    cells = {cell.label: cell.values for cell in study.cells}
    described = {"compare": study.options.model_dump(mode="json"), "arms": cells}
    write_json(out / "study.json", without_secrets(described))
    write_json(out / "results.json", table)
    write_text(out / "curves.jsonl", "".join(f"{to_json(line)}\n" for line in curves(outcomes)))
    write_text(out / "results.md", markdown(table, figures, _notes(study)))
    return table


def _notes(study: Study) -> list[str]:
    options = study.options
    notes = [f"Seeds {', '.join(map(str, options.seeds))}; reference arm: {study.reference}."]
    if study.tuning_rates:
        grid = ", ".join(f"{rate:g}" for rate in study.tuning_rates)
        notes.append(
            f"Learning rate of every arm: the one of {grid} whose runs have the best mean value over "
            f"all evaluations, for seeds {', '.join(map(str, options.tuning_seeds))}, which serve no "
            "other purpose."
        )
    if not options.equal_updates:
        notes.append(
            "**Optimizer updates differ between arms: this comparison is not an even one.**"
        )
    return notes


def compare_again(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a finished study, compared anew by the curves that its folder holds.

    Raises InputError if results.json or curves.jsonl is missing or damaged.
    """
    try:
        table = whole_rows(json.loads((folder / "results.json").read_text(encoding="utf-8")))
        again = compared_again(table, read_lines(folder / "curves.jsonl"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: {Path(error.filename).name} is missing; give a study's YAML file, or the folder "
            "that dibs compare wrote"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: results.json or curves.jsonl is damaged ({error})") from None
    rows: list[dict[str, Any]] = json.loads(to_json(again))
    return rows
