"""One row an arm: what it cost to reach the reference's final value, in every accounting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dibs.config import Config
from dibs.study.costs import COSTS, FINAL, Comparison, Curve, Target, compare_curves
from dibs.study.make_runs import Outcome
from dibs.study.matrix import CompareConfig, Study

Row = dict[str, Any]


def rows(study: Study, outcomes: Sequence[Outcome]) -> list[Row]:
    """The result of a comparison, a row an arm in order, as JSON takes it.

    An arm is compared with its reference only if both finished all seeds: one that diverges in some of
    them is not judged by the others.
    """
    table = []
    by_cell = {id(outcome.cell): outcome for outcome in outcomes}
    for reference, cells in study.groups():
        table += [_row(study, by_cell[id(reference)], by_cell[id(cell)]) for cell in cells]
    return table


def _row(study: Study, reference: Outcome, outcome: Outcome) -> Row:
    options = study.options
    config = outcome.cell.config(options.seeds[0], outcome.learning_rate)
    targets = _targets(options)
    compared: list[Comparison] | None = None
    if all(seed in each.curves for each in (reference, outcome) for seed in options.seeds):
        theirs, ours = (
            [each.curves[seed] for seed in options.seeds] for each in (reference, outcome)
        )
        compared = compare_curves(theirs, ours, targets)
    return {
        **_identity(outcome, config),
        "learning_rate": outcome.learning_rate,
        "learning_rate_at_edge": bool(study.tuning_rates)
        and outcome.learning_rate in (min(study.tuning_rates), max(study.tuning_rates)),
        "seeds": sorted(outcome.curves),
        "failures": outcome.failures,
        "value": outcome.value,
        "reference": study.reference,
        **_comparison(compared[0] if compared else None),
        **_ends(list(outcome.curves.values())),
        "targets": [
            {"score": each.score, "share": each.share, "level": each.level, **_comparison(found)}
            for each, found in zip(targets[1:], (compared or [])[1:], strict=bool(compared))
        ],
        "tuned": {str(rate): value for rate, value in outcome.tuned.items()},
        **_gains(outcome),
    }


def _comparison(compared: Comparison | None) -> Row:
    """Target, costs until it and speed-ups; all None where the arms could not be compared."""
    row: Row = {"target": compared.target if compared else None}
    for name in COSTS:
        row[f"{name}_to_target"] = compared.to_target[name] if compared else None
    for name in COSTS:
        interval = asdict(compared.speed_up[name]) if compared else {}
        row[f"speedup_{name}"] = interval.get("value")
        row[f"speedup_{name}_low"] = interval.get("low")
        row[f"speedup_{name}_high"] = interval.get("high")
    return row


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


def _targets(options: CompareConfig) -> list[Target]:
    """The final value, by which arms are judged, and what else there is to reach."""
    return [
        FINAL,
        *(Target(share=share) for share in options.shares),
        Target("accuracy"),
        Target("pass_at_k"),
        *(Target("accuracy", level=level) for level in options.levels),
    ]


def _gains(outcome: Outcome) -> Row:
    """What the counts did to the variance: by training's own measurements and by the meter's.

    No mean where a measured step left a prompt out, which makes its variance infinite.
    """
    gains = np.concatenate([np.zeros(0), *(c.gains for c in outcome.curves.values())])
    whole = len(gains) > 0 and not np.isnan(gains).any()
    return {
        "measured_gain": float(gains.mean()) if whole else None,
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
