"""Whether the training prompts grow while a policy learns, and when."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from dibs.config.section import Section


class GrowConfig(Section):
    """A curriculum: a run begins with the prompts of level 1, and adds one level after another."""

    levels: int | tuple[dict[str, Any], ...] = Field(
        1,
        description="For embedded tasks and reasoning-gym: how many levels of prompts there are; 1 adds "
        "none. A list gives the options of each level, which are laid over data.options: "
        "[{chain_sum: {max_terms: 2}}, {chain_sum: {max_terms: 4}}].",
    )
    harder: bool = Field(
        True,
        description="For a number of levels: whether each is harder than the one before, by the "
        "package's own curriculum or, in an embedded task, by the number of steps. false adds prompts "
        "of the same kind.",
    )
    size: int | None = Field(
        None,
        ge=1,
        description="Prompts that a level adds, or all that it has if they are fewer. null takes "
        "data.size, which is always the size of level 1.",
    )
    when: Literal["training", "held_out", "steps"] = Field(
        "training",
        description="What adds the next level: the accept rate of the newest level's prompts in "
        "training or in evaluations, once it reaches accept_rate; or steps alone, every interval of "
        "them.",
    )
    accept_rate: float = Field(
        0.7,
        gt=0,
        le=1,
        description="The accept rate that adds the next level. Lower it if a level is never mastered.",
    )
    interval: int = Field(
        10,
        ge=1,
        description="Fewest steps that a level is the newest. In training, its accept rate is the mean "
        "over so many steps; raise it for a steadier one.",
    )

    @field_validator("levels", mode="before")
    @classmethod
    def _is_number_or_list(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            if value and all(isinstance(level, dict) for level in value):
                return tuple(value)
        elif str(value).isdecimal() and int(str(value)) > 0:
            return int(str(value))
        raise ValueError(
            f"must be a number above 0, or a list with the options of each level (got {value!r})"
        )

    @property
    def count(self) -> int:
        """How many levels there are."""
        return self.levels if isinstance(self.levels, int) else len(self.levels)


def check_growth(grow: GrowConfig, train: str, evaluated: str | None, interval: int) -> None:
    """ValueError for held-out prompts that cannot decide when prompts are added.

    Args:
        evaluated: ``data.eval``. interval: ``evaluate.interval``.
    """
    if grow.count == 1 or grow.when != "held_out":
        return
    if evaluated not in (None, train):
        raise ValueError(
            f"data.grow.when held_out needs held-out prompts of every level, and data.eval {evaluated} "
            "has no levels; leave data.eval out, or set data.grow.when to training"
        )
    if interval == 0:
        raise ValueError(
            "data.grow.when held_out needs evaluations during training; set evaluate.interval above 0"
        )
