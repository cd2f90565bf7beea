"""The rows of a comparison: what each arm cost beside the reference, and the curves that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dibs.allocation.variance import pooled_gain
from dibs.config import Config
from dibs.report.costs import (
    COSTS,
    SCORES,
    WAY,
    Comparison,
    Evaluations,
    Goal,
    compare_evaluations,
    shared_steps,
    verdicts,
)
from dibs.study.make_runs import Outcome
from dibs.study.matrix import CompareConfig, Study

Row = dict[str, Any]


def rows(study: Study, outcomes: Sequence[Outcome]) -> list[Row]:
    """Return one row for each arm, in order, as a JSON object.

    An arm is compared with its reference only if both finished all seeds. Otherwise an arm that diverges
    for some seeds would be judged by the others alone.
    """
    table = []
    by_cell = {id(outcome.cell): outcome for outcome in outcomes}
    for reference, cells in study.groups():
        table += [_row(study, by_cell[id(reference)], by_cell[id(cell)]) for cell in cells]
    return _judged(table)


def _judged(table: list[Row]) -> list[Row]:
    """Add each arm's verdict, corrected for the arms that were compared on its task."""
    p_values = [None if row["arm"] == row["reference"] else row["p_value"] for row in table]
    speed_ups = [row["speedup_rollouts"] for row in table]
    found = verdicts([row["task"] for row in table], p_values, speed_ups)
    return [{**row, "verdict": verdict} for row, verdict in zip(table, found, strict=True)]


def _row(study: Study, reference: Outcome, outcome: Outcome) -> Row:
    options = study.options
    config = outcome.cell.config(options.seeds[0], outcome.learning_rate)
    goals = _goals(options)
    compared, failures = None, dict(outcome.failures)
    if all(seed in each.finished for each in (reference, outcome) for seed in options.seeds):
        theirs, ours = (
            [each.finished[seed] for seed in options.seeds] for each in (reference, outcome)
        )
        if len(shared_steps(ours)) < 2:
            failures["evaluations"] = "its seeds share fewer than two steps with a score"
        elif len(shared_steps(theirs)) > 1:
            compared = compare_evaluations(theirs, ours, goals)
    return {
        **_identity(outcome, config),
        "learning_rate": outcome.learning_rate,
        "learning_rate_at_edge": bool(study.tuning_rates)
        and outcome.learning_rate in (min(study.tuning_rates), max(study.tuning_rates)),
        "seeds": sorted(outcome.finished),
        "failures": failures,
        "value": outcome.value,
        "reference": study.reference,
        **_totals(list(outcome.finished.values())),
        **_comparisons(goals, compared),
        "tuned": {str(rate): value for rate, value in outcome.tuned.items()},
        **_gains(outcome),
    }


def _comparisons(goals: Sequence[Goal], compared: Sequence[Comparison] | None) -> Row:
    """Return the comparison by the first goal, and under ``targets`` those by the others."""
    return {
        **_comparison(compared[0] if compared else None),
        "targets": [
            {"score": each.score, "share": each.share, "level": each.level, **_comparison(found)}
            for each, found in zip(goals[1:], (compared or [])[1:], strict=bool(compared))
        ],
    }


def _comparison(compared: Comparison | None) -> Row:
    """Return target, costs until it and speed-ups; all None if the arms could not be compared."""
    row: Row = {
        "target": compared.target if compared else None,
        "p_value": compared.p_value if compared else None,
    }
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


def _totals(runs: Sequence[Evaluations]) -> Row:
    """Return totals and scores as means over seeds; ``value_after_seeds`` has those of every seed."""
    totals = ("optimizer_updates", "rollouts", "pilot_rollouts", "completion_tokens")
    if not runs:
        return dict.fromkeys(
            (*totals, "seconds", "value_before", "value_after", "value_after_seeds")
        )
    return {
        **{name: float(np.mean([run.totals[name] for run in runs])) for name in totals},
        "seconds": float(np.mean([run.costs["seconds"][-1] for run in runs])),
        "value_before": float(np.mean([run.value[0] for run in runs])),
        "value_after": float(np.mean([run.value[-1] for run in runs])),
        "value_after_seeds": [float(run.value[-1]) for run in runs],
        "accuracy_before": float(np.mean([run.accuracy[0] for run in runs])),
        "accuracy_after": float(np.mean([run.accuracy[-1] for run in runs])),
        "pass_at_k_after": float(np.mean([run.pass_at_k[-1] for run in runs])),
    }


def _goals(options: CompareConfig) -> list[Goal]:
    """Return the way that both arms went, by which arms are judged, and the other goals."""
    return [
        WAY,
        *(Goal(share=share) for share in options.shares),
        Goal("accuracy"),
        Goal("pass_at_k"),
        *(Goal("accuracy", level=level) for level in options.levels),
    ]


def _gains(outcome: Outcome) -> Row:
    """Return the gain in variance as training measured it, and the results of the variance meter.

    The gain pools all measured steps of all seeds. There is none if a step left a prompt out, since its
    variance is then infinite.
    """
    found = pooled_gain(
        *np.concatenate([np.zeros((0, 2)), *(c.variances for c in outcome.finished.values())]).T
    )
    return {
        "measured_gain": found.value,
        "measured_gain_low": found.low,
        "measured_gain_high": found.high,
        "variance": {where: _variance(result) for where, result in outcome.meters.items()},
    }


def _variance(result: Mapping[str, Any]) -> Row:
    chosen = result["allocations"][result["allocator"]]
    return {
        "gain": chosen["gain"],
        "gain_per_rollout": chosen["gain_per_rollout"],
        "gain_per_token": chosen["gain_per_token"],
        "achievable": result["achievable_gain"],
        "kept": result["estimators"][result["estimator"]]["kept"],
        "noise_scale": result["noise_scale"],
        "completion_share": result["completion_share"],
        "update_rollouts": result["update_rollouts"],
    }


def curves(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return the evaluations of every run that finished: one JSON object a run."""
    return [
        {
            **{name: getattr(outcome.cell, name) for name in ("task", "algorithm", "arm")},
            "seed": seed,
            **{name: _short(run.costs[name]) for name in COSTS},
            **{name: _short(getattr(run, name)) for name in SCORES},
        }
        for outcome in outcomes
        for seed, run in sorted(outcome.finished.items())
    ]


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


Name = tuple[str, str, str]
"""Task, algorithm and arm."""


def stored_runs(lines: Sequence[Row]) -> dict[Name, dict[int, Evaluations]]:
    """Return the runs of every arm, by seed, from what :func:`curves` returned.

    Raises ValueError for a run that lacks a number, or that has fewer than two evaluations.
    """
    found: dict[Name, dict[int, Evaluations]] = {}
    for line in lines:
        costs, scores = (
            {name: np.array(line[name], dtype=np.float64) for name in names}
            for names in (COSTS, SCORES)
        )
        arm, seed = (line["task"], line["algorithm"], line["arm"]), line["seed"]
        steps, series = costs["steps"], [*costs.values(), *scores.values()]
        if len(steps) < 2 or {each.shape for each in series} != {steps.shape}:
            raise ValueError(f"{', '.join(arm)}, seed {seed}: an evaluation is incomplete")
        if not np.isfinite([steps, *scores.values()]).all():
            raise ValueError(f"{', '.join(arm)}, seed {seed}: a step or a score is missing")
        run = Evaluations(steps.astype(int), costs, **scores, totals={}, variances=np.zeros((0, 2)))
        found.setdefault(arm, {})[seed] = run
    return found


def compared_again(table: Sequence[Row], lines: Sequence[Row]) -> list[Row]:
    """Return the rows of a study with comparisons made again, from its stored curves.

    Arms that were not compared, or whose curves are missing for some seed, have no comparison. A failed
    run of another kind, such as one of a learning rate that was not chosen, changes nothing.

    Args:
        table: rows, as :func:`rows` returned them.
        lines: as :func:`curves` returned them.
    """
    stored = stored_runs(lines)
    again = []
    for row in table:
        arms = [
            stored.get((row["task"], row["algorithm"], row[each]), {})
            for each in ("reference", "arm")
        ]
        goals = [WAY, *(Goal(t["score"], t["share"], t["level"]) for t in row["targets"])]
        whole = bool(row["seeds"]) and all(seed in arm for arm in arms for seed in row["seeds"])
        compared = None
        if whole and row["targets"]:
            theirs, ours = ([arm[seed] for seed in row["seeds"]] for arm in arms)
            compared = compare_evaluations(theirs, ours, goals)
        again.append({**row, **_comparisons(goals, compared)})
    return _judged(again)
