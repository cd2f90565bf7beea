"""How the budget of completions is spent."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dibs.config.section import Section


class AllocateConfig(Section):
    """How the budget is spent."""

    allocator: str = Field(
        "min_variance",
        description="Decides how many completions each prompt gets: min_variance, uniform, a rule of "
        "docs/rules.md (gvm, spo, vip, ...), or your own function as module:function, which weighs "
        "the prompts of a select.pool.",
    )
    num_generations: int = Field(
        8,
        ge=1,
        description="Completions that a prompt gets on average. It sets the budget where budget "
        "is null.",
    )
    budget: int | None = Field(
        None,
        ge=0,
        description="Completions (or tokens, see budget_unit) to spend in each step. null lets "
        "num_generations decide: the budget is what that many completions for each of "
        "train.prompts_per_step prompts cost.",
    )
    budget_unit: Literal["completions", "tokens"] = Field(
        "completions",
        description="Unit of the budget. With tokens the budget limits the expected number of "
        "tokens, and prompts with short completions get more of them.",
    )
    prompt_cost: float = Field(
        0.0,
        ge=0,
        description="With budget_unit tokens and a select.pool: what reading a token of a prompt "
        "costs, in tokens written. A prompt is read once for each group of completions that it gets "
        "in a step. 0 leaves reading out of the budget. Raise it where prompts are long: few of "
        "them are then drawn, with more completions each (select.group).",
    )
    lower: int = Field(
        0,
        ge=0,
        description="Fewest completions that a prompt gets. At 0, gvm gives none to prompts that "
        "seem hopeless.",
    )
    upper: int | None = Field(
        None, ge=0, description="Most completions that a prompt gets. null sets no limit."
    )
    accept_rate_penalty: float = Field(
        1e-3,
        ge=0,
        description="Alpha of GVM, for objective log_likelihood: raise it to give fewer "
        "completions to prompts that are hardly ever solved.",
    )
    accept_rate_power: float = Field(
        2.0,
        ge=1,
        description="Beta of GVM: the power of the accept rate in that penalty. The paper asks "
        "for at least 2.",
    )
    rounds: str | None = Field(
        None,
        description="Draws the completions of a step in rounds, by a rule that looks at the rewards of "
        "the rounds before: reinforce_ada_pos, reinforce_ada_balance, ar3po, speed, pilot_commit, dapo, "
        "or your own function as module:function. It decides all counts, so the allocator must be "
        "uniform, and the budget of a step is what it takes. The gradient is biased. null draws once.",
    )
    max_rounds: int = Field(
        4, ge=1, description="Most rounds of a step. Raise it to try longer for hard prompts."
    )
    keep: str | None = Field(
        None,
        description="Trains on some of a prompt's completions: pods keeps those whose rewards differ "
        "most, balanced half accepted and half rejected ones, module:function what your function "
        "chooses. null keeps all, or what the rule of allocate.rounds keeps.",
    )
    keep_count: int | None = Field(
        None,
        ge=1,
        description="Completions of a prompt that allocate.keep leaves. null leaves num_generations "
        "of what was drawn in rounds.",
    )
