"""The whole configuration, and whether its sections agree."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dibs.config.allocating import AllocateConfig
from dibs.config.growing import check_growth
from dibs.config.learning import (
    AlgorithmConfig,
    EstimateConfig,
    TrainConfig,
    UpdateConfig,
    divides_by_statistics,
    least_group,
    why_groups,
)
from dibs.config.published_rules import (
    check_annealing,
    check_keep,
    check_pool_of_rounds,
    check_prompt_weight,
    check_rounds,
)
from dibs.config.rollouts import DataConfig, PolicyConfig, SamplingConfig
from dibs.config.section import Section
from dibs.config.selecting import SelectConfig
from dibs.config.verifying import VerifyConfig
from dibs.config.watching import (
    CheckpointConfig,
    EvaluateConfig,
    TrackingConfig,
    VarianceConfig,
)

_GVM_NEEDS = (
    "allocate.allocator gvm needs pilots of every prompt; set estimate.mode to pilot, or choose "
    "allocator min_variance"
)


class Config(Section):
    """The run as a whole."""

    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Seeds everything random: the order of the data, sampling and evaluation. "
        "Change it to repeat a run independently.",
    )
    output_dir: Path = Field(
        Path("runs/default"),
        description="Folder of the run. It must not hold another run, unless overwrite or resume "
        "is set.",
    )
    overwrite: bool = Field(
        False, description="Deletes the run that output_dir holds, and starts again."
    )
    resume: Literal["no", "yes", "auto"] = Field(
        "no",
        description="yes continues the run in output_dir from its newest whole checkpoint; "
        "--resume alone means yes. auto continues if there is such a checkpoint, and "
        "starts a run otherwise. no starts a run.",
    )
    allow_changes: bool = Field(
        False,
        description="Lets a run resume although its configuration has changed. The curves then "
        "mix two configurations.",
    )
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    verify: VerifyConfig = Field(default_factory=VerifyConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    estimate: EstimateConfig = Field(default_factory=EstimateConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    allocate: AllocateConfig = Field(default_factory=AllocateConfig)
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    variance: VarianceConfig = Field(default_factory=VarianceConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @field_validator("resume", mode="before")
    @classmethod
    def _read_switch(cls, value: object) -> object:
        """YAML reads an unquoted yes or no as a switch."""
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _pilots_decide_something(self) -> Config:
        """Uniform counts draw no pilots that decide nothing, unless they are asked for."""
        asked = self.estimate.model_fields_set & {"mode", "num_pilots", "interval"}
        idle = not (self.uses_statistics or asked) and self.select.pool is None
        if idle and self.allocate.budget_unit == "completions":
            estimate = self.estimate.model_copy(update={"mode": "none"})
            object.__setattr__(self, "estimate", estimate)
        return self

    @property
    def budget(self) -> int | None:
        """Training completions a step; None where the budget is one of tokens."""
        if self.allocate.budget_unit == "tokens":
            return None
        return int(self.step_budget(self.train.prompts_per_step))

    def step_budget(self, one_each: float) -> float:
        """The budget of a step, in the unit of ``allocate.budget_unit``.

        ``one_each``: cost of one completion of every prompt of the step, in that unit.
        """
        given = self.allocate.budget
        return self.allocate.num_generations * one_each if given is None else given

    @property
    def chooses(self) -> bool:
        """Whether prompts are chosen together with their counts, by expected counts over a pool."""
        return self.select.pool is not None and self.allocate.rounds is None

    @property
    def fixed_batch(self) -> bool:
        """Whether all prompts of a step get the counts that an allocator decides."""
        return self.select.pool is None and self.allocate.rounds is None

    @property
    def group(self) -> int:
        """Completions that a prompt of a pool gets at a time."""
        return self._least_group if self.select.group is None else self.select.group

    @property
    def _least_group(self) -> int:
        """The fewest completions from which the target learns something.

        In mode cross_fit the pilots of a prompt, which all prompts of the pool have, are beside them.
        """
        return 1 if self.estimate.mode == "cross_fit" else least_group(self.algorithm)

    @property
    def lower(self) -> int:
        """Fewest completions a prompt."""
        return max(self._lower_bounds.values())

    @property
    def _lower_bounds(self) -> dict[str, int]:
        """The same by reason: cross_fit trains on all pilots, and order_k needs groups of its order."""
        crossed, ordered = self.estimate.mode == "cross_fit", self.algorithm.estimator == "order_k"
        parts = 2 if crossed else 1
        order = "algorithm.order" + (" x 2 parts of cross_fit =" if crossed else "")
        return {
            "allocate.lower": self.allocate.lower,
            "estimate.num_pilots": self.estimate.num_pilots if crossed else 0,
            order: parts * self.algorithm.order if ordered else 0,
        }

    @property
    def uses_statistics(self) -> bool:
        """Whether statistics decide the counts or, as in Lemma 1, the weights."""
        return self.weighs_by_statistics or self.allocate.allocator != "uniform"

    @property
    def weighs_by_statistics(self) -> bool:
        """Whether statistics decide more than counts: advantages, or weights."""
        return self.algorithm.prompt_weight != "none" or divides_by_statistics(self.algorithm)

    def measures_at(self, step: int) -> bool:
        """Whether a step measures what its counts gain over uniform ones; never if they are."""
        interval = self.variance.interval
        counts_differ = self.fixed_batch and self.allocate.allocator != "uniform"
        return (
            interval > 0 and step % interval == 0 and counts_differ and self.allocate.keep is None
        )

    def evaluates_at(self, step: int) -> bool:
        """Whether the held-out prompts are scored after a step; always after the last."""
        interval = self.evaluate.interval
        return step == self.train.steps or (interval > 0 and step % interval == 0)

    @model_validator(mode="after")
    def _pool_agrees(self) -> Config:
        """ValueError for a pool that the other sections cannot draw from."""
        pool, own = self.select.pool, self.algorithm
        auto = self.train.shape == "auto"
        if auto and (self.allocate.rounds is not None or self.allocate.keep is not None):
            raise ValueError(
                "train.shape auto measures counts that an allocator decides; leave allocate.rounds and "
                "allocate.keep out, or give the shape"
            )
        if self.allocate.rounds is not None:
            check_rounds(self.allocate, self.estimate.mode, own.estimator, "allocate.")
            check_pool_of_rounds(self.allocate, self.select)
            self._check_pool_size()
            return self
        if pool is None:
            if self.select.group is not None:
                raise ValueError(f"select.group {self.select.group} needs a select.pool")
            if not self.select.correct:
                raise ValueError("select.correct false needs a select.pool")
            return self
        self._check_pool_size()
        if own.estimator == "flat":
            raise ValueError(
                "algorithm.estimator flat weighs all completions alike, which would bias a choice from "
                "select.pool; choose another"
            )
        if self.allocate.lower or self.allocate.upper is not None:
            raise ValueError(
                "allocate.lower and allocate.upper bound counts of a fixed batch; with a select.pool "
                "leave them out (select.uniform_share bounds expected counts)"
            )
        if self.group < self._least_group:
            raise ValueError(
                f"select.group {self.group} is below {self._least_group}: algorithm."
                + why_groups(self.algorithm)
            )
        if self.estimate.mode in ("pilot", "cross_fit"):
            self._check_pilots_of_pool()
        if self.budget is not None and (self._for_groups % self.group or self.budget == 0):
            raise ValueError(
                f"the budget of {self.budget} completions cannot be spent in groups of select.group "
                f"{self.group}; change allocate.num_generations or the group"
            )
        return self

    def _check_pool_size(self) -> None:
        pool, wanted = self.select.pool, self.train.prompts_per_step
        if isinstance(pool, int) and pool < wanted:
            raise ValueError(
                f"select.pool {pool} is smaller than train.prompts_per_step {wanted}; raise it, or "
                "leave it out"
            )

    @property
    def _for_groups(self) -> int:
        """Completions of a part of the gradient that are drawn in groups."""
        assert self.budget is not None
        if self.estimate.mode != "cross_fit":
            return self.budget
        assert isinstance(self.select.pool, int)
        return self.budget // 2 - self.select.pool * (self.estimate.num_pilots // 2)

    def _check_pilots_of_pool(self) -> None:
        pool, mode, pilots = self.select.pool, self.estimate.mode, self.estimate.num_pilots
        if not isinstance(pool, int):
            raise ValueError(
                f"select.pool all would draw pilots of every training prompt in estimate.mode {mode}; "
                "give the pool a number, or set estimate.mode to online"
            )
        if mode == "pilot" or self.budget is None:
            return
        if pool * pilots >= self.budget:
            raise ValueError(
                f"estimate.num_pilots {pilots} x select.pool {pool} = {pool * pilots} leaves nothing of "
                f"the budget of {self.budget} completions; lower one of them"
            )
        if self.budget % 2:
            raise ValueError(f"the two parts of cross_fit cannot share a budget of {self.budget}")
        if self.algorithm.estimator == "order_k" and pilots // 2 < self.algorithm.order:
            raise ValueError(
                f"half of estimate.num_pilots {pilots} is below algorithm.order "
                f"{self.algorithm.order}, which every group of estimator order_k needs; raise it"
            )

    def _check_prompt_cost(self) -> None:
        cost = f"allocate.prompt_cost {self.allocate.prompt_cost:g}"
        if self.allocate.budget_unit != "tokens":
            raise ValueError(f"{cost} needs allocate.budget_unit tokens")
        if self.select.pool is None:
            raise ValueError(
                f"{cost} has no use in a fixed batch, whose prompts are all read; set select.pool"
            )
        if self.estimate.mode in ("pilot", "cross_fit"):
            raise ValueError(
                f"{cost} has no use in estimate.mode {self.estimate.mode}, whose pilots read every "
                "prompt of the pool; set it to online, or leave prompt_cost out"
            )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Config:
        """ValueError for a budget that the bounds of a fixed batch do not allow."""
        if not self.fixed_batch:
            return self
        m = self.train.prompts_per_step
        grouped = self.algorithm.baseline in ("mean", "leave_one_out")
        reason = max(self._lower_bounds, key=self._lower_bounds.__getitem__)
        if self.budget is not None and self.budget < m * self.lower:
            raise ValueError(
                f"{reason} {self.lower} x {m} prompts = {m * self.lower} exceeds the budget of "
                f"{self.budget}; raise the budget or lower {reason}"
            )
        if self.allocate.budget is None and self.allocate.num_generations < self.lower:
            raise ValueError(
                f"{reason} {self.lower} exceeds allocate.num_generations "
                f"{self.allocate.num_generations}; raise it or lower {reason}"
            )
        if self.allocate.upper is not None and self.allocate.upper < self.lower:
            raise ValueError(f"allocate.upper {self.allocate.upper} is below {reason} {self.lower}")
        if (
            self.budget is not None
            and self.allocate.upper is not None
            and self.budget > m * self.allocate.upper
        ):
            raise ValueError(
                f"the budget of {self.budget} exceeds allocate.upper {self.allocate.upper} x {m} "
                f"prompts = {m * self.allocate.upper}; lower the budget or raise allocate.upper"
            )
        if self.estimate.mode == "cross_fit" and self.estimate.num_pilots < 4 and grouped:
            raise ValueError(
                f"estimate.num_pilots {self.estimate.num_pilots} leaves halves of one, and every group "
                f"gets two under algorithm.baseline {self.algorithm.baseline}; set it to 4 or more"
            )
        if self.estimate.mode == "cross_fit" and self.budget == m * self.estimate.num_pilots:
            raise ValueError(
                f"estimate.mode cross_fit trains on its pilots, and {self.estimate.num_pilots} a prompt "
                f"spend the whole budget of {self.budget}; lower estimate.num_pilots to half of "
                "allocate.num_generations, say"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        check_keep(self.allocate, least_group(self.algorithm), "allocate.")
        check_growth(self.data.grow, self.data.train, self.data.eval, self.evaluate.interval)
        if self.sampling.anneal_from is not None:
            check_annealing(self.sampling, self.algorithm.importance_sampling)
        if self.algorithm.prompt_weight != "none":
            check_prompt_weight(self.algorithm, self.allocate, self.estimate.mode)
        if self.estimate.mode == "none" and self.allocate.budget_unit == "tokens":
            raise ValueError(
                "allocate.budget_unit tokens needs completion lengths; set estimate.mode to pilot, "
                "cross_fit or online"
            )
        if self.allocate.prompt_cost > 0:
            self._check_prompt_cost()
        if self.estimate.mode == "none" and self.uses_statistics:
            known = "pilot, cross_fit or online"
            if self.algorithm.deviation == "expected":
                what = (
                    f"algorithm.deviation expected needs accept rates; set estimate.mode to {known}"
                )
            elif self.algorithm.baseline in ("history", "shrinkage"):
                what = (
                    f"algorithm.baseline {self.algorithm.baseline} needs accept rates; set "
                    f"estimate.mode to {known}"
                )
            elif self.allocate.allocator == "gvm":
                what = _GVM_NEEDS
            elif self.allocate.allocator != "uniform":
                what = (
                    f"allocate.allocator {self.allocate.allocator} needs accept rates; set "
                    "estimate.mode to pilot or online, or choose allocator uniform"
                )
            else:
                what = (
                    f"algorithm.estimator {self.algorithm.estimator} needs accept rates; set "
                    "estimate.mode to pilot or online, or choose another estimator"
                )
            raise ValueError(what)
        if self.estimate.mode == "online" and self.allocate.allocator == "gvm":
            raise ValueError(_GVM_NEEDS)
        if self.estimate.grad_norm == "update":
            self._check_norms_of_updates()
        return self

    def _check_norms_of_updates(self) -> None:
        """ValueError for a loss that weighs the tokens of a completion by themselves."""
        if self.algorithm.beta > 0:
            what = f"beta {self.algorithm.beta} adds a penalty to"
        elif self.algorithm.importance_sampling.startswith("token"):
            what = (
                f"importance_sampling {self.algorithm.importance_sampling} weighs single tokens in"
            )
        elif self.allocate.rounds is not None or self.allocate.keep is not None:
            raise ValueError(
                "estimate.grad_norm update measures what is trained on, and allocate.rounds and "
                "allocate.keep leave completions out; set estimate.grad_norm to exact"
            )
        else:
            return
        raise ValueError(
            "estimate.grad_norm update measures plain log-probabilities, and algorithm."
            f"{what} the loss; set estimate.grad_norm to exact"
        )
