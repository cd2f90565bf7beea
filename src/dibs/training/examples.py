"""Judged groups in, weighted examples out: what each completion adds to the step's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dibs.allocation.cross_fit import GradientPart
from dibs.allocation.deviations import expected_deviations
from dibs.allocation.estimators import weigh
from dibs.allocation.known_baselines import known_baselines
from dibs.allocation.posterior import Posterior
from dibs.allocation.problem import AllocationProblem
from dibs.allocation.target import Target
from dibs.config import Config
from dibs.types import Group, Rollout, TrainingExample


def weighted_examples(
    groups_of_parts: Sequence[Sequence[Group]],
    parts: Sequence[GradientPart],
    problems: Sequence[AllocationProblem],
    config: Config,
) -> list[TrainingExample]:
    """The examples of a step whose gradient is the mean of its parts.

    Args:
        groups_of_parts: of each part, a group for each of the m prompts.
        parts: what belongs to each part besides: ``baseline_only`` and ``shares``.
        problems: the allocation problem of each part, whose posterior has the accept rates and
            deviations.
    """
    return [
        example
        for groups, part, problem in zip(groups_of_parts, parts, problems, strict=True)
        for example in examples_of_part(
            groups,
            problem.posterior,
            config,
            baseline_only=part.baseline_only,
            shares=part.shares,
            scale=1 / len(parts),
        )
    ]


def examples_of_part(
    groups: Sequence[Group],
    known: Posterior,
    config: Config,
    *,
    baseline_only: Sequence[Group] | None = None,
    shares: np.ndarray | None = None,
    scale: float = 1.0,
) -> list[TrainingExample]:
    """Every rollout that has a weight, with its advantage.

    Args:
        known: of the prompts, from the estimate step.
        baseline_only: completions of each prompt that enter its baseline and nothing else.
        shares: what the weights of each prompt's completions add up to, [m]; None: 1/m each.
        scale: of this part in the step's gradient.
    """
    target = Target.of(config.algorithm)
    advantages, weights = weigh(
        groups,
        target,
        config.algorithm.estimator,
        accept_rates=known.accept_rate,
        deviations=expected_deviations(known, target),
        baselines=known_baselines(known, target),
        baseline_only=baseline_only,
        shares=shares,
    )
    return [
        normalized_example(rollout, advantage, scale * weight, config)
        for group, *both in zip(groups, advantages, weights, strict=True)
        for rollout, advantage, weight in zip(group.rollouts, *both, strict=True)
        if weight != 0
    ]


def normalized_example(
    rollout: Rollout, advantage: float, weight: float, config: Config
) -> TrainingExample:
    """The rollout with its share of the gradient, ``weight * advantage * s / divisor``.

    ``divisor``: :func:`length_divisor`. Norms of gradients are divided by the same number, in
    :class:`.RolloutGradients` alone.
    """
    return rollout.example(advantage, weight / length_divisor(rollout, config))


def length_divisor(rollout: Rollout, config: Config) -> int:
    """What ``algorithm.length_normalization`` divides the gradient of a completion by; at least 1."""
    normalization = config.algorithm.length_normalization
    if normalization == "none":
        return 1
    if normalization == "constant":
        return config.sampling.max_completion_length
    return max(len(rollout.completion.token_ids), 1)
