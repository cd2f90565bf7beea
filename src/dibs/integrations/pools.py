"""Prompts and counts chosen together, in a trainer that would draw batches of its own.

The trainer's loader goes on saying how many completions a step has, and when an epoch ends. Which
prompts they are of is decided here: among all prompts of the data set, or among so many that are drawn
evenly every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import model_validator

from dibs.allocation.budget_config import BudgetConfig, check_choice
from dibs.allocation.prompt_budget import Chosen, PromptBudget
from dibs.config import SelectConfig, least_group
from dibs.types import InputError

_DRAWING = 11
"""Part of the seed of pools, so that nothing else draws the same numbers."""


class PoolConfig(SelectConfig, BudgetConfig):
    """A budget, and whether it is spent on prompts that are chosen with their counts.

    ``pool`` null keeps the prompts that the trainer draws.
    """

    @model_validator(mode="after")
    def _pool_fits(self) -> PoolConfig:
        if self.rounds is not None:
            raise ValueError(
                f"rounds {self.rounds} looks at rewards before it asks for more, and the trainer draws "
                "a step's completions once; use dibs train, or PromptBudget in a loop of your own"
            )
        if self.pool is None:
            for key in SelectConfig.model_fields:
                if key != "pool" and key in self.model_fields_set:
                    raise ValueError(f"{key} is given without a pool; set pool, or leave it out")
            return self
        if self.pool == "all" and self.mode == "pilot":
            raise ValueError(
                "pool all would draw pilots of every training prompt in mode pilot; give the pool a "
                "number, or set mode to online"
            )
        try:
            check_choice(self, self.group_size, self.uniform_share)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def group_size(self) -> int:
        """Completions that a prompt of a pool gets at a time."""
        return least_group(self) if self.group is None else self.group


@dataclass(frozen=True)
class Pool:
    """The prompts of a training set by name, among which steps choose.

    ``names``: of all of them, as ``PromptBudget`` knows them. ``seed``: of everything random.

    Raises InputError for a pool larger than the data set, and for ``completions`` of a step that groups
    cannot make up.
    """

    config: PoolConfig
    names: Sequence[str]
    completions: int
    seed: int

    def __post_init__(self) -> None:
        size, group = self.config.pool, self.config.group_size
        if isinstance(size, int) and size > len(self.names):
            raise InputError(
                f"pool {size} is larger than the training set of {len(self.names)} prompts; lower it, "
                "or set it to all"
            )
        if self.completions % group:
            raise InputError(
                f"the {self.completions} completions of a step are not a multiple of group {group}; "
                "change one"
            )

    def candidates(self, step: int) -> np.ndarray:
        """Positions of the prompts of the step's pool in the data set, ascending, int64 [N].

        The same for the same step, in every process and after a resume.
        """
        everything = np.arange(len(self.names))
        if self.config.pool == "all":
            return everything
        rng = np.random.default_rng([self.seed, step, _DRAWING])
        return np.sort(rng.choice(everything, self.config.pool, replace=False))

    def named(self, positions: np.ndarray) -> list[str]:
        """Names of the prompts at some positions."""
        return [self.names[i] for i in positions.tolist()]

    def choose(self, budget: PromptBudget, candidates: np.ndarray) -> Chosen:
        """The prompts of the next step, their counts and shares; positions are in the data set.

        ``candidates``: of this step. In mode ``pilot`` their pilots must have been taken.
        """
        chosen = budget.choose(
            self.named(candidates),
            self.completions,
            group=self.config.group_size,
            uniform_share=self.config.uniform_share,
            correct=self.config.correct,
            seed=self.seed,
        )
        return chosen._replace(positions=candidates[chosen.positions])
