"""Which prompts a step draws, where that is decided together with their counts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from dibs.config.section import Section


class SelectConfig(Section):
    """The pool that prompts are chosen from."""

    pool: PositiveInt | Literal["all"] | None = Field(
        None,
        description="Prompts among which the budget of a step is spent. null draws "
        "a batch of prompts, and all of them get completions. A number draws so many, "
        "and all takes the whole training set; which of them get completions, and how many, is then "
        "decided together, at random, with weights that leave the gradient unbiased.",
    )
    group: int | None = Field(
        None,
        ge=1,
        description="With a pool: completions that a prompt gets at a time, if it gets any. Fewer "
        "completions of each leave room for more prompts. null takes the fewest that the "
        "target needs: 2 with a baseline of the group, the order with order_k, 2 with "
        "self_normalized, else 1.",
    )
    uniform_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="With a pool: every prompt is expected to get at least this share of a uniform "
        "count, so that no completion weighs more than 1 / uniform_share times a uniform "
        "one. Raise it where statistics are poor; 1 draws all prompts alike.",
    )
    correct: bool = Field(
        True,
        description="With a pool: a completion weighs 1 over how many its prompt was expected to get, "
        "which leaves the gradient that of the pool. false weighs all completions of a step alike, as "
        "most published rules do; prompts that are drawn often then count for more.",
    )
