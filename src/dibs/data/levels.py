"""Questions of several levels, from sources that can make more of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from dibs.allocation.room import check_fits
from dibs.config import DataConfig
from dibs.data.arithmetic import Part, draw_problems, levels_of
from dibs.data.questions import Question
from dibs.types import InputError

_EVAL_SEED_OFFSET = 1_000_003

Make = Callable[[int, int, Set[str]], list[Question]]
"""Makes questions of a level, from 1: at most so many, without those of some texts."""


def training_sizes(config: DataConfig) -> list[int]:
    """How many questions to make of each level. InputError for more than memory can hold."""
    added = config.size if config.grow.size is None else config.grow.size
    check_fits(
        "data.size and data.grow", config.size + added * (config.grow.count - 1), of="prompts"
    )
    return [config.size, *[added] * (config.grow.count - 1)]


def held_out_size(config: DataConfig) -> int:
    """How many questions to make to evaluate on. InputError for more than memory can hold."""
    check_fits(f"data.eval_size {config.eval_size:,}", config.eval_size, of="prompts")
    return config.eval_size


def held_out_sizes(config: DataConfig) -> list[int]:
    """Equal shares of ``data.eval_size``. InputError where a level would have none."""
    levels, size = config.grow.count, held_out_size(config)
    if size < levels:
        raise InputError(
            f"data.eval_size {size} leaves some of the {levels} levels of data.grow without "
            "held-out prompts; raise it"
        )
    return [size // levels + (i < size % levels) for i in range(levels)]


def of_levels(make: Make, sizes: Sequence[int], exclude: Set[str] = frozenset()) -> list[Question]:
    """The questions of all levels, each marked with its level; none occurs twice.

    Raises InputError for a level without any.
    """
    taken, found = set(exclude), []
    for level, size in enumerate(sizes, start=1):
        try:
            made = make(level, size, taken)
        except InputError as error:
            if len(sizes) == 1:
                raise
            raise InputError(f"level {level} of data.grow: {error}") from None
        if not made:
            raise InputError(
                f"level {level} of data.grow has no prompts beside those held out and those of earlier "
                "levels; lower data.eval_size, or choose other levels"
            )
        taken |= {question.text for question in made}
        found += [replace(question, level=level) for question in made]
    return found


def embedded_questions(
    config: DataConfig, parts: Sequence[Part], seed: int
) -> tuple[list[Question], list[Question]]:
    """Questions of an embedded task, to train on and to evaluate on.

    Raises InputError for more questions or levels than it has.
    """
    grow = config.grow
    if not isinstance(grow.levels, int):
        raise InputError(
            f"data.grow.levels: the embedded task {config.train} takes no options; give a number"
        )
    levels: Sequence[Sequence[Part]] = [parts] * grow.count
    if grow.harder and grow.count > 1:
        try:
            levels = levels_of(config.train, grow.count)
        except ValueError as error:
            raise InputError(
                f"data.grow.levels: {error}; lower it, or set data.grow.harder to false"
            ) from None

    def make(first: int, level: int, size: int, exclude: Set[str]) -> list[Question]:
        own = first + 2 * _EVAL_SEED_OFFSET * (level - 1)
        # Level 1 of levels that are alike is what a run without levels has, in number too.
        fewer = grow.count > 1 and (grow.harder or level > 1)
        drawn = draw_problems(size, levels[level - 1], seed=own, exclude=exclude, fewer=fewer)
        return [Question(problem.prompt, str(problem.answer)) for problem in drawn]

    try:
        held_out = of_levels(
            lambda *level: make(seed + _EVAL_SEED_OFFSET, *level), held_out_sizes(config)
        )
        texts = {question.text for question in held_out}
        train = of_levels(lambda *level: make(seed, *level), training_sizes(config), texts)
    except ValueError as error:
        raise InputError(f"data.size or data.eval_size: {error}") from None
    return train, held_out
