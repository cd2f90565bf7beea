"""Names of arms: those of their folders, or else the settings in which they differ."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from dibs.config.changes import flat_keys
from dibs.runs.read import Run
from dibs.types import printable

Name = tuple[str, ...]
"""Parts of a name, from the widest to the narrowest, such as task and arm of a comparison."""

_NOT_OF_THE_ARM = (
    "seed",
    "output_dir",
    "overwrite",
    "resume",
    "allow_changes",
    "tracking",
    "checkpoint",
)
"""Sections and keys of the configuration that have no influence on what is trained."""
_NAMING_KEYS = (
    "allocate.allocator",
    "algorithm.name",
    "estimate.mode",
    "algorithm.objective",
    "algorithm.baseline",
    "data.train",
    "update.learning_rate",
    "allocate.num_generations",
)
"""Keys that name an arm, in order. A name has only those in which arms differ."""
_VALUE_ALONE = ("allocate.allocator", "algorithm.name")
"""Keys whose value needs no name before it."""
_RATE = re.compile(r"lr-[0-9.e+-]+")
"""The folder of a learning rate in a comparison, where each arm may have its own."""


def trained_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that decide what is trained, by dotted key."""
    return {
        key: value
        for key, value in flat_keys(config).items()
        if key.partition(".")[0] not in _NOT_OF_THE_ARM
    }


def arm_names(arms: Sequence[Sequence[Run]]) -> list[Name]:
    """Name each arm, given by its runs. All names differ.

    A name is that of the folder that holds the arm's runs, or that all of them have but for the seed at
    its end. Where that is no name for every arm, settings name them all.
    """
    return _folder_names(arms) or [(label,) for label in _labels([runs[0] for runs in arms])]


def distinct(values: Sequence[Any]) -> int:
    """Count different values, which may be lists and mappings."""
    return len({json.dumps(value, default=str) for value in values})


def shared_parts(names: Sequence[Name]) -> Name:
    """Return the parts that all of some names begin with."""
    return tuple(parts[0] for parts in takewhile(lambda parts: distinct(parts) == 1, zip(*names)))  # noqa: B905


def _folder_names(arms: Sequence[Sequence[Run]]) -> list[Name] | None:
    """Return the shortest parts of folders that tell the arms apart; None if nothing does."""
    folders: list[Name] = []
    for runs in arms:
        here = {_without_seed(run, alone=len(runs) == 1) for run in runs}
        if len(here) > 1:
            return None
        folders += here
    without_rates = [tuple(part for part in name if not _RATE.fullmatch(part)) for name in folders]
    if distinct(without_rates) == len(arms):
        folders = without_rates
    names = _without_shared(folders)
    if not all(names) or distinct(names) < len(arms):
        return None
    return [tuple(printable(part) for part in name) for name in names]


def _without_seed(run: Run, *, alone: bool) -> Name:
    """Return the parts of a run's path without its seed. The only run of an arm keeps its whole name."""
    *parents, last = os.path.abspath(run.path).split(os.sep)[1:]
    seed = re.escape(str(run.setting("seed")))
    kept = re.sub(rf"^(?:seed[-_]?)?{seed}$", "", last)
    if not alone:
        kept = re.sub(rf"(?:[-_.](?:seed|s)?[-_]?|seed[-_]?|(?<=\D)){seed}$", "", kept)
    return (*parents, kept) if kept else tuple(parents)


def _without_shared(folders: Sequence[Name]) -> list[Name]:
    """Drop the parts that all paths begin with; of paths of one length, all parts that do not differ."""
    if len(folders) == 1:
        return [folders[0][-1:]]
    names = [name[len(shared_parts(folders)) :] for name in folders]
    if len({len(name) for name in names}) > 1:
        return names
    differ = [i for i, parts in enumerate(zip(*names, strict=True)) if distinct(parts) > 1]
    return [tuple(name[i] for i in differ) for name in names]


def _labels(firsts: Sequence[Run]) -> list[str]:
    """Label each arm by the fewest keys that tell them apart, or by its path if it has none."""
    names: list[list[str]] = [[] for _ in firsts]
    others = sorted({key for run in firsts for key in trained_keys(run.config)} - set(_NAMING_KEYS))
    for key in (*_NAMING_KEYS, *others):
        values = [run.setting(key) for run in firsts]
        longer = [
            [*name, _label_part(key, value)] if run.config else name
            for name, value, run in zip(names, values, firsts, strict=True)
        ]
        if key == _NAMING_KEYS[0] or distinct(longer) > distinct(names):
            names = longer
    labels = [
        printable(", ".join(name) or run.path) for name, run in zip(names, firsts, strict=True)
    ]
    return [
        f"{label}, {printable(run.path)}" if labels.count(label) > 1 else label
        for label, run in zip(labels, firsts, strict=True)
    ]


def _label_part(key: str, value: Any) -> str:
    return f"{value}" if key in _VALUE_ALONE else f"{key.rpartition('.')[2]} {value}"
