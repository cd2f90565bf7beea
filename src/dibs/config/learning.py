"""How the policy learns from completions: gradient, estimates, budget and updates."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from dibs.config.section import Section

Objective = Literal["log_likelihood", "expected_reward", "grpo"]
Baseline = Literal["none", "mean", "leave_one_out", "history", "shrinkage"]
Estimator = Literal["prompt_mean", "self_normalized", "order_k", "flat"]
GradNormMethod = Literal["exact", "exact_slow", "last_layer"]
GradNormParameters = Literal["all", "embed_tokens", "lm_head", "lora"]


DEFAULT_ORDER = 4
"""Half of the default ``num_generations``, so that cross_fit can have it too."""


class GradientChoices(Protocol):
    """What names a gradient in a configuration."""

    @property
    def objective(self) -> str: ...

    @property
    def baseline(self) -> str: ...

    @property
    def estimator(self) -> str: ...

    @property
    def order(self) -> int: ...

    @property
    def deviation(self) -> str: ...


def divides_by_statistics(chosen: GradientChoices) -> bool:
    """Whether advantages or, as in Lemma 1, weights depend on what was known of a prompt before."""
    divides = (chosen.objective, chosen.estimator) == ("log_likelihood", "prompt_mean")
    return divides or chosen.deviation == "expected" or chosen.baseline in ("history", "shrinkage")


def least_group(chosen: GradientChoices) -> int:
    """The fewest completions of a prompt from which the gradient learns something."""
    if chosen.estimator == "order_k":
        return chosen.order
    divides = chosen.objective == "log_likelihood" and chosen.estimator == "self_normalized"
    return 2 if divides or chosen.baseline in ("mean", "leave_one_out") else 1


def why_groups(chosen: GradientChoices) -> str:
    """Why a prompt needs several completions at a time, and what does not need them."""
    if chosen.estimator == "order_k":
        return f"order {chosen.order} takes groups of so many"
    if chosen.baseline != "none":
        return (
            f"baseline {chosen.baseline} is that of a group; baselines none, history and shrinkage "
            "take single completions"
        )
    return (
        f"estimator {chosen.estimator} divides by a group's own accept rate; prompt_mean takes single "
        "completions"
    )


def check_variant(chosen: GradientChoices) -> None:
    """ValueError for choices that have no use for each other, or that contradict each other."""
    objective, estimator = chosen.objective, chosen.estimator
    order, deviation, baseline = chosen.order, chosen.deviation, chosen.baseline
    if estimator == "order_k" and objective != "log_likelihood":
        raise ValueError(
            f"estimator order_k is for objective log_likelihood, not {objective}; choose another "
            "estimator"
        )
    if estimator != "order_k" and order != DEFAULT_ORDER:
        raise ValueError(f"order {order} needs estimator: order_k")
    if deviation == "expected" and objective != "grpo":
        raise ValueError(f"deviation expected is for objective grpo, not {objective}")
    if baseline not in ("history", "shrinkage"):
        return
    if objective == "grpo" and deviation != "expected":
        raise ValueError(
            f"baseline {baseline} is known before a group is drawn, but deviation {deviation} is the "
            "group's own; set deviation to expected"
        )
    if objective == "log_likelihood" and estimator != "prompt_mean":
        raise ValueError(
            f"baseline {baseline} with objective log_likelihood needs estimator prompt_mean, whose "
            f"accept rate is known as well; {estimator} divides by the group's own"
        )


def _objective_of_name(values: dict[str, Any]) -> Objective:
    return "grpo" if values.get("name") == "grpo" else "log_likelihood"


def _baseline_of_objective(values: dict[str, Any]) -> Baseline:
    return "mean" if values.get("objective") == "grpo" else "none"


class AlgorithmConfig(Section):
    """The loss, the target gradient and its estimator."""

    name: Literal["raft", "raft++", "grpo"] = Field(
        "raft++",
        description="Chooses the loss. raft fits accepted completions; raft++ adds the clipped "
        "importance ratio; grpo weighs completions by their advantage. The name also "
        "decides the objective and baseline that are not given.",
    )
    objective: Objective = Field(
        default_factory=_objective_of_name,
        description="Target gradient: log_likelihood raises the log of the accept rate, "
        "expected_reward the mean reward, grpo the reward normalized within a group. "
        "null lets name decide: grpo for grpo, log_likelihood for the others.",
    )
    baseline: Baseline = Field(
        default_factory=_baseline_of_objective,
        description="Value subtracted from rewards: nothing; the group's mean; the mean of the "
        "group's other completions; what earlier steps or pilots let expect (history), which "
        "also serves groups of one; or a mean of the last two, weighed by how much each knows "
        "(shrinkage). null lets objective decide: mean for grpo, none for the others.",
    )
    estimator: Estimator = Field(
        "self_normalized",
        description="Weight of each completion. self_normalized divides by a prompt's accepted "
        "completions (1/|D_i|). prompt_mean divides by its count and accept rate "
        "(1/(n_i p_i), Lemma 1). order_k averages self_normalized over all subsets of "
        "algorithm.order completions, so that counts do not change the objective. flat "
        "weighs every completion alike, as GVM's released code does.",
    )
    order: int = Field(
        DEFAULT_ORDER,
        ge=1,
        description="For estimator order_k: terms of the log-likelihood that are kept (k). Every "
        "prompt gets at least so many completions, in cross_fit twice as many. Raise it "
        "to learn more from prompts that are rarely solved; lower it to leave more of "
        "the budget to allocate.",
    )
    deviation: Literal["population", "expected"] = Field(
        "population",
        description="Standard deviation that objective grpo divides by. population is that of the "
        "group, so that counts change the objective. expected is what the completions "
        "that decided the counts let expect; counts then change nothing, and a reward's "
        "baseline is the mean of the others.",
    )
    prompt_weight: Literal["none", "curverl"] = Field(
        "none",
        description="How much a prompt counts in the objective. none counts all alike. curverl lets "
        "those count for more that are harder than most of the others, or like many of them, by the "
        "accept rates of earlier steps or pilots.",
    )
    length_normalization: Literal["none", "constant", "sequence"] = Field(
        "none",
        description="Divides a completion's gradient by nothing, by "
        "sampling.max_completion_length (constant), or by its own length (sequence). "
        "sequence changes the objective. Gradient norms, and so the counts, are of the "
        "divided gradient.",
    )
    epsilon: float = Field(
        0.2,
        ge=0,
        description="Clips the importance ratio below 1 - epsilon. Lower it to keep updates "
        "closer to the policy that sampled.",
    )
    epsilon_high: float | None = Field(
        0.28,
        ge=0,
        description="Clips the importance ratio above 1 + epsilon_high. null uses epsilon on both "
        "sides.",
    )
    beta: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL divergence to the frozen starting policy. Raise it to keep "
        "the policy close; 0 saves the memory of that policy.",
    )
    importance_sampling: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = Field(
        "none",
        description="Corrects for a sampler whose probabilities differ from the learner's, as "
        "another engine's or bfloat16's do. It weighs each token, or the whole "
        "completion, by the ratio of the two. truncate limits ratios to "
        "importance_sampling_cap; mask leaves out what lies beyond it.",
    )
    importance_sampling_cap: float = Field(
        2.0,
        gt=1,
        description="Largest ratio of importance_sampling. The mask choices also leave out ratios "
        "below 1 / importance_sampling_cap.",
    )

    @model_validator(mode="after")
    def _variant_has_a_use(self) -> AlgorithmConfig:
        check_variant(self)
        return self

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        decided = ("objective", "baseline")
        return {
            key: value for key, value in values.items() if value is not None or key not in decided
        }


class EstimateConfig(Section):
    """How prompts are measured before the budget is spent."""

    mode: Literal["pilot", "cross_fit", "online", "none"] = Field(
        "pilot",
        description="How prompts are measured. pilot draws fresh completions, measures each "
        "prompt with them and throws them away. cross_fit trains on all of them: each "
        "half decides the counts of the part of the gradient that the other half "
        "enters. online "
        "measures with the completions of earlier steps and draws no pilots. none "
        "measures nothing; the counts must then be uniform. Where the statistics would decide nothing, "
        "as with allocator uniform, the default is none.",
    )
    half_life: float = Field(
        20.0,
        gt=0,
        description="For mode online: a completion counts half after this many steps. Lower it "
        "where the policy changes fast.",
    )
    num_pilots: int = Field(
        8,
        ge=1,
        description="Pilot completions for each prompt (N'). Raise it for better estimates at a "
        "higher cost. Under cross_fit they are part of num_generations.",
    )
    interval: int = Field(
        1,
        ge=1,
        description="For mode pilot: steps between pilot phases. Each phase measures all prompts "
        "up to the next one. Raise it to pause training less often.",
    )
    grad_norm: Literal[GradNormMethod, "update", "none"] = Field(
        "exact",
        description="How the gradient norm of a completion is computed. exact takes one forward "
        "and backward pass a batch; exact_slow takes one a completion and works for "
        "any model; last_layer uses the output layer only and needs no backward pass; "
        "update, for mode online, takes exact norms of some completions from the backward passes of the "
        "updates, which costs least; "
        "none takes 1 for every completion, whatever its length.",
    )
    grad_norm_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="For grad_norm update: the share of the completions with an advantage that are "
        "measured, at random. null measures as many as add about a tenth to the time of a step, which "
        "are few where prompts are long, since a measured completion cannot share its prompt. Raise it "
        "where a step has few prompts and counts are to be as good as they can be.",
    )
    grad_norm_parameters: GradNormParameters = Field(
        "all",
        description="For grad_norm exact and exact_slow: the trainable parameters that the norm "
        "covers. Fewer parameters make it cheaper.",
    )
    grad_norm_sketch: int | None = Field(
        None,
        ge=1,
        description="For grad_norm last_layer: projects the vocabulary to this many entries, "
        "which saves memory with a large one. null projects nothing.",
    )

    @model_validator(mode="after")
    def _options_have_a_use(self) -> EstimateConfig:
        if self.grad_norm_parameters != "all" and not self.grad_norm.startswith("exact"):
            raise ValueError("grad_norm_parameters needs grad_norm: exact or exact_slow")
        if self.grad_norm_sketch is not None and self.grad_norm != "last_layer":
            raise ValueError("grad_norm_sketch needs grad_norm: last_layer")
        if self.grad_norm_share is not None and self.grad_norm != "update":
            raise ValueError("grad_norm_share needs grad_norm: update")
        if self.grad_norm == "update" and self.mode != "online":
            raise ValueError(
                f"grad_norm update needs mode: online, since mode {self.mode} needs norms before the "
                "update; choose exact"
            )
        if self.interval > 1 and self.mode != "pilot":
            raise ValueError(f"interval {self.interval} needs mode: pilot")
        if self.mode == "cross_fit" and self.num_pilots % 2:
            raise ValueError(
                f"mode cross_fit halves the pilots; num_pilots {self.num_pilots} is odd"
            )
        return self


class UpdateConfig(Section):
    """How the optimizer updates the policy."""

    learning_rate: float = Field(
        1e-6, gt=0, description="Learning rate of AdamW at its highest, after warm-up."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="How the learning rate goes on after warm-up: constant keeps it; linear and "
        "cosine lower it to 0 by the last update.",
    )
    warmup_updates: int = Field(
        0,
        ge=0,
        description="Updates over which the learning rate rises from 0, in a straight line.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Weight decay of AdamW: shrinks the weights by this share times the learning "
        "rate in each update.",
    )
    max_grad_norm: float | None = Field(
        1.0,
        gt=0,
        description="Scales a gradient with a larger norm down to this one. null never clips.",
    )
    max_skipped: int = Field(
        3,
        ge=0,
        description="Updates in a row that may be skipped because their loss or gradient is NaN "
        "or infinite. One more stops the run.",
    )
    updates_per_step: int = Field(
        4,
        ge=1,
        description="Optimizer updates in a step, whatever the counts are. 1 makes every update "
        "on-policy.",
    )
    micro_batch_tokens: int = Field(
        16384,
        ge=1,
        description="Tokens in one forward and backward pass. Lower it if memory runs out; "
        "results stay the same but for rounding.",
    )


class TrainConfig(Section):
    """How long training goes on, and how many prompts a step has."""

    steps: int = Field(
        100,
        ge=1,
        description="Training steps: how often prompts are drawn, sampled and learned from.",
    )
    prompts_per_step: int = Field(64, ge=1, description="Prompts drawn in each step (m).")
    shape: Literal["given", "auto"] = Field(
        "given",
        description="auto measures, before the first step, which shape of a step is least noisy at "
        "the cost of the one given (as dibs variance --shapes does), and trains with that: "
        "prompts_per_step, allocate.num_generations, allocate.allocator and select.pool are then "
        "chosen. It stays with the shape given where nothing is surely better.",
    )
