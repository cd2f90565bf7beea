"""Where runs are: in the folders that were given, and below them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dibs.runs.read import NoRun

_MARKS = ("metrics.jsonl", "config.yaml", "summary.json")
_DEPTH = 6
"""Levels of folders that are searched: OUT/runs/TASK/ALGORITHM/ARM/lr-RATE/seed-N of a comparison."""
_TUNING = "tuning"


def run_folders(paths: Sequence[Path]) -> tuple[list[Path], list[NoRun]]:
    """The run folders among ``paths`` and below them, once each, and folders that were left out.

    A path without any is returned itself, so that its reader finds what is wrong with it. Links below a
    path are not followed. Left out is ``tuning`` next to a ``study.json``, unless it is given itself:
    a comparison chose learning rates by its runs, and they are evidence of nothing else.
    """
    found: dict[Path, Path] = {}
    left_out: dict[Path, NoRun] = {}
    for path in paths:
        below, without = _below(path, _DEPTH)
        found |= {folder.resolve(): folder for folder in below or [path]}
        left_out |= {folder.resolve(): _chose_rates(folder) for folder in without}
    given = {path.resolve() for path in paths}
    return list(found.values()), [each for key, each in left_out.items() if key not in given]


def _below(folder: Path, depth: int) -> tuple[list[Path], list[Path]]:
    """Run folders at or below a folder, and folders of tuning runs."""
    try:
        if (folder / "metrics.jsonl").is_file():
            return [folder], []
        marked = any((folder / name).is_file() for name in _MARKS)
        compared = (folder / "study.json").is_file()
        inner = (
            sorted(filter(_is_searched, folder.iterdir()), key=lambda path: by_number(path.name))
            if depth
            else []
        )
    except OSError:  # no folder, or one that may not be read
        return [], []
    runs, left_out = [], []
    for each in inner:
        if compared and each.name == _TUNING:
            left_out.append(each)
        else:
            more, without = _below(each, depth - 1)
            runs += more
            left_out += without
    return runs or ([folder] if marked else []), left_out


def by_number(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them, so that uniform-8 stands before uniform-16."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _is_searched(folder: Path) -> bool:
    return folder.name[0] != "." and folder.is_dir() and not folder.is_symlink()


def _chose_rates(folder: Path) -> NoRun:
    reason = "its runs chose the learning rates of a comparison and do nothing else"
    return NoRun(folder, reason, "left out")
