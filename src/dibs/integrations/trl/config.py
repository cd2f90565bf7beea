"""Settings of ``DIBSGRPOTrainer``, and which of them contradict TRL's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from dibs.allocation.target import first_baseline, unbiased_baseline
from dibs.config import GradNormMethod, GradNormParameters
from dibs.integrations.pools import PoolConfig
from dibs.types import InputError


class DIBSConfig(PoolConfig):
    """Objective, allocator and estimate of a run; ``num_generations`` is that of ``GRPOConfig``.

    If ``objective`` is left out, ``GRPOConfig.scale_rewards`` decides it: ``grpo`` for "group" and
    ``expected_reward`` for "none". If it is set, it replaces ``scale_rewards``.

    If ``baseline`` is left out, it is ``leave_one_out`` for ``expected_reward`` unless counts are
    uniform. A mean baseline multiplies a prompt's gradient by (n - 1) / n, which would differ between
    prompts with different counts.
    """

    algorithm: Literal["grpo", "raft", "raft++"] = Field(
        "grpo",
        description="Chooses the loss. grpo keeps TRL's. raft fits accepted completions without "
        "an importance ratio; raft++ fits them with the ratio and its clip. Both "
        "decide what is not given: objective log_likelihood, baseline none and "
        "estimator self_normalized.",
    )
    deviation: Literal["population", "sample", "expected"] = Field(
        "sample",
        description="Standard deviation that objective grpo divides by. sample, as in TRL, is the "
        "group's with squares divided by n - 1, population the same with n; counts then "
        "change the objective. expected is what the completions that decided the counts "
        "let expect; counts then change nothing, and the baseline is the mean of the "
        "others.",
    )
    deviation_epsilon: float = Field(
        1e-4,
        ge=0,
        description="Added to that deviation, so that it is never 0. The default is TRL's.",
    )
    num_pilots: int = Field(
        8, ge=1, description="For mode pilot: pilot completions for each prompt."
    )
    grad_norm: Literal[GradNormMethod, "none"] = Field(
        "last_layer",
        description="How the gradient norm of a completion is computed, for allocators that look "
        "at it. last_layer needs a forward pass only; exact takes a forward and "
        "backward pass a batch; exact_slow takes one a completion; none takes 1 for "
        "every completion.",
    )
    grad_norm_parameters: GradNormParameters = Field(
        "all",
        description="For grad_norm exact and exact_slow: the trainable parameters that the norm "
        "covers.",
    )
    grad_norm_sketch: int | None = Field(
        None,
        ge=1,
        description="For grad_norm last_layer: projects the vocabulary to this many entries, "
        "which saves memory. None projects nothing.",
    )
    grad_norm_tokens: int = Field(
        16384,
        ge=1,
        description="Tokens of a batch in which norms are measured. Lower it if memory runs out.",
    )
    prompt_id_column: str | None = Field(
        None,
        description="Column that identifies a prompt. None takes a hash of all columns of its row.",
    )

    @field_validator("advantages")
    @classmethod
    def _advantages_are_trls(cls, value: str) -> str:
        if value == "given":
            raise ValueError(
                "advantages given: they are those of objective and baseline in TRL; leave it out"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("algorithm", "grpo") == "grpo":
            return values
        filled = {"objective": "log_likelihood", "estimator": "self_normalized", **values}
        return {"baseline": first_baseline(filled["objective"]), **filled}

    @model_validator(mode="after")
    def _options_have_a_use(self) -> DIBSConfig:
        if self.grad_norm_parameters != "all" and not self.grad_norm.startswith("exact"):
            raise ValueError("grad_norm_parameters needs grad_norm: exact or exact_slow")
        if self.grad_norm_sketch is not None and self.grad_norm != "last_layer":
            raise ValueError("grad_norm_sketch needs grad_norm: last_layer")
        if "num_pilots" in self.model_fields_set and self.mode != "pilot":
            raise ValueError(
                f"num_pilots is given and mode is {self.mode}, which draws none; set mode to pilot"
            )
        return self

    @property
    def _knows_its_budget(self) -> bool:
        return "num_generations" in self.model_fields_set

    @property
    def equal_weights(self) -> bool:
        """Whether all completions of a step have the same weight, as in stock TRL."""
        return self.allocator == "uniform" or self.estimator == "flat"

    @property
    def measures_norms(self) -> bool:
        """Whether gradient norms decide anything."""
        return self.grad_norm != "none" and self.allocator != "uniform" and self.mode != "none"

    def for_trainer(self, args: Any) -> DIBSConfig:
        """Return these settings, completed by TRL's ``GRPOConfig``.

        Raises InputError for settings of the two that contradict each other.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        wanted = given.setdefault("num_generations", args.num_generations)
        if wanted != args.num_generations:
            raise InputError(
                f"DIBSConfig.num_generations is {wanted} and GRPOConfig's is {args.num_generations}; "
                "leave out the first"
            )
        if "objective" not in given and args.scale_rewards == "none":
            given["objective"] = "expected_reward"
        unbiased = unbiased_baseline(given["objective"]) if "objective" in given else None
        if unbiased is not None and self.allocator != "uniform":
            given.setdefault("baseline", unbiased)
        try:
            complete = DIBSConfig(**given)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(f"DIBSConfig with this GRPOConfig: {reason}") from None
        for problem, refused in _refusals(complete, args):
            if refused:
                raise InputError(problem)
        return complete


def _refusals(dibs: DIBSConfig, args: Any) -> list[tuple[str, bool]]:
    """Return an error text for each combination that cannot work, and whether it is set."""
    ragged = f"with allocator {dibs.allocator} and estimator {dibs.estimator}"
    unequal = not dibs.equal_weights
    return [
        (
            "GRPOConfig.scale_rewards batch divides by what is no prompt's own; set group or none",
            args.scale_rewards == "batch",
        ),
        (
            "GRPOConfig.multi_objective_aggregation normalize_then_sum leaves a completion no reward of "
            "its own; set sum_then_normalize",
            args.multi_objective_aggregation != "sum_then_normalize",
        ),
        (
            f"GRPOConfig.loss_type bnpo divides by the tokens of a micro-batch, so that {ragged} a "
            "prompt's weight would be chance; set dapo, grpo or dr_grpo",
            args.loss_type == "bnpo" and unequal,
        ),
        (
            f"GRPOConfig.entropy_coef {args.entropy_coef} and use_adaptive_entropy take completions "
            f"alike, so that {ragged} the counts would change the objective; set 0 and False",
            (args.entropy_coef != 0 or args.use_adaptive_entropy) and unequal,
        ),
        (
            f"GRPOConfig.top_entropy_quantile {args.top_entropy_quantile} cuts at a quantile over "
            f"completions, so that {ragged} the counts would move it; set 1",
            args.top_entropy_quantile < 1 and unequal,
        ),
    ]
