"""One row an arm: what it cost to reach the reference's final value, in every accounting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dibs.config import Config
from dibs.study.curves import COSTS, VALUES, Curve, crossing, mean_curve, speed_ups
from dibs.study.matrix import Study
from dibs.study.runs import Outcome
from dibs.types import InputError

Row = dict[str, Any]


def rows(study: Study, outcomes: Sequence[Outcome]) -> list[Row]:
    """The result of a comparison, a row an arm in order, as JSON takes it.

    Speed-ups are over the seeds that both the arm and its reference finished. Raises InputError where
    the arms of an algorithm differ in optimizer updates, unless ``compare.equal_updates`` is false.
    """
    table = []
    by_cell = {id(outcome.cell): outcome for outcome in outcomes}
    for reference, cells in study.groups():
        group = [by_cell[id(cell)] for cell in cells]
        if study.options.equal_updates:
            _require_equal_updates(group)
        table += [_row(study, by_cell[id(reference)], outcome) for outcome in group]
    return table


def _require_equal_updates(group: Sequence[Outcome]) -> None:
    updates = {
        outcome.cell.arm: {int(c.totals["optimizer_updates"]) for c in outcome.curves.values()}
        for outcome in group
        if outcome.curves
    }
    if len(set().union(*updates.values())) > 1:
        told = ", ".join(f"{arm} {sorted(each)}" for arm, each in updates.items())
        raise InputError(
            f"{group[0].cell.task}, {group[0].cell.algorithm}: optimizer updates differ ({told}), so "
            "the arms cannot be compared; make train.steps x update.updates_per_step equal, or set "
            "compare.equal_updates to false"
        )


def _row(study: Study, reference: Outcome, outcome: Outcome) -> Row:
    config = outcome.cell.config(study.options.seeds[0], outcome.learning_rate)
    both = [seed for seed in outcome.curves if seed in reference.curves]
    ours = [outcome.curves[seed] for seed in both]
    theirs = [reference.curves[seed] for seed in both]
    target = float(mean_curve(theirs).value[-1]) if both else None
    return {
        **_identity(outcome, config),
        "learning_rate": outcome.learning_rate,
        "seeds": sorted(outcome.curves),
        "failures": outcome.failures,
        "value": VALUES.get(config.algorithm.objective, "accuracy"),
        "reference": study.reference,
        "target": target,
        **_costs_of(ours, target),
        **_speed_ups(theirs, ours),
        **_ends(list(outcome.curves.values())),
        "levels": _levels(ours, study.options.levels),
        "tuned": {f"{rate:g}": value for rate, value in outcome.tuned.items()},
        **_gains(outcome),
    }


def _identity(outcome: Outcome, config: Config) -> Row:
    return {
        "task": outcome.cell.task,
        "algorithm": outcome.cell.algorithm,
        "arm": outcome.cell.arm,
        "loss": config.algorithm.name,
        "objective": config.algorithm.objective,
        "baseline": config.algorithm.baseline,
        "estimator": config.algorithm.estimator,
        "allocator": config.allocate.allocator,
        "mode": config.estimate.mode,
    }


def _costs_of(curves: Sequence[Curve], target: float | None) -> Row:
    """What the mean curve had spent when it first reached the target; None where it did not."""
    keys = [f"{name}_to_target" for name in COSTS]
    if not curves or target is None:
        return dict.fromkeys(keys)
    mean = mean_curve(curves)
    return {f"{name}_to_target": crossing(mean.costs[name], mean.value, target) for name in COSTS}


def _speed_ups(theirs: Sequence[Curve], ours: Sequence[Curve]) -> Row:
    found = speed_ups(theirs, ours) if ours else {}
    row: Row = {}
    for name in COSTS:
        interval = asdict(found[name]) if name in found else {}
        row[f"speedup_{name}"] = interval.get("value")
        row[f"speedup_{name}_low"] = interval.get("low")
        row[f"speedup_{name}_high"] = interval.get("high")
    return row


def _ends(curves: Sequence[Curve]) -> Row:
    """Totals and scores, means over seeds; ``value_after_seeds``: of every seed."""
    totals = ("optimizer_updates", "rollouts", "pilot_rollouts", "completion_tokens")
    if not curves:
        return dict.fromkeys(
            (*totals, "seconds", "value_before", "value_after", "value_after_seeds")
        )
    return {
        **{name: float(np.mean([c.totals[name] for c in curves])) for name in totals},
        "seconds": float(np.mean([c.costs["seconds"][-1] for c in curves])),
        "value_before": float(np.mean([c.value[0] for c in curves])),
        "value_after": float(np.mean([c.value[-1] for c in curves])),
        "value_after_seeds": [float(c.value[-1]) for c in curves],
        "accuracy_before": float(np.mean([c.accuracy[0] for c in curves])),
        "accuracy_after": float(np.mean([c.accuracy[-1] for c in curves])),
        "pass_at_k_after": float(np.mean([c.pass_at_k[-1] for c in curves])),
    }


def _levels(curves: Sequence[Curve], levels: Sequence[float]) -> dict[str, Row]:
    """The costs of fixed accuracies, for the mean curve."""
    if not curves:
        return {}
    mean = mean_curve(curves)
    return {
        f"{level:g}": {name: crossing(mean.costs[name], mean.accuracy, level) for name in COSTS}
        for level in levels
    }


def _gains(outcome: Outcome) -> Row:
    """What the counts did to the variance: by training's own measurements and by the meter's."""
    gains = np.concatenate([np.zeros(0), *(c.gains for c in outcome.curves.values())])
    return {
        "measured_gain": float(gains.mean()) if len(gains) else None,
        "variance": {where: _of_meter(told) for where, told in outcome.meters.items()},
    }


def _of_meter(told: Mapping[str, Any]) -> Row:
    chosen = told["allocations"][told["allocator"]]
    return {
        "gain": chosen["gain"],
        "gain_per_rollout": chosen["gain_per_rollout"],
        "gain_per_token": chosen["gain_per_token"],
        "oracle": told["allocations"]["oracle"]["gain"],
        "oracle_held_out": told["allocations"]["oracle_held_out"]["gain"],
        "achievable_gain": told["achievable_gain"],
        "noise_scale": told["noise_scale"],
        "completion_share": told["completion_share"],
        "update_rollouts": told["update_rollouts"],
    }
