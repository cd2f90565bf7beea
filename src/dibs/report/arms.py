"""Runs that differ in nothing but the seed make an arm; its curves, means and intervals over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from dibs.runs.read import Record, Run, number
from dibs.runs.safe_text import shown

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
_NOT_TRAINING = ("evaluate_seconds", "measure_seconds")

Axis = Callable[[Sequence[Record]], np.ndarray]


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration, a seed each."""

    label: str
    runs: Sequence[Run]


@dataclass(frozen=True)
class Curve:
    """A mean and its 95% interval at the points ``x``; all [points], NaN where there is none."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _column(key: str) -> Axis:
    return lambda lines: np.array([number(line, key) for line in lines])


def training_seconds(lines: Sequence[Record]) -> np.ndarray:
    """Seconds since the start, without evaluation and the variance meter; float64 [lines].

    ``lines``: those of metrics.jsonl from its first on. A line that does not tell counts as 0.
    """
    taken = [
        np.nan_to_num(
            number(line, "step_seconds")
            - sum(np.nan_to_num(number(line, k)) for k in _NOT_TRAINING)
        )
        for line in lines
    ]
    return np.cumsum(taken)


AXES: Mapping[str, Axis] = {
    "steps": _column("step"),
    "rollouts": _column("rollouts"),
    "tokens": _column("completion_tokens"),
    "seconds": training_seconds,
}
"""What training costs, by the name of the cost: its total after each line of metrics.jsonl."""


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
    labels = [shown(", ".join(name) or run.path) for name, run in zip(names, firsts, strict=True)]
    return [
        f"{label}, {shown(run.path)}" if labels.count(label) > 1 else label
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


def run_curve(run: Run, axis: str, score: str = "accuracy") -> Curve:
    """A run's held-out score at its evaluations, with the interval over prompts if that is known.

    ``axis``: a key of :data:`AXES`; ``score``: a key of metrics.jsonl.
    """
    lines = _evaluated(run, score)
    points = _at(run, AXES[axis], [line["step"] for line in lines])
    mean, low, high = (
        np.array([number(line, key) for line in lines])
        for key in (score, f"{score}_low", f"{score}_high")
    )
    return Curve(points, mean, low, high)


def arm_curve(arm: Arm, axis: str, score: str = "accuracy") -> Curve:
    """A held-out score of an arm at the evaluations that all of its seeds have reached.

    Over seeds: the mean and Student's t interval; costs are means as well. Of a single run: its own.
    """
    if len(arm.runs) == 1:
        return run_curve(arm.runs[0], axis, score)
    each = [{line["step"]: number(line, score) for line in _evaluated(r, score)} for r in arm.runs]
    shared = sorted(set.intersection(*(set(values) for values in each)))
    points = np.array([_at(run, AXES[axis], shared) for run in arm.runs]).mean(axis=0)
    mean, low, high = over_seeds(np.array([[values[step] for step in shared] for values in each]))
    return Curve(points, mean, low, high)


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds and its 95% interval (Student's t) of values [seeds, points]; NaN if one seed."""
    seeds = len(values)
    mean = values.mean(axis=0)
    if seeds == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    margin = stdtrit(seeds - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return mean, mean - margin, mean + margin


def costs_at(arm: Arm, step: int) -> dict[str, float]:
    """What an arm had spent after a step, by axis, and its pilots: means over seeds."""
    totals = {**AXES, **{name: _column(name) for name in ("optimizer_updates", "pilot_rollouts")}}
    return {
        name: float(np.mean([_at(run, total, [step])[0] for run in arm.runs]))
        for name, total in totals.items()
    }


def _evaluated(run: Run, score: str) -> list[Record]:
    return [line for line in run.metrics if not np.isnan(number(line, score))]


def _at(run: Run, total: Axis, steps: Sequence[int]) -> np.ndarray:
    """A run's total after each of some steps; where a line is missing, that of the line before."""
    known = np.array([line["step"] for line in run.metrics])
    places = np.searchsorted(known, steps, side="right") - 1
    return np.where(places < 0, np.nan, total(run.metrics)[np.maximum(places, 0)])
