"""Rules that draw in rounds, and rules for which completions are kept: found by name, and checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dibs.allocation import rules
from dibs.allocation.drawn import Drawn
from dibs.allocation.returned import are_whole, numbers_of
from dibs.allocation.room import check_fits
from dibs.config.published_rules import KeepsSome
from dibs.plugins import called, import_function
from dibs.types import InputError


@dataclass(frozen=True)
class RoundsRule:
    """A rule that draws in rounds; see :mod:`.rules`. ``keep``: name of the keeper that it goes with.

    ``least``: completions of the smallest group that it trains on.
    """

    name: str
    function: Callable[[Drawn], np.ndarray]
    choice: Callable[[Drawn], np.ndarray] | None = None
    keep: str | None = None
    least: int = 1

    @property
    def chooses(self) -> bool:
        """Whether it trains on some of a pool of candidates."""
        return self.choice is not None

    def more(self, drawn: Drawn) -> np.ndarray:
        """Completions of each prompt to draw next, int64 [N].

        Raises InputError unless there is a whole number of at least 0 for each, and where it fails.
        """
        given = called(self.name, "rounds", self.function, drawn)
        return _whole_numbers(given, len(drawn), f"rounds {self.name}")

    def trained(self, drawn: Drawn) -> np.ndarray:
        """Which prompts are trained on, bool [N]: by default all that were drawn from.

        Raises InputError unless the rule says yes or no of each, and where it fails.
        """
        if self.choice is None:
            return drawn.asked > 0
        who, wanted = (
            f"trained of rounds {self.name}",
            f"yes or no for each of {len(drawn)} prompts",
        )
        given = called(self.name, "trained of rounds", self.choice, drawn)
        marks = numbers_of(given, len(drawn), who, what="yes or no", wanted=wanted)
        if not np.isin(marks, (0, 1)).all():
            raise InputError(f"{who} returned numbers other than 0 and 1; it must be {wanted}")
        return (marks > 0) & (drawn.asked > 0)


class StepInRounds:
    """One step's drawing in rounds: what a rule asked for so far, and what it asks for next.

    Args:
        size: the number N of prompts, candidates included. group, wanted: as in :class:`.Drawn`.
        most: rounds at most.
    """

    def __init__(self, rule: RoundsRule, size: int, *, group: int, wanted: int, most: int) -> None:
        self.rule, self.group, self.wanted, self.most = rule, group, wanted, most
        self.asked = np.zeros(size, dtype=np.int64)
        self.rounds = 0

    def more(self, rewards: Sequence[np.ndarray], accepted: Sequence[np.ndarray]) -> np.ndarray:
        """Completions of each prompt to draw next, int64 [N]; all 0 ends the step.

        Args:
            rewards, accepted: of all completions with a verdict so far, [n_i] a prompt.

        Raises InputError as the rule does, where its first round draws nothing, and for more completions
        than this machine can hold.
        """
        if self.rounds == self.most:
            return np.zeros_like(self.asked)
        more = self.rule.more(self._drawn(rewards, accepted))
        if self.rounds == 0 and not more.any():
            raise InputError(
                f"rounds {self.rule.name} asked for no completion in its first round; it must ask for "
                "some, although nothing is known then (accept_rate is NaN)"
            )
        if more.any():
            self.asked = self.asked + more
            what = f"rounds {self.rule.name}: the counts of a step"
            check_fits(what, float(self.asked.sum(dtype=np.float64)))
            self.rounds += 1
        return more

    def trained(self, rewards: Sequence[np.ndarray], accepted: Sequence[np.ndarray]) -> np.ndarray:
        """Which prompts are trained on, bool [N]."""
        return self.rule.trained(self._drawn(rewards, accepted))

    def _drawn(self, rewards: Sequence[np.ndarray], accepted: Sequence[np.ndarray]) -> Drawn:
        return Drawn(self.rounds, self.asked.copy(), rewards, accepted, self.group, self.wanted)


@dataclass(frozen=True)
class Keeper:
    """A rule for which completions of a prompt are trained on.

    ``whole_baseline``: whether the others enter the baseline and the deviation of the group.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    whole_baseline: bool

    def keep(self, rewards: np.ndarray, accepted: np.ndarray, count: int) -> np.ndarray:
        """Positions of at most ``count`` of n completions, in order, int64.

        Raises InputError unless they are positions, each once, and where it fails.
        """
        what = f"keep {self.name}"
        given = called(self.name, "keep", self.function, rewards, accepted, count)
        positions = _whole_numbers(given, None, what)
        if len(positions) > count or len(np.unique(positions)) < len(positions):
            raise InputError(
                f"{what} returned {len(positions)} positions; it must return at most {count}, each once"
            )
        if len(positions) and positions.max() >= len(rewards):
            raise InputError(
                f"{what} returned position {positions.max()} of {len(rewards)} completions"
            )
        return np.sort(positions)


def named_rules(options: KeepsSome, section: str = "") -> tuple[RoundsRule | None, Keeper | None]:
    """The rule for rounds and the keeper that settings name; a rule may bring a keeper of its own.

    ``section``: goes before the names of keys in messages, as in ``allocate.``.

    Raises InputError for a rule that does not exist, for groups that it never trains on, and for a count
    of kept completions where all are.
    """
    own = None if options.keep is None else keeper(options.keep)
    rule = None if options.rounds is None else rounds_rule(options.rounds)
    if rule is not None and options.num_generations < rule.least:
        raise InputError(
            f"rounds {options.rounds} trains on no group of {options.num_generations}; raise "
            f"{section}num_generations to {rule.least} or more"
        )
    if own is None and rule is not None and rule.keep is not None:
        own = keeper(str(rule.keep))
    if own is None and rule is not None and options.keep_count is not None:
        raise InputError(
            f"{section}keep_count {options.keep_count} has no use: {section}rounds {options.rounds} "
            f"keeps all completions; set {section}keep, pods for example"
        )
    return rule, own


def rounds_rule(name: str) -> RoundsRule:
    """The rule for rounds of this name, or ``module:function``. InputError if there is none.

    ``trained`` and ``KEEP``, say, are those of its module, if it has them (:mod:`.rules`).
    """
    if name in rules.ROUNDS:
        module, more = rules.module_of(name), rules.module_of(name).more
    elif ":" in name:
        more = import_function(name, "rounds")
        module = sys.modules[name.partition(":")[0]]
    else:
        known = ", ".join(rules.ROUNDS)
        raise InputError(
            f"unknown rule for rounds {name!r}; known: {known}, or your own as module:function"
        )
    return RoundsRule(
        name,
        more,
        getattr(module, "trained", None),
        getattr(module, "KEEP", None),
        getattr(module, "LEAST_GROUP", 1),
    )


def keeper(name: str) -> Keeper:
    """The keeper of this name, or ``module:function``. InputError if there is none."""
    if name in rules.KEEPERS:
        module = rules.module_of(name)
        return Keeper(name, module.keep, module.WHOLE_BASELINE)
    if ":" not in name:
        known = ", ".join(rules.KEEPERS)
        raise InputError(f"unknown keeper {name!r}; known: {known}, or your own as module:function")
    return Keeper(name, import_function(name, "keep"), whole_baseline=False)


def _whole_numbers(given: object, size: int | None, who: str) -> np.ndarray:
    """What a rule returned, int64, of ``size`` where that is known."""
    wanted = "a list of positions" if size is None else f"one count for each of {size} prompts"
    numbers = numbers_of(given, size, who, what="whole numbers", wanted=wanted)
    if not (are_whole(numbers) & (numbers >= 0)).all():
        raise InputError(f"{who} returned numbers other than whole ones from 0 to 2^52")
    return numbers.astype(np.int64)
