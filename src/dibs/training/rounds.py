"""A step's completions drawn in rounds, and some of its completions left out of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dibs.allocation.choice import Choice
from dibs.allocation.cross_fit import GradientPart
from dibs.allocation.rounds import Keeper, StepInRounds, named_rules, rounds_rule
from dibs.config import Config
from dibs.types import Group

Draw = Callable[[np.ndarray, np.ndarray], Sequence[Group]]
"""Draws a number of completions of each prompt [N], from a number on [N]; a group a prompt."""


def draw_in_rounds(choice: Choice, config: Config, draw: Draw) -> tuple[Choice, list[Group]]:
    """Draw until the rule of ``allocate.rounds`` has enough, or ``allocate.max_rounds`` are done.

    Args:
        choice: the candidates.

    Returns:
        The prompts that were drawn from, with the counts that they got and weights that are equal for
        those that are trained on and 0 for the others; and all completions of each.
    """
    options, prompts = config.allocate, choice.prompts
    assert options.rounds is not None
    step = StepInRounds(
        rounds_rule(options.rounds),
        len(prompts),
        group=options.num_generations,
        wanted=config.train.prompts_per_step,
        most=options.max_rounds,
    )
    groups = [Group(prompt, ()) for prompt in prompts]
    while (more := step.more(*_judged(groups))).any():
        fresh = draw(more, step.asked - more)
        groups = [Group.merged(pair) for pair in zip(groups, fresh, strict=True)]
    rows = np.flatnonzero(step.asked)
    trained = step.trained(*_judged(groups))[rows]
    shares = trained / max(int(trained.sum()), 1)
    metrics = {"rounds": step.rounds, "trained_prompts": int(trained.sum())}
    found = choice.restricted(rows, step.asked[rows], shares, metrics)
    return found, [groups[i] for i in rows.tolist()]


def _judged(groups: Sequence[Group]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rewards, and which are accepted, of each group."""
    return [group.rewards for group in groups], [group.accepted for group in groups]


def left_in(
    groups_of_parts: Sequence[Sequence[Group]], parts: Sequence[GradientPart], config: Config
) -> tuple[Sequence[Sequence[Group]], Sequence[GradientPart]]:
    """The completions that are trained on, of each part: those that ``allocate.keep`` leaves.

    Returns:
        Groups and parts. What is left out may still enter a part's baselines.
    """
    options = config.allocate
    _, rule = named_rules(options, "allocate.")
    if rule is None:
        return groups_of_parts, parts
    count = options.keep_count or options.num_generations
    kept, rests = [], []
    for groups in groups_of_parts:
        pairs = [_divided(group, rule, count) for group in groups]
        kept.append([pair[0] for pair in pairs])
        rests.append([pair[1] for pair in pairs])
    if not rule.whole_baseline:
        return kept, parts
    return kept, [
        replace(
            part,
            baseline_only=[
                Group.merged(pair) for pair in zip(part.baseline_only, rest, strict=True)
            ],
        )
        for part, rest in zip(parts, rests, strict=True)
    ]


def _divided(group: Group, rule: Keeper, count: int) -> tuple[Group, Group]:
    """The completions that a rule keeps, and the others."""
    kept = set(rule.keep(group.rewards, group.accepted, count).tolist())
    inside = tuple(each for i, each in enumerate(group.rollouts) if i in kept)
    outside = tuple(each for i, each in enumerate(group.rollouts) if i not in kept)
    return replace(group, rollouts=inside), Group(group.prompt, outside)
