"""Which prompts the steps of a run draw from, and when more of them are added.

Every prompt has a level. A run begins with the prompts of level 1, and the levels that are added stay.
A run that does not grow has one level. A step draws from the prompts that are there at the time, so its
gradient is unbiased for those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any

import numpy as np

from dibs.config import Config
from dibs.types import Group, Prompt, counted


class Curriculum:
    """Yields what each step draws from, and adds a level of prompts when ``data.grow`` says so.

    The same prompts, configuration and observations give the same draws. ``level``: the newest level
    that is there. ``drawn``: batches or pools drawn so far.
    """

    def __init__(self, prompts: Sequence[Prompt], config: Config) -> None:
        self.prompts, self.config = prompts, config
        self.grow = config.data.grow
        self.level, self.drawn = 1, 0
        self._drawn_before = 0  # when the newest level was added
        # Of each step since then: the sum of its prompts' accept rates, and how many they are.
        self._rates: list[tuple[float, int]] = []
        self._draws = self._from_here()

    def draw(self) -> Sequence[Prompt]:
        """The batch of the next step, or the pool for its choice."""
        self.drawn += 1
        return next(self._draws)

    def observe(self, groups: Sequence[Group], held_out: Sequence[Group] = ()) -> dict[str, Any]:
        """Take in the completions of a step, and of the evaluation after it; add a level if one is due.

        What is drawn already is left as it is. Returns what the step's metrics say of it: nothing in a
        run that does not grow.
        """
        if self.grow.count == 1:
            return {}
        self._rates = [*self._rates, self._newest(groups)][-self.grow.interval :]
        seen = self._rates
        if self.grow.when == "held_out":
            seen = [self._newest(held_out)]
        prompts = sum(number for _, number in seen)
        rate = sum(total for total, _ in seen) / prompts if prompts else None
        metrics = {"level": self.level, "level_accept_rate": rate}
        if self._is_due(rate):
            self._add_level()
        return metrics

    def announcement(self) -> str:
        """What the newest level added."""
        sizes = level_sizes(self.prompts)[: self.level]
        return (
            f"Level {self.level} of {self.grow.count} is added: {counted(sizes[-1], 'prompt')} more, "
            f"{sum(sizes):,} in all"
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the draws are, and what the newest level's prompts have shown."""
        return {
            "drawn": self.drawn,
            "level": self.level,
            "drawn_before": self._drawn_before,
            "rates": [list(each) for each in self._rates],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave. A run that did not grow may have ``drawn`` alone."""
        self.drawn = int(state["drawn"])
        self.level = min(int(state.get("level", 1)), self.grow.count)
        self._drawn_before = int(state.get("drawn_before", 0))
        self._rates = [(float(total), int(number)) for total, number in state.get("rates", ())]
        self._draws = self._from_here()

    def _newest(self, groups: Sequence[Group]) -> tuple[float, int]:
        """Accept rates of the newest level's prompts: their sum, and how many have one.

        A prompt counts once, however many completions it got.
        """
        rates = [
            float(group.accepted.mean())
            for group in groups
            if group.rollouts and group.prompt.level == self.level
        ]
        return sum(rates), len(rates)

    def _is_due(self, rate: float | None) -> bool:
        if self.level == self.grow.count or len(self._rates) < self.grow.interval:
            return False
        return self.grow.when == "steps" or (rate is not None and rate >= self.grow.accept_rate)

    def _add_level(self) -> None:
        self.level += 1
        self._drawn_before, self._rates = self.drawn, []
        self._draws = self._from_here()

    def _from_here(self) -> Iterator[Sequence[Prompt]]:
        there = up_to(self.prompts, self.level)
        draws = batches_or_pools(there, self.config, self.level)
        return islice(draws, self.drawn - self._drawn_before, None)


def up_to(prompts: Sequence[Prompt], level: int) -> list[Prompt]:
    """The prompts of the first levels."""
    return [prompt for prompt in prompts if prompt.level <= level]


def level_sizes(prompts: Sequence[Prompt]) -> list[int]:
    """How many prompts each level has; every level has some (:func:`.build_prompts`)."""
    return np.bincount([prompt.level for prompt in prompts])[1:].tolist()


def batches_or_pools(
    prompts: Sequence[Prompt], config: Config, level: int = 1
) -> Iterator[Sequence[Prompt]]:
    """Yield what each step draws from, for ever: its batch of prompts, or the pool for its choice."""
    pool = config.select.pool
    if pool == "all" or pool == len(prompts):
        return repeat(prompts)
    return batches(prompts, pool or config.train.prompts_per_step, config.seed, level)


def batches(
    prompts: Sequence[Prompt], size: int, seed: int, level: int = 1
) -> Iterator[list[Prompt]]:
    """Yield batches of ``size`` distinct prompts for ever, shuffled anew each epoch.

    Prompts that do not fill a batch at the end of an epoch are left out. Another ``level`` gives another
    order.
    """
    epoch = 0
    own = [] if level == 1 else [level]
    while True:
        epoch += 1
        order = np.random.default_rng([seed, epoch, *own]).permutation(len(prompts))
        for start in range(0, len(prompts) - size + 1, size):
            yield [prompts[i] for i in order[start : start + size]]
