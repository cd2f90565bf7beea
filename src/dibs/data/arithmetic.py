"""The embedded task: chain arithmetic modulo 29.

A problem starts from a number and applies a few operations, each named by a letter. The completion
writes the running value after each operation and repeats the last one after ``#``::

    prompt      7A+4B*3C-5=
    completion  A11B4C28#28

Every number from 0 to 28 is one token, so a two-layer transformer learns the task on a CPU within
minutes. The modulus is prime, and so large that a guess is right only once in 29. With modulus 10,
lucky answers are rewarded so often that they spoil training.

A policy is warm-started on *noisy* demonstrations. They get single steps wrong on purpose and continue
from the wrong value. The policy learns to be unsure in the same places. That spreads its accept rates
over (0, 1) and leaves errors that reinforcement learning can fix.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from dibs.types import counted

MODULUS = 29
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ANSWER_MARK = "#"
OPERANDS = {"+": range(1, 10), "-": range(1, 10), "*": range(2, 6)}
DEMONSTRATION_ACCURACY = {"+": 0.97, "-": 0.9, "*": 0.6}
TASKS = {
    "arithmetic": (1, 4),
    "arithmetic-easy": (1, 1),
    "arithmetic-hard": (1, 6),
    "arithmetic-habit": (1, 2),
}
"""The (fewest, most) steps of a problem of each task, by the task's name."""
HABITS = {"arithmetic-habit": 0.25}
"""How often a product is right in the demonstrations of a task; else it is that of a false table.

The habitual wrong value is the likeliest answer, so a policy does not become right by growing more
certain. Every product has its own false value, so each must be learned from its own rare successes.
"""
_MISSES_IN_A_ROW = 10_000


@dataclass(frozen=True)
class Part:
    """A share of the problems of a mixture, in (0, 1], with their numbers of steps and operators."""

    share: float
    min_steps: int
    max_steps: int
    operators: str = "".join(OPERANDS)


MIXTURES = {
    "arithmetic-polar": (Part(0.875, 1, 2, "+"), Part(0.125, 2, 2, "*")),
    "arithmetic-lengths": (Part(0.5, 1, 1), Part(0.5, 6, 6)),
}
"""Sets of problems for the policies of tasks; the parts of a set must not overlap.

``arithmetic-polar`` is for a policy of ``arithmetic-habit``. Most problems are solved; an eighth have
two products and are solved once in sixteen times. ``arithmetic-lengths`` is for a policy of
``arithmetic-hard``. Completions have 5 or 15 tokens.
"""


def parts_of(name: str) -> tuple[Part, ...] | None:
    """The parts of an embedded set of problems; None if there is no set of that name."""
    return (Part(1.0, *TASKS[name]),) if name in TASKS else MIXTURES.get(name)


def levels_of(name: str, count: int) -> list[tuple[Part, ...]]:
    """Parts of ``count`` levels of a task, each with more steps than the one before.

    Raises ValueError for a mixture, and for more levels than there are numbers of steps.
    """
    if name not in TASKS:
        raise ValueError(f"{name} is a mixture, which has no harder levels")
    fewest, most = TASKS[name]
    numbers = most - fewest + 1
    if count > numbers:
        raise ValueError(
            f"problems of {name} have {fewest} to {most} steps, so {counted(numbers, 'level')} at most"
        )
    ends = [fewest + numbers * i // count for i in range(count + 1)]
    return [(Part(1.0, low, high - 1),) for low, high in pairwise(ends)]


@dataclass(frozen=True)
class Problem:
    """A start value and a chain of ``(operator, operand)`` steps."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def prompt(self) -> str:
        chain = "".join(
            f"{letter}{operator}{operand}"
            for letter, (operator, operand) in zip(LETTERS, self.steps, strict=False)
        )
        return f"{self.start}{chain}="

    @property
    def answer(self) -> int:
        return self.values()[-1]

    def values(self) -> list[int]:
        """Running value after each step."""
        values, value = [], self.start
        for operator, operand in self.steps:
            value = apply(operator, value, operand)
            values.append(value)
        return values

    def demonstration(self, rng: Random, habit: float | None = None) -> str:
        """A worked solution that errs at each step with the operator's error rate.

        A wrong value is uniform over the 28 others, and the chain continues from it. ``habit``: how
        often a product is right; a wrong product is then :func:`false_product`.
        """
        values, value = [], self.start
        for operator, operand in self.steps:
            right = apply(operator, value, operand)
            if operator == "*" and habit is not None:
                value = right if rng.random() < habit else false_product(value, operand)
            elif rng.random() >= DEMONSTRATION_ACCURACY[operator]:
                value = (right + rng.randrange(1, MODULUS)) % MODULUS
            else:
                value = right
            values.append(value)
        return render_solution(values)


def apply(operator: str, value: int, operand: int) -> int:
    """One step of the chain, modulo 29. Raises ValueError for an unknown operator."""
    match operator:
        case "+":
            return (value + operand) % MODULUS
        case "-":
            return (value - operand) % MODULUS
        case "*":
            return (value * operand) % MODULUS
    raise ValueError(f"unknown operator {operator!r}; the task has {', '.join(OPERANDS)}")


def false_product(value: int, operand: int) -> int:
    """The product in the false table: wrong, always the same, and without a pattern."""
    error = Random(31 * value + operand).randrange(1, MODULUS)
    return (apply("*", value, operand) + error) % MODULUS


def render_solution(values: list[int]) -> str:
    """``[11, 4, 28]`` to ``A11B4C28#28``."""
    chain = "".join(f"{letter}{value}" for letter, value in zip(LETTERS, values, strict=False))
    return f"{chain}{ANSWER_MARK}{values[-1]}"


def draw_problem(
    rng: Random, min_steps: int, max_steps: int, operators: Sequence[str] = tuple(OPERANDS)
) -> Problem:
    """A problem with a uniform number of steps, start in 1..28, uniform operators and operands."""
    steps = []
    for _ in range(rng.randint(min_steps, max_steps)):
        operator = rng.choice(operators)
        steps.append((operator, rng.choice(OPERANDS[operator])))
    return Problem(rng.randrange(1, MODULUS), tuple(steps))


def draw_problems(
    count: int,
    parts: Sequence[Part],
    *,
    seed: int,
    exclude: Set[str] = frozenset(),
    fewer: bool = False,
) -> list[Problem]:
    """``count`` distinct problems, each part in its share, without the prompts in ``exclude``.

    Raises ValueError when a part does not have that many distinct problems, unless ``fewer`` are enough.
    """
    rng = Random(seed)
    stops = [round(count * sum(each.share for each in parts[: i + 1])) for i in range(len(parts))]
    problems: dict[str, Problem] = {}
    for part, (start, stop) in zip(parts, pairwise([0, *stops]), strict=True):
        misses, before = 0, len(problems)
        end = before + stop - start  # a part does not make up for what an earlier one lacks
        while len(problems) < end and misses < _MISSES_IN_A_ROW:
            problem = draw_problem(rng, part.min_steps, part.max_steps, part.operators)
            if problem.prompt in exclude or problem.prompt in problems:
                misses += 1
            else:
                problems[problem.prompt], misses = problem, 0
        if len(problems) < end and not fewer:
            found, low = counted(len(problems) - before, "distinct problem"), part.min_steps
            range_of = f"{low} to " * (low < part.max_steps)
            raise ValueError(
                f"only {found} of {range_of}{counted(part.max_steps, 'step')} found, {end - before} "
                "asked for; ask for fewer or allow more steps"
            )
    return list(problems.values())
