"""What a trainer of any kind says of its target gradient and its budget; see :mod:`.prompt_budget`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from dibs.allocation import rules
from dibs.allocation.allocators import check_allocator
from dibs.allocation.rounds import named_rules
from dibs.allocation.target import Target
from dibs.config import (
    DEFAULT_ORDER,
    Baseline,
    Estimator,
    Objective,
    Section,
    check_variant,
    divides_by_statistics,
    least_group,
    why_groups,
)
from dibs.config.published_rules import check_keep, check_rounds
from dibs.types import InputError


class BudgetConfig(Section):
    """A trainer's target gradient and budget; the keys mean what they mean under ``dibs train``."""

    num_generations: int = Field(8, ge=1, description="Completions that a prompt gets on average.")
    mode: Literal["online", "pilot", "none"] = Field(
        "online",
        description="What decides the counts. online uses the completions of earlier steps; pilot "
        "uses fresh completions that are then thrown away; none uses nothing, and the "
        "counts must be uniform.",
    )
    allocator: str = Field(
        "min_variance",
        description="Decides how many completions each prompt gets: min_variance, uniform, a rule of "
        "docs/rules.md (spo, vip, ...; gvm for mode pilot), or your own function as module:function.",
    )
    objective: Objective = Field(
        "grpo",
        description="Target gradient of the trainer: log_likelihood, expected_reward or grpo.",
    )
    baseline: Baseline = Field(
        "mean",
        description="Value subtracted from rewards: nothing; the group's mean; the mean of the "
        "group's other completions; what earlier steps or pilots let expect (history), which "
        "also serves groups of one; or a mean of the last two, weighed by how much each knows "
        "(shrinkage).",
    )
    estimator: Estimator = Field(
        "prompt_mean",
        description="Weight of each completion. prompt_mean gives every prompt the same sum of "
        "weights, whatever its count; self_normalized, for log_likelihood, weighs every "
        "prompt with accepted completions alike; order_k, for log_likelihood too, "
        "averages that over all subsets of order completions, so that counts do not "
        "change the objective; flat weighs every completion alike.",
    )
    order: int = Field(
        DEFAULT_ORDER,
        ge=1,
        description="For estimator order_k: terms of the log-likelihood that are kept. Every prompt "
        "gets at least so many completions.",
    )
    deviation: Literal["population", "sample", "expected"] = Field(
        "population",
        description="Standard deviation that objective grpo divides by. population and sample are "
        "the group's, with squares divided by n or by n - 1; counts then change the "
        "objective. expected is what the completions that decided the counts let expect; "
        "counts then change nothing, and the baseline is the mean of the others.",
    )
    deviation_epsilon: float = Field(
        0.0, ge=0, description="Added to that deviation, so that it is never 0."
    )
    advantages: Literal["own", "given"] = Field(
        "own",
        description="Who computes the advantages. own are those of objective and baseline. given are "
        "the trainer's, as a critic's are: the gradient norms to report are then those of a "
        "completion's whole term, sum over tokens of advantage times grad log pi, and without norms "
        "the counts stay uniform. It needs objective expected_reward and baseline none, and weights() "
        "gives advantages of 1.",
    )
    lower: int = Field(0, ge=0, description="Fewest completions that a prompt gets.")
    upper: int | None = Field(
        None, ge=1, description="Most completions that a prompt gets. null sets no limit."
    )
    rounds: str | None = Field(
        None,
        description="Draws the completions of a step in rounds, by a rule that looks at the rewards of "
        "the rounds before (docs/rules.md), or by your own function as module:function. The gradient "
        "is biased. null draws once.",
    )
    max_rounds: int = Field(
        4, ge=1, description="Most rounds of a step. Raise it to try longer for hard prompts."
    )
    keep: str | None = Field(
        None,
        description="Trains on some of a prompt's completions, and gives the others weight 0: pods, "
        "balanced, or your own function as module:function. The gradient is biased. null keeps all, or "
        "what the rule of rounds keeps.",
    )
    keep_count: int | None = Field(
        None,
        ge=1,
        description="Completions of a prompt that keep leaves. null leaves num_generations of what was "
        "drawn in rounds.",
    )
    half_life: float = Field(
        20.0,
        gt=0,
        description="For mode online: a completion counts half after this many steps. Lower it "
        "where the policy changes fast.",
    )
    accept_threshold: float = Field(
        1.0, description="Lowest reward at which a completion is accepted."
    )
    accept_rate_penalty: float = Field(
        1e-3,
        ge=0,
        description="Alpha of GVM, for objective log_likelihood: raise it to give fewer "
        "completions to prompts that are hardly ever solved.",
    )
    accept_rate_power: float = Field(
        2.0, ge=1, description="Beta of GVM: the power of the accept rate in that penalty."
    )

    @model_validator(mode="after")
    def _fits(self) -> BudgetConfig:
        check_variant(self)
        try:
            _ = self.target
            check_allocator(self.allocator)
            rules.check_mode(self.allocator, self.mode, "mode")
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.advantages == "given" and self.allocator == "gvm":
            raise ValueError(
                "allocator gvm takes norms without advantages; for advantages given choose min_variance"
            )
        self._check_rounds()
        check_keep(self, least_group(self))
        if self.allocator == "gvm" and self.mode != "pilot":
            raise ValueError(
                "allocator gvm needs pilots of every prompt; set mode to pilot, or choose min_variance"
            )
        if self.mode == "none" and self.deviation == "expected":
            raise ValueError("deviation expected needs accept rates; set mode to online or pilot")
        if self.mode == "none" and self.target.knows_baseline:
            raise ValueError(
                f"baseline {self.baseline} needs accept rates; set mode to online or pilot"
            )
        if self.mode == "none" and self.uses_statistics:
            raise ValueError(
                f"allocator {self.allocator} with estimator {self.estimator} needs accept rates; set "
                "mode to online or pilot, or choose allocator uniform and another estimator"
            )
        most = self.upper or self.num_generations
        least = self.target.least_count
        if self._knows_its_budget and least > min(self.num_generations, most):
            raise ValueError(
                f"order {least} needs groups of {least} completions, but num_generations is "
                f"{self.num_generations} and upper {self.upper}; lower order"
            )
        if self._knows_its_budget and not self.lower <= self.num_generations <= most:
            raise ValueError(
                f"num_generations {self.num_generations} is not between lower {self.lower} and upper "
                f"{self.upper}"
            )
        return self

    def _check_rounds(self) -> None:
        """ValueError for rules that do not exist, and for settings that they have no use for."""
        try:
            named_rules(self)
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.rounds is not None:
            check_rounds(self, self.mode, self.estimator)

    @property
    def target(self) -> Target:
        """The target gradient."""
        return replace(Target.of(self), given=self.advantages == "given")

    @property
    def uses_statistics(self) -> bool:
        """Whether what is known of prompts decides counts or weights."""
        return self.allocator != "uniform" or divides_by_statistics(self)

    @property
    def _knows_its_budget(self) -> bool:
        """Whether ``num_generations`` is final; a trainer's own arguments may still decide it."""
        return True


def check_choice(options: BudgetConfig, group: int, uniform_share: float) -> None:
    """Raise InputError for options that no prompts can be chosen with; see `PromptBudget.choose`."""
    if options.rounds is not None:
        raise InputError(
            f"rounds {options.rounds} chooses as it draws; give the candidates to allocate"
        )
    rules.check_place(options.allocator, pool=True)
    if options.estimator == "flat" or options.lower or options.upper is not None:
        raise InputError(
            "estimator flat, lower and upper are for a fixed batch; to choose from a pool leave them out"
        )
    if group < least_group(options):
        raise InputError(f"group {group} is below {least_group(options)}: {why_groups(options)}")
    if not 0 < uniform_share <= 1:
        raise InputError(f"uniform_share {uniform_share:g} is not above 0 and at most 1")
