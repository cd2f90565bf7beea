"""Questions that other packages bring: those of reasoning-gym, and of environments of verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import islice
from typing import Any

from dibs.config import DataConfig
from dibs.data.environments import environment_name, environment_questions, has_evaluation_set
from dibs.data.levels import Make, held_out_size, held_out_sizes, of_levels, training_sizes
from dibs.data.questions import Question
from dibs.data.reasoning_gym import curriculum_options, gym_names, gym_questions
from dibs.types import InputError

_TRAINING, _HELD_OUT = 0, 1
"""Beside the seed, what makes generated questions differ."""


def is_packaged(source: str) -> bool:
    """Whether a package brings the questions of a source."""
    return gym_names(source) is not None or environment_name(source) is not None


def evaluation_source(config: DataConfig) -> str | None:
    """What is evaluated on; None where prompts are held out of the training set.

    Without ``data.eval`` that is the training source itself, if it can give other questions.
    """
    if config.eval is not None:
        return config.eval
    if gym_names(config.train) is not None:
        return config.train
    if environment_name(config.train) is None:
        return None
    return config.train if has_evaluation_set(config.train, config.options) else None


def training_questions(
    config: DataConfig, seed: int, exclude: Set[str] = frozenset()
) -> list[Question]:
    """The questions of ``data.train``; generated ones leave out those with the texts in ``exclude``."""
    if gym_names(config.train) is None:
        found = environment_questions(config.train, config.options)
        return list(islice(found, config.max_rows))
    make = _gym_maker(config, seed, _TRAINING)
    return of_levels(make, training_sizes(config), exclude)


def held_out_questions(config: DataConfig, source: str, seed: int) -> list[Question]:
    """Questions to evaluate on. Generated ones are ``data.eval_size``, whatever ``data.size`` is.

    Of the training source they are of all levels in equal shares.
    """
    if gym_names(source) is None:
        found = environment_questions(source, config.options, held_out=True)
        return list(islice(found, config.max_rows))
    if source != config.train:
        return gym_questions(source, config.options, held_out_size(config), (seed, _HELD_OUT))
    return of_levels(_gym_maker(config, seed, _HELD_OUT), held_out_sizes(config))


def _gym_maker(config: DataConfig, seed: int, purpose: int) -> Make:
    """Makes questions of the training source, level by level."""
    grow = config.grow
    names = gym_names(config.train) or []

    def options(name: str, level: int) -> dict[str, Any]:
        given = _options_of(name, config.options, "data.options")
        if not isinstance(grow.levels, int):
            return given | _options_of(name, grow.levels[level - 1], "data.grow.levels")
        if grow.harder and grow.count > 1:
            return curriculum_options(name, level) | given
        return given

    def make(level: int, size: int, exclude: Set[str]) -> list[Question]:
        own = {name: options(name, level) for name in names}
        mark = 2 * (level - 1) + purpose
        return gym_questions(config.train, own, size, (seed, mark), exclude, fewer=grow.count > 1)

    return make


def _options_of(name: str, options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What a configuration key holds for a data set. InputError for other than keys and values."""
    found = options.get(name)
    if found is not None and not isinstance(found, dict):
        raise InputError(
            f"{key} must hold keys and values for {name}, as in {{{name}: {{KEY: VALUE}}}} "
            f"(got {found!r})"
        )
    return found or {}


def check_options(config: DataConfig) -> None:
    """InputError for options of a name that neither ``data.train`` nor ``data.eval`` has."""
    names: list[str] = []
    for source in (config.train, config.eval or ""):
        names += gym_names(source) or []
        names += [environment_name(source) or ""] if environment_name(source) else []
    levels = () if isinstance(config.grow.levels, int) else config.grow.levels
    given = [("data.options", name) for name in config.options]
    given += [("data.grow.levels", name) for level in levels for name in level]
    for key, name in given:
        if name not in names:
            known = f"names {', '.join(names)}" if names else "takes no options"
            raise InputError(f"{key} has {name!r}, but data.train {known}")


def check_growth_of_source(config: DataConfig) -> None:
    """InputError for levels of prompts that are not made but read."""
    if config.grow.count > 1 and gym_names(config.train) is None:
        raise InputError(
            f"data.grow.levels {config.grow.count}: prompts of {config.train} are read, not made; leave "
            "data.grow out, or train on an embedded task or reasoning-gym:NAME"
        )
