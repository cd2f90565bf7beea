"""Runs that differ in nothing but the seed make an arm; its curves, means and intervals over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
"""Sections and keys of the configuration that do not change what is trained."""
_TELLING = (
    "allocate.allocator",
    "algorithm.name",
    "estimate.mode",
    "algorithm.objective",
    "algorithm.baseline",
    "data.train",
    "update.learning_rate",
    "allocate.num_generations",
)
"""Keys that name an arm, as far as they are needed to tell it from the others."""
_BARE = ("allocate.allocator", "algorithm.name")


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration, a seed each."""

    label: str
    runs: Sequence[Run]


def group_runs(runs: Sequence[Run]) -> list[Arm]:
    """Arms in the order of their first runs, with labels that tell them apart.

    A run without a readable configuration is an arm of its own, and so is a second run of a seed: it
    would make an interval narrower without telling anything new.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(_flat(run.config), sort_keys=True, default=str)
        key = key if run.config else str(run.path)
        seed = run.setting("seed")
        while any(each.setting("seed") == seed for each in arms.get(key, [])):
            key += " again"
        arms.setdefault(key, []).append(run)
    members = list(arms.values())
    labels = _labels([each[0] for each in members])
    return [Arm(label, each) for label, each in zip(labels, members, strict=True)]


def differing_keys(arms: Sequence[Arm]) -> list[tuple[str, list[Any]]]:
    """Configuration keys, dotted, that are not the same in all arms, with the value of each arm."""
    flat = [_flat(arm.runs[0].config) for arm in arms]
    keys = sorted({key for each in flat for key in each})
    rows = [(key, [each.get(key) for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if _distinct(values) > 1]


def _labels(firsts: Sequence[Run]) -> list[str]:
    """Few words for each arm; the folder's name where the configuration has none to tell it by."""
    names: list[list[str]] = [[] for _ in firsts]
    others = sorted({key for run in firsts for key in _flat(run.config)} - set(_TELLING))
    for key in (*_TELLING, *others):
        values = [run.setting(key) for run in firsts]
        longer = [
            [*name, _said(key, value)] if run.config else name
            for name, value, run in zip(names, values, firsts, strict=True)
        ]
        if key == _TELLING[0] or _distinct(longer) > _distinct(names):
            names = longer
    labels = [
        printable(", ".join(name) or run.path) for name, run in zip(names, firsts, strict=True)
    ]
    return [
        f"{label}, {printable(run.path)}" if labels.count(label) > 1 else label
        for label, run in zip(labels, firsts, strict=True)
    ]


def _said(key: str, value: Any) -> str:
    return f"{value}" if key in _BARE else f"{key.rpartition('.')[2]} {value}"


def _distinct(values: Sequence[Any]) -> int:
    return len({json.dumps(value, default=str) for value in values})


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an arm with dotted keys."""

    def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from leaves(inner, f"{key}.{name}" if key else str(name))
        else:
            yield key, value

    return {
        key: value
        for key, value in leaves(values, "")
        if key.partition(".")[0] not in _NOT_OF_THE_ARM
    }
