"""How noisy the configured estimator's gradient is, and what counts can do about it.

The gain is that of the estimator in the configuration (``counts_judge``). What the estimator keeps
of its target's gradient stands beside it, and so does what the best counts could gain
(``achievable``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dibs.allocation.achievable import sigma_posterior
from dibs.allocation.intervals import Interval
from dibs.allocation.target import Target
from dibs.allocation.variance import gain, noise_scale, rescaled_gain
from dibs.config import Config
from dibs.data.curriculum import batches
from dibs.training.counts_judge import (
    AllocationOutcome,
    CountsJudge,
    Share,
    deciding_completions,
    scaled,
)
from dibs.training.measured_gradients import GradientSource, MeasuredGradients
from dibs.training.shape_meter import check_shapes, shape_report
from dibs.training.step_meter import check_simulated, is_simulated, step_report
from dibs.types import InputError, Prompt


def measure_variance(
    meter: GradientSource, training_prompts: Sequence[Prompt], *, shapes: bool = False
) -> dict[str, Any]:
    """Everything that ``dibs variance`` prints, as one object; intervals are 95%.

    ``shapes``: also compare shapes of steps; see :func:`.shape_report`. Steps in rounds, with
    completions left out or over a pool have another report, :func:`.step_report`.

    Raises InputError where there are too few completions to draw pilots from, for prompts that are
    weighed, and, for a batch, for a baseline that is not the group's.
    """
    if meter.config.algorithm.prompt_weight != "none":
        raise InputError(
            "dibs variance knows no algorithm.prompt_weight; leave it out, and compare by training "
            "(dibs compare)"
        )
    config = scaled(meter.config)
    if shapes:
        check_shapes(meter.config)
    elif is_simulated(meter.config):
        check_simulated(meter.config)
        measured = meter.measure(_batch(config, training_prompts))
        return step_report(meter.config, measured, len(training_prompts), meter.on_progress)
    if Target.of(config.algorithm).knows_baseline:
        group = "mean" if config.algorithm.objective != "expected_reward" else "leave_one_out"
        raise InputError(
            f"dibs variance measures baselines of groups; set algorithm.baseline to {group} in place of "
            f"{config.algorithm.baseline}, which has the same expected gradient"
        )
    deciding = deciding_completions(config)
    spare = config.variance.num_generations - deciding
    if spare < 2:
        raise InputError(
            f"variance.num_generations {config.variance.num_generations} leaves {max(spare, 0)} "
            f"completions beside the {deciding} that play the pilots; raise it"
        )
    measured = meter.measure(_batch(config, training_prompts))
    report = variance_report(meter.config, measured)
    if shapes:
        report["shapes"] = shape_report(
            meter.config, measured, len(training_prompts), _noise_over_square(report)
        )
    return report


def _batch(config: Config, training_prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts that are measured. InputError where they are fewer than two."""
    if config.train.prompts_per_step < 2:
        raise InputError(
            "the spread between prompts takes two or more; raise train.prompts_per_step or set "
            "variance.prompts"
        )
    return next(batches(training_prompts, config.train.prompts_per_step, config.seed))


def _noise_over_square(report: Mapping[str, Any]) -> float | None:
    """Variance of an update's gradient over the square of its mean; infinite, or None if unknown."""
    if report["prompts"] < 3 or report["allocations"]["uniform"]["variance"] == 0:
        return None
    of_step = report["noise_of_completions"], report["noise_of_prompts"]
    if None in of_step:
        return float("inf")
    updates: float = report["step_rollouts"] / report["update_rollouts"]
    return max(sum(of_step), 0.0) * updates


def variance_report(config: Config, measured: MeasuredGradients) -> dict[str, Any]:
    """What the measured gradients say of the configured estimator and allocator."""
    judge = CountsJudge.of(config, measured)
    allocations = judge.allocations()
    even, estimator = allocations["uniform"], judge.estimators[0]
    chosen = allocations.get(config.allocate.allocator, even)
    m, completions = len(measured.groups), float(even.counts.sum())
    step_rollouts = completions * config.train.prompts_per_step / m
    uniform = even.shares[estimator]
    kept = np.divide(
        uniform.kept.mean(0), measured.wanted, out=np.zeros(m), where=measured.wanted > 0
    )
    found = noise_scale(
        uniform.variance.mean(0),
        measured.products * np.outer(kept, kept),
        measured.own * kept**2,
        completions,
        config.train.prompts_per_step,
    )
    return {
        "policy": config.policy.model,
        "objective": config.algorithm.objective,
        "baseline": config.algorithm.baseline,
        "estimator": estimator,
        "allocator": config.allocate.allocator,
        "mode": config.estimate.mode,
        "seed": config.seed,
        "prompts": m,
        "completions_per_prompt": len(measured.prompts[0].rewards),
        "draws": judge.draws,
        "accept_rate": float(np.mean(measured.accepted)),
        "completion_length": float(measured.tokens.mean()),
        "step_prompts": config.train.prompts_per_step,
        "step_rollouts": step_rollouts,
        "update_rollouts": step_rollouts / config.update.updates_per_step,
        "allocations": {
            name: _describe(each, even, measured.tokens, estimator)
            for name, each in allocations.items()
        },
        "estimators": {
            name: _describe_estimator(chosen.shares[name], measured.wanted, chosen.complete)
            for name in judge.estimators
        },
        **_achievable(judge),
        "gradient_square": found.square,
        "noise_scale": asdict(found.rollouts),
        "noise_of_completions": found.completions,
        "noise_of_prompts": found.prompts,
        "completion_share": asdict(found.completion_share),
    }


def _achievable(judge: CountsJudge) -> dict[str, Any]:
    """The gain of the best counts for the target, and over how many prompts it is known."""
    measured, posterior = judge.measured, None
    if measured.is_binary:
        posterior = sigma_posterior(
            measured.accepted, measured.squares, judge.target, measured.signal(judge.target)
        )
    if posterior is None:
        return {"achievable_gain": asdict(Interval(None, None, None)), "achievable_prompts": 0}
    return {
        "achievable_gain": asdict(posterior.achievable_gain(judge.even.cost)),
        "achievable_prompts": int(posterior.known.sum()),
    }


def _describe(
    each: AllocationOutcome, even: AllocationOutcome, tokens: np.ndarray, estimator: str
) -> dict[str, Any]:
    m, own = len(tokens), each.shares[estimator]
    spent = each.counts + each.extra
    share = own.variance if each.complete else np.full(own.variance.shape, np.nan)
    variance = float(share.mean(0).sum()) / m**2 if each.complete else None

    def at_equal(cost: np.ndarray) -> dict[str, Any]:
        paid = float(cost @ spent)
        ratio = float(cost @ (even.counts + even.extra)) / paid if paid > 0 else 0.0
        return asdict(gain(own.uniform_variance, share, ratio))

    return {
        "variance": variance,
        "rollouts": float(each.counts.sum()),
        "pilot_rollouts": float(each.extra.sum()),
        "tokens": float(spent @ tokens),
        "variance_per_rollout": None if variance is None else variance * float(spent.sum()),
        "variance_per_token": None if variance is None else variance * float(spent @ tokens),
        "gain": asdict(gain(own.uniform_variance, share)),
        "gain_per_rollout": at_equal(np.ones(m)),
        "gain_per_token": at_equal(tokens),
        "starved_prompts": int((each.counts == 0).sum()),
    }


def _describe_estimator(share: Share, wanted: np.ndarray, complete: bool) -> dict[str, Any]:
    """What an estimator keeps of its target's gradient, and its gain."""
    nothing, whole = Interval(None, None, None), np.tile(wanted, (len(share.kept), 1))
    return {
        "kept_uniform": asdict(gain(share.uniform_kept, whole)),
        "kept": asdict(gain(share.kept, whole)),
        "gain": asdict(gain(share.uniform_variance, share.variance) if complete else nothing),
        "gain_rescaled": asdict(
            rescaled_gain(share.uniform_variance, share.variance, share.kept, share.uniform_kept)
            if complete
            else nothing
        ),
    }
