"""Group runs that differ only in the seed into arms, each with a name and a look of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dibs.report.arm_names import Name, arm_names, distinct, trained_keys
from dibs.report.looks import Look, looks
from dibs.runs.find import by_number
from dibs.runs.read import Run
from dibs.types import printable


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration, each with its own seed. ``look``: its look in figures and tables."""

    name: Name
    runs: Sequence[Run]
    look: Look

    @property
    def label(self) -> str:
        """The whole name."""
        return ", ".join(self.name)


def group_runs(runs: Sequence[Run]) -> list[Arm]:
    """Group runs into arms, in the order of their names, 8 before 16. All labels are different.

    A run without a readable configuration is an arm of its own. So is a second run of the same seed: it
    repeats the first one, and counting it twice would make the interval too narrow.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(trained_keys(run.config), sort_keys=True, default=str)
        key = key if run.config else str(run.path)
        seed = run.setting("seed")
        while any(each.setting("seed") == seed for each in arms.get(key, [])):
            key += " again"
        arms.setdefault(key, []).append(run)
    members = list(arms.values())
    named = sorted(
        zip(arm_names(members), members, strict=True),
        key=lambda each: [by_number(part) for part in each[0]],
    )
    return [
        Arm(name, each, look) for (name, each), look in zip(named, looks(len(named)), strict=True)
    ]


def labeled_arms(runs: Mapping[str, Run]) -> list[Arm]:
    """Make an arm of each of some runs, by label and in their order."""
    return [
        Arm((printable(label),), [run], look)
        for (label, run), look in zip(runs.items(), looks(len(runs)), strict=True)
    ]


def differing_keys(arms: Sequence[Arm]) -> list[tuple[str, list[Any]]]:
    """Return the dotted keys in which the arms differ, each with the values of all arms."""
    flat = [trained_keys(arm.runs[0].config) for arm in arms]
    keys = sorted({key for each in flat for key in each})
    rows = [(key, [each.get(key) for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if distinct(values) > 1]
