"""Write the page and its figures from run folders, once or again while runs go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from dibs.files import write_text
from dibs.report.arms import group_runs
from dibs.report.completions import pack_completions
from dibs.report.figures import page_figures
from dibs.report.looks import STYLE
from dibs.report.page import Contents, figure_context, render_page
from dibs.report.standings import tasks_of
from dibs.report.svg import svg_bytes
from dibs.report.tables import arm_row, run_rows, standing_row
from dibs.report.verdict import verdict_lines
from dibs.runs.find import run_folders
from dibs.runs.read import NoRun, Run, read_run
from dibs.types import InputError, printable

_WRITTEN = ("metrics.jsonl", "summary.json", "config.yaml")
"""Files whose size and time show whether a run folder has changed."""


@dataclass(frozen=True)
class _Reading:
    """What was found in the folders. ``others``: folders that hold no run to report."""

    runs: Sequence[Run]
    others: Sequence[NoRun]

    @property
    def going_on(self) -> bool:
        """Whether any run has no summary yet."""
        return any(run.summary is None for run in self.runs) or any(
            other.state == "unfinished" for other in self.others
        )


def default_folder(paths: Sequence[Path]) -> Path:
    """Return the default folder of a report: ``report`` in the one folder, or in the current one."""
    return paths[0] / "report" if len(paths) == 1 else Path("report")


def write_report(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write ``out/index.html``, ``out/figures/NAME.svg`` and ``out/figures/NAME.png``.

    Args:
        paths: run folders, or folders that hold some.
        out: is created if it is missing.

    Returns:
        ``page``, ``bytes``, ``verdict`` (lines), ``figures`` (paths), ``arms``, ``runs`` (every folder
        with its state and remarks) and ``completions``.

    Raises:
        InputError: no folder holds a run, or ``out`` cannot be written.
    """
    reading = _read(paths)
    _require_some(reading)
    return _write(reading, out, files=True, refresh=None)


def report_lines(written: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line on what was written, and one for each run that is not finished."""
    arms, runs = len(written["arms"]), [row for row in written["runs"] if row["arm"] is not None]
    yield printable(
        f"wrote {written['page']} ({written['bytes'] / 1e6:.1f} MB): {len(runs)} "
        f"run{'s' * (len(runs) != 1)}, {arms} arm{'s' * (arms != 1)}"
    )
    for row in written["runs"]:
        if row["state"] != "finished":
            yield printable(f"{row['path']}: {row['state']}: {'; '.join(row['notes'])}")


def watch_report(
    paths: Sequence[Path], out: Path, seconds: float, on_write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Write the report whenever a run has changed, until all runs are finished. Return the last one.

    While runs go on, the page reloads itself and figure files are not written.

    Args:
        paths, out: as for :func:`write_report`.
        seconds: pause between two looks at the folders, and between two reloads.
        on_write: is called with the result of every report that is written.

    Raises:
        KeyboardInterrupt: after Ctrl-C. The page is written once more, without reloads.
    """
    reading = _read(paths)
    if not reading.going_on:
        _require_some(reading)
    seen: object = None
    written: dict[str, Any] = {}
    try:
        while reading.going_on:
            if reading.runs and seen != (seen := _file_stamps(paths)):
                written = _write(reading, out, files=False, refresh=seconds)
                on_write(written)
            time.sleep(seconds)
            reading = _read(paths)
        _require_some(reading)
        return _write(reading, out, files=True, refresh=None)
    except KeyboardInterrupt:
        if written:
            _write(reading, out, files=False, refresh=None)
        raise


def _read(paths: Sequence[Path]) -> _Reading:
    folders, left_out = run_folders(paths)
    found = [read_run(folder) for folder in folders]
    return _Reading(
        [each for each in found if isinstance(each, Run)],
        [each for each in found if isinstance(each, NoRun)] + left_out,
    )


def _require_some(reading: _Reading) -> None:
    if not reading.runs:
        reasons = "; ".join(f"{other.path} {other.reason}" for other in reading.others)
        raise InputError(f"nothing to report: {reasons}")


def _write(reading: _Reading, out: Path, *, files: bool, refresh: float | None) -> dict[str, Any]:
    arms = group_runs(reading.runs)
    tasks = tasks_of(arms)
    standings = {each.arm.label: standing_row(each) for task in tasks for each in task.standings}
    arm_rows = [{**arm_row(arm), **standings[arm.label]} for arm in arms]
    verdict, rows = verdict_lines(tasks), run_rows(arms, reading.others)
    completions = pack_completions(arms)
    figures, paths = [], []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with rc_context(STYLE):
            for figure in page_figures(arms):
                figures.append(figure_context(figure))
                if files:
                    paths += list(_saved(figure.figure, out / "figures" / figure.name))
        page = render_page(Contents(verdict, arms, arm_rows, rows, figures, completions), refresh)
        write_text(out / "index.html", page)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from None
    return {
        "page": str(out / "index.html"),
        "bytes": len(page.encode("utf-8")),
        "verdict": verdict,
        "figures": [str(path) for path in paths],
        "arms": arm_rows,
        "runs": rows,
        "completions": {"shown": completions.shown, "kept": completions.kept},
    }


def _saved(figure: Any, stem: Path) -> Iterator[Path]:
    stem.parent.mkdir(exist_ok=True)
    svg = stem.with_name(f"{stem.name}.svg")
    svg.write_bytes(svg_bytes(figure))
    yield svg
    png = stem.with_name(f"{stem.name}.png")
    figure.savefig(png, dpi=150)
    yield png


def _file_stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return the files of runs that exist, with their sizes and times."""
    stamps = []
    for folder in run_folders(paths)[0]:
        for name in _WRITTEN:
            try:
                found = (folder / name).stat()
            except OSError:
                continue
            stamps.append((str(folder / name), found.st_size, found.st_mtime_ns))
    return stamps
