"""Group runs that differ only in the seed into arms, and give each arm a label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dibs.config.changes import flat_keys
from dibs.runs.read import Run
from dibs.types import printable

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
_LABEL_KEYS = (
    "allocate.allocator",
    "algorithm.name",
    "estimate.mode",
    "algorithm.objective",
    "algorithm.baseline",
    "data.train",
    "update.learning_rate",
    "allocate.num_generations",
)
"""Keys that label an arm, in order. A label has only those in which arms differ."""
_VALUE_ALONE = ("allocate.allocator", "algorithm.name")
"""Keys whose value needs no name before it in a label."""


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration, each with its own seed."""

    label: str
    runs: Sequence[Run]


def group_runs(runs: Sequence[Run]) -> list[Arm]:
    """Group runs into arms, in the order of their first runs. All labels are different.

    A run without a readable configuration is an arm of its own. So is a second run of the same seed: it
    repeats the first one, and counting it twice would make the interval too narrow.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(_trained_keys(run.config), sort_keys=True, default=str)
        key = key if run.config else str(run.path)
        seed = run.setting("seed")
        while any(each.setting("seed") == seed for each in arms.get(key, [])):
            key += " again"
        arms.setdefault(key, []).append(run)
    members = list(arms.values())
    labels = _labels([each[0] for each in members])
    return [Arm(label, each) for label, each in zip(labels, members, strict=True)]


def differing_keys(arms: Sequence[Arm]) -> list[tuple[str, list[Any]]]:
    """Return the dotted keys in which the arms differ, each with the values of all arms."""
    flat = [_trained_keys(arm.runs[0].config) for arm in arms]
    keys = sorted({key for each in flat for key in each})
    rows = [(key, [each.get(key) for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if _distinct(values) > 1]


def _labels(firsts: Sequence[Run]) -> list[str]:
    """Label each arm by the keys in which it differs, or by its folder if it has no configuration."""
    names: list[list[str]] = [[] for _ in firsts]
    others = sorted({key for run in firsts for key in _trained_keys(run.config)} - set(_LABEL_KEYS))
    for key in (*_LABEL_KEYS, *others):
        values = [run.setting(key) for run in firsts]
        longer = [
            [*name, _label_part(key, value)] if run.config else name
            for name, value, run in zip(names, values, firsts, strict=True)
        ]
        if key == _LABEL_KEYS[0] or _distinct(longer) > _distinct(names):
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


def _distinct(values: Sequence[Any]) -> int:
    return len({json.dumps(value, default=str) for value in values})


def _trained_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that decide what is trained, by dotted key."""
    return {
        key: value
        for key, value in flat_keys(config).items()
        if key.partition(".")[0] not in _NOT_OF_THE_ARM
    }
