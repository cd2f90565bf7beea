"""Questions that other packages bring: those of reasoning-gym, and of environments of verifiers."""

from __future__ import annotations

from collections.abc import Set
from itertools import islice

from dibs.config import DataConfig
from dibs.data.environments import environment_name, environment_questions, has_evaluation_set
from dibs.data.questions import Question
from dibs.data.reasoning_gym import gym_names, gym_questions
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
    return gym_questions(config.train, config.options, config.size, (seed, _TRAINING), exclude)


def held_out_questions(config: DataConfig, source: str, seed: int) -> list[Question]:
    """Questions to evaluate on. Generated ones are ``data.eval_size``, whatever ``data.size`` is."""
    if gym_names(source) is None:
        found = environment_questions(source, config.options, held_out=True)
        return list(islice(found, config.max_rows))
    return gym_questions(source, config.options, config.eval_size, (seed, _HELD_OUT))


def check_options(config: DataConfig) -> None:
    """InputError for options of a name that neither ``data.train`` nor ``data.eval`` has."""
    names: list[str] = []
    for source in (config.train, config.eval or ""):
        names += gym_names(source) or []
        names += [environment_name(source) or ""] if environment_name(source) else []
    for name in config.options:
        if name not in names:
            known = f"names {', '.join(names)}" if names else "takes no options"
            raise InputError(f"data.options has {name!r}, but data.train {known}")
