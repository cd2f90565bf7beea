"""Questions that the package reasoning-gym generates: ``reasoning-gym:NAME[,NAME...]``.

Every question is made from a seed and a number, so a list of them is the same in another process, and
in a run that is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from dibs.data.questions import Question
from dibs.files import one_line
from dibs.types import InputError

PREFIX = "reasoning-gym:"
_SPARE = 1000
"""Entries that a data set has beside four for each question asked for, since some are duplicates."""


class Dataset(NamedTuple):
    """What decides a data set: its name, its options as JSON, seed, and number of entries."""

    name: str
    options: str
    seed: int
    size: int


class GymAnswer(str):
    """A gold answer that finds the entry of its question: number ``number`` of ``dataset``.

    The entry itself may hold anything, so it is made again where it is needed.
    """

    __slots__ = ("dataset", "number")
    dataset: Dataset
    number: int

    def __new__(cls, text: str, dataset: Dataset, number: int) -> GymAnswer:
        """The answer ``text``."""
        made = super().__new__(cls, text)
        made.dataset = dataset
        made.number = number
        return made

    def __reduce__(self) -> tuple[type[GymAnswer], tuple[str, Dataset, int]]:
        """How pickle makes it again."""
        return GymAnswer, (str(self), self.dataset, self.number)


def gym_names(source: str) -> list[str] | None:
    """The data sets that a source names; None for a source of another kind.

    Raises InputError where it names none, or one twice.
    """
    if not source.startswith(PREFIX):
        return None
    names = [name.strip() for name in source.removeprefix(PREFIX).split(",")]
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"{source}: write reasoning-gym:NAME[,NAME...], each name once")
    return names


def gym_questions(
    source: str,
    options: Mapping[str, Any],
    count: int,
    seed: tuple[int, ...],
    exclude: Set[str] = frozenset(),
    fewer: bool = False,
) -> list[Question]:
    """``count`` distinct questions, in equal shares of the named data sets, which take turns.

    Args:
        options: for the name of a data set, what its configuration takes, such as ``min_terms``.
        seed: other numbers give other questions.
        exclude: texts of questions that must not occur.
        fewer: whether fewer are enough, where a data set has no more.

    Raises InputError for an unknown name, options that the data set does not take, or more questions
    than it has.
    """
    names = gym_names(source) or []
    shares: list[list[Question]] = []
    seen = set(exclude)
    for number, name in enumerate(names):
        share = count // len(names) + (number < count % len(names))
        own = int(np.random.default_rng([*seed, number]).integers(2**31))
        made = _distinct(name, options.get(name) or {}, share, own, seen, fewer)
        seen |= {question.text for question in made}
        shares.append(made)
    longest = max(map(len, shares))
    return [share[i] for i in range(longest) for share in shares if i < len(share)]


def curriculum_options(name: str, level: int) -> dict[str, Any]:
    """Options of a level, from 1, of the package's own curriculum for a data set.

    Ranges reach up to what is new at the level and hold what is easier, as the package has it.

    Raises InputError for a data set without a curriculum, or without so many levels.
    """
    from reasoning_gym.coaching.attributes import RangeAttributeDefinition

    if name not in _package().factory.CURRICULA:
        _known(name)
        raise InputError(
            f"reasoning-gym has no curriculum for {name}; give data.grow.levels a list of options, or "
            "set data.grow.harder to false"
        )
    own = _package().factory.CURRICULA[name]()
    most = max(len(attribute.levels) for attribute in own.attributes.values())
    if level > most:
        raise InputError(f"the curriculum of {name} has {most} levels; lower data.grow.levels")
    own.set_global_level(level - 1)
    made = own.generate_configuration()
    names: list[str] = []
    for attribute in own.attributes.values():
        if isinstance(attribute, RangeAttributeDefinition):
            names += attribute.lower_field_name, attribute.upper_field_name
        else:
            names.append(attribute.field_name)
    return {each: getattr(made, each) for each in names}


def score_of(answer: GymAnswer, given: str) -> float:
    """What the data set's own scoring function makes of an answer, usually in [0, 1].

    Raises ValueError where the data set, made again, has another entry.
    """
    made = _made(answer.dataset)
    entry = made[answer.number]
    if _gold(entry, answer.number) != answer:
        raise ValueError(f"reasoning-gym:{answer.dataset.name} does not make the same entry twice")
    return float(made.score_answer(answer=given, entry=entry))


def _distinct(
    name: str, options: Mapping[str, Any], count: int, seed: int, seen: Set[str], fewer: bool
) -> list[Question]:
    size = 4 * count + _SPARE
    try:
        dataset = Dataset(name, json.dumps(options, sort_keys=True), seed, size)
    except TypeError as error:
        raise InputError(f"data.options.{name}: {error}; give numbers, texts and lists") from None
    made = _made(dataset)
    questions: dict[str, Question] = {}
    for number in range(size):
        if len(questions) == count:
            break
        try:
            entry = made[number]
        except Exception as error:
            raise InputError(
                f"reasoning-gym:{name} cannot make question {number}: {one_line(error)}"
            ) from error
        text = str(entry["question"])
        if text not in seen and text not in questions:
            questions[text] = Question(text, GymAnswer(_gold(entry, number), dataset, number))
    if len(questions) < count and not fewer:
        raise InputError(
            f"reasoning-gym:{name} gave {len(questions):,} distinct questions in {size:,} tries, and "
            f"{count:,} are asked for; lower data.size and data.eval_size, or widen data.options.{name}"
        )
    return list(questions.values())


def _gold(entry: Mapping[str, Any], number: int) -> str:
    """The entry's answer; some puzzles have many, and state none."""
    return f"entry {number}" if entry["answer"] is None else str(entry["answer"])


@cache
def _made(dataset: Dataset) -> Any:
    """The package's own object. Raises InputError where it cannot be made."""
    name = dataset.name
    gym = _package()
    known = _known(name)
    given = json.loads(dataset.options)
    if not isinstance(given, dict):
        raise InputError(f"data.options.{name} must hold keys and values")
    for key in ("seed", "size"):
        if key in given:
            instead = "seed" if key == "seed" else "data.size"
            raise InputError(
                f"data.options.{name}.{key}: {instead} of the configuration decides it"
            )
    takes = getattr(known[name][1], "__dataclass_fields__", {})
    for key in given:
        if key not in takes:
            own = ", ".join(sorted(set(takes) - {"seed", "size"}))
            raise InputError(f"data.options.{name}: unknown option {key}; it has {own}")
    try:
        return gym.create_dataset(name, seed=dataset.seed, size=dataset.size, **given)
    except (AssertionError, ValueError, TypeError) as error:
        raise InputError(f"data.options.{name}: {one_line(error)}") from None


def _known(name: str) -> Any:
    """The package's data sets. InputError where ``name`` is not among them."""
    known = _package().factory.DATASETS
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; nearest is {near[0]}" if near else f"; there are {len(known)} of them"
        raise InputError(f"reasoning-gym has no data set {name!r}{hint}")
    return known


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise InputError(
            f"prompts of reasoning-gym need that package ({error}); "
            "pip install 'dibs-rl[reasoning-gym]'"
        ) from None
    return reasoning_gym
