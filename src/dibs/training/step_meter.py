"""What any rule's steps are worth by measured gradients: noise, cost, and the gradient they expect.

For a batch whose counts are decided before a step, ``variance_meter`` has exact formulas. Rules that
draw in rounds, leave completions out or choose prompts are judged by simulated steps
(:mod:`dibs.allocation.simulated_steps`), beside steps of uniform counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import stdtrit

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.intervals import Interval, jackknife_error
from dibs.allocation.shapes import noise_ratio
from dibs.allocation.simulated_steps import MeasuredPrompt, StepNoise, StepRule, simulated_steps
from dibs.config import Config, SelectConfig
from dibs.training.measured_gradients import MeasuredGradients
from dibs.types import Group, InputError

_STEPS = 1000
_LARGEST_SET = 512
"""Prompts of the data set that the measured ones stand for, at most, unless a step draws from more."""
_TAKEN = ("num_generations", "allocator", "rounds", "max_rounds", "keep", "keep_count")
_TARGET = ("objective", "baseline", "estimator", "order", "deviation")
_BOUNDS = ("lower", "upper", "accept_rate_penalty", "accept_rate_power")


def is_simulated(config: Config) -> bool:
    """Whether steps are made otherwise than with counts of a batch that are decided before a step."""
    options = config.allocate
    return bool(options.rounds or options.keep or config.select.pool)


def check_simulated(config: Config) -> None:
    """Raise InputError where steps cannot be simulated, before anything is measured."""
    if config.estimate.mode == "cross_fit":
        raise InputError(
            "dibs variance simulates steps of rounds, keepers and pools with estimate.mode none, pilot "
            "or online; choose one in place of cross_fit"
        )
    if config.allocate.budget is not None or config.allocate.budget_unit == "tokens":
        raise InputError(
            "dibs variance simulates steps of rounds, keepers and pools by their completions; leave "
            "allocate.budget and allocate.budget_unit out"
        )
    least = _deciding(config) + 2
    if config.variance.num_generations < least:
        raise InputError(
            f"variance.num_generations {config.variance.num_generations} is below {least}: "
            f"{_deciding(config)} decide, and the others make steps; raise it"
        )


def step_report(
    config: Config,
    measured: MeasuredGradients,
    available: int,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """The configured rule's steps and uniform ones, as one object; intervals are 95%, over prompts.

    ``gain`` is the noise of uniform steps over that of the rule's, for gradients that are as long along
    the target's gradient; a rollout and a token count completions of every kind.

    Args:
        available: training prompts.
    """
    name = _name(config)
    rules = {"uniform": _uniform(config), name: config}
    made, total = itertools.count(), len(rules) * _STEPS
    found = {
        each: step_noise(
            own, measured, available, on_step=lambda: on_progress("steps", next(made), total)
        )
        for each, own in rules.items()
    }
    on_progress("steps", total, total)
    return {
        "policy": config.policy.model,
        "objective": config.algorithm.objective,
        "baseline": config.algorithm.baseline,
        "estimator": config.algorithm.estimator,
        "mode": config.estimate.mode,
        "seed": config.seed,
        "prompts": len(measured.groups),
        "completions_per_prompt": len(measured.prompts[0].rewards),
        "accept_rate": float(np.mean(measured.accepted)),
        "completion_length": float(measured.tokens.mean()),
        "rule": name,
        "simulated_steps": _STEPS,
        "steps": {each: step_row(own, found["uniform"]) for each, own in found.items()},
    }


def step_noise(
    config: Config,
    measured: MeasuredGradients,
    available: int,
    *,
    steps: int = _STEPS,
    on_step: Callable[[], None] = lambda: None,
) -> StepNoise:
    """Simulate steps as configured, a batch with counts decided before included."""
    prompts = [
        _measured(group, norms, gradients)
        for group, norms, gradients in zip(
            measured.groups, measured.norms, measured.prompts, strict=True
        )
    ]
    return simulated_steps(
        _rule(config),
        prompts,
        measured.between,
        available=min(available, _largest_set(config)),
        steps=steps,
        seed=config.seed,
        on_step=on_step,
    )


def step_row(own: StepNoise, uniform: StepNoise) -> dict[str, Any]:
    """What steps cost and keep, and their gain over uniform ones."""
    gain = noise_ratio(uniform.noise, own.noise)
    if own is uniform:
        gain = Interval(1.0, 1.0, 1.0)

    def at_equal(cost: float, uniform_cost: float) -> dict[str, Any]:
        ratio = uniform_cost / cost if cost > 0 else np.nan
        return asdict(gain.map(lambda end: end * ratio))

    spent, usual = own.rollouts + own.pilots, uniform.rollouts + uniform.pilots
    return {
        "rollouts": own.rollouts,
        "pilot_rollouts": own.pilots,
        "tokens": own.tokens,
        "trained_prompts": own.trained,
        "kept": asdict(_interval(own.noise.length)),
        "cosine": asdict(_interval(own.cosine).map(lambda end: min(end, 1.0))),
        "gain": asdict(gain),
        "gain_per_rollout": at_equal(spent, usual),
        "gain_per_token": at_equal(own.tokens, uniform.tokens),
    }


def _interval(values: np.ndarray) -> Interval:
    """Of a number and its values without any one of the m prompts, [1 + m], by Student's t."""
    if not np.isfinite(values).all() or len(values) < 3:
        return Interval(float(values[0]) if np.isfinite(values[0]) else None, None, None)
    margin = stdtrit(len(values) - 2, 0.975) * jackknife_error(values[1:])
    return Interval(float(values[0]), float(values[0] - margin), float(values[0] + margin))


def _name(config: Config) -> str:
    options = config.allocate
    if options.rounds or options.keep:
        return " + ".join(each for each in (options.rounds, options.keep) if each)
    return f"{options.allocator} of a pool"


def _uniform(config: Config) -> Config:
    """The same with uniform counts of a batch, all trained on, and no pilots that nothing needs."""
    usual = {"allocator": "uniform", "rounds": None, "keep": None, "keep_count": None}
    changed: dict[str, Any] = {
        "allocate": config.allocate.model_copy(update=usual),
        "select": SelectConfig(),
    }
    if not config.weighs_by_statistics:
        changed["estimate"] = config.estimate.model_copy(update={"mode": "none"})
    return config.model_copy(update=changed)


def _largest_set(config: Config) -> int:
    pool = config.select.pool if isinstance(config.select.pool, int) else 0
    return max(_LARGEST_SET, config.train.prompts_per_step, pool)


def _rule(config: Config) -> StepRule:
    """The configured step, as a trainer of any kind would say it."""
    algorithm, allocate, select = config.algorithm, config.allocate, config.select
    said = {key: getattr(allocate, key) for key in (*_TAKEN, *_BOUNDS)}
    said |= {key: getattr(algorithm, key) for key in _TARGET}
    budget = BudgetConfig.model_validate(
        {
            **said,
            "mode": config.estimate.mode,
            "half_life": config.estimate.half_life,
            "accept_threshold": config.verify.accept_threshold,
        }
    )
    normalized = algorithm.length_normalization
    return StepRule(
        budget,
        config.train.prompts_per_step,
        pool=0 if select.pool == "all" else select.pool,
        group=select.group,
        uniform_share=select.uniform_share,
        correct=select.correct,
        deciding=_deciding(config),
        length_normalization="sequence" if normalized == "sequence" else "none",
    )


def _deciding(config: Config) -> int:
    """Completions of a prompt that are known before a step; online, those of one earlier step."""
    mode = config.estimate.mode
    if mode == "none":
        return 0
    return config.allocate.num_generations if mode == "online" else config.estimate.num_pilots


def _measured(group: Group, norms: np.ndarray, gradients: Any) -> MeasuredPrompt:
    completions = [rollout.completion for rollout in group.rollouts]
    return MeasuredPrompt(
        group.rewards,
        np.array([len(each.token_ids) for each in completions], dtype=np.float64),
        np.array([sum(each.sampling_logprobs) for each in completions]),
        norms,
        gradients,
    )
