"""How the policy learns from completions: gradient, estimates, budget, updates, and what is recorded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dibs.config.section import Section

Objective = Literal["log_likelihood", "expected_reward", "grpo"]
Baseline = Literal["none", "mean", "leave_one_out"]
Estimator = Literal["prompt_mean", "self_normalized", "flat"]
GradNormMethod = Literal["exact", "exact_slow", "last_layer"]
GradNormParameters = Literal["all", "embed_tokens", "lm_head", "lora"]


def needs_statistics(allocator: str, objective: str, estimator: str) -> bool:
    """Whether accept rates decide the counts or, as in Lemma 1, the weights."""
    return allocator != "uniform" or (objective, estimator) == ("log_likelihood", "prompt_mean")


class AlgorithmConfig(Section):
    """The loss, the target gradient and its estimator."""

    name: Literal["raft", "raft++", "grpo"] = Field("raft++", description="loss and defaults")
    objective: Objective = Field(
        "log_likelihood", description="target gradient; grpo where name is grpo"
    )
    baseline: Baseline = Field(
        "none", description="subtracted from the rewards of a group; mean where objective is grpo"
    )
    estimator: Estimator = Field(
        "self_normalized",
        description="prompt_mean: 1/(n_i p_i), Lemma 1; self_normalized: 1/|D_i|; "
        "flat: every rollout alike, as GVM's released code",
    )
    length_normalization: Literal["none", "constant", "sequence"] = Field(
        "none",
        description="divide a completion's gradient by nothing, by max_completion_length, or by "
        "its own length (which changes the objective)",
    )
    epsilon: float = Field(0.2, ge=0, description="clip the ratio below 1 - epsilon")
    epsilon_high: float | None = Field(0.28, ge=0, description="and above 1 + this; null: epsilon")
    beta: float = Field(0.0, ge=0, description="weight of the KL to the frozen starting policy")
    importance_sampling: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = Field(
        "none",
        description="for a sampler whose probabilities differ from the learner's (another engine, "
        "bfloat16): weigh each token, or the whole completion, by the ratio of the two, cut off at "
        "importance_sampling_cap or left out beyond it",
    )
    importance_sampling_cap: float = Field(
        2.0, gt=1, description="largest ratio; masks also leave out ratios below 1 / this"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        if filled.get("name") == "grpo":
            filled.setdefault("objective", "grpo")
        if filled.get("objective") == "grpo":
            filled.setdefault("baseline", "mean")
        return filled


class EstimateConfig(Section):
    """How prompts are measured before the budget is spent."""

    mode: Literal["pilot", "cross_fit", "online", "none"] = Field(
        "pilot",
        description="pilot: fresh completions measure each prompt, then are thrown away; cross_fit: "
        "each half of them decides the counts of a stream that the other half enters, so that all "
        "are trained on; online: the completions of earlier steps measure, and no pilots are drawn",
    )
    half_life: float = Field(
        20.0,
        gt=0,
        description="online: steps after which a completion counts half; the policy moves",
    )
    num_pilots: int = Field(
        8, ge=1, description="pilot completions a prompt (N'); cross_fit: part of num_generations"
    )
    interval: int = Field(
        1,
        ge=1,
        description="pilot: steps between pilot phases; each measures all prompts up to the next",
    )
    grad_norm: Literal[GradNormMethod, "none"] = Field(
        "exact",
        description="gradient norm of a completion: exact (one forward and backward pass a batch), "
        "exact_slow (one sample at a time, for any model), last_layer (output layer, forward only), or "
        "none (1 for every completion)",
    )
    grad_norm_parameters: GradNormParameters = Field(
        "all", description="exact norms are over these trainable parameters"
    )
    grad_norm_sketch: int | None = Field(
        None,
        ge=1,
        description="last_layer: project the vocabulary to this many entries, for large ones",
    )

    @model_validator(mode="after")
    def _options_have_a_use(self) -> EstimateConfig:
        if self.grad_norm_parameters != "all" and not self.grad_norm.startswith("exact"):
            raise ValueError("grad_norm_parameters needs grad_norm: exact or exact_slow")
        if self.grad_norm_sketch is not None and self.grad_norm != "last_layer":
            raise ValueError("grad_norm_sketch needs grad_norm: last_layer")
        if self.interval > 1 and self.mode != "pilot":
            raise ValueError(f"interval {self.interval} needs mode: pilot")
        if self.mode == "cross_fit" and self.num_pilots % 2:
            raise ValueError(
                f"mode cross_fit halves the pilots; num_pilots {self.num_pilots} is odd"
            )
        return self


class AllocateConfig(Section):
    """How the budget is spent."""

    allocator: str = Field(
        "min_variance",
        description="min_variance, gvm, uniform, or your own function as module:function",
    )
    num_generations: int = Field(8, ge=1, description="completions a prompt on average")
    budget: int | None = Field(
        None,
        ge=0,
        description="completions, or tokens, a step; default: what num_generations for every prompt "
        "comes to",
    )
    budget_unit: Literal["completions", "tokens"] = Field(
        "completions",
        description="tokens: the budget is spent on expected tokens, and prompts with short "
        "completions get more of them",
    )
    lower: int = Field(0, ge=0, description="fewest completions a prompt; gvm starves at 0")
    upper: int | None = Field(None, ge=0, description="most completions a prompt; null: no limit")
    accept_rate_penalty: float = Field(
        1e-3, ge=0, description="GVM's alpha: gives prompts without hope less, for log_likelihood"
    )
    accept_rate_power: float = Field(2.0, ge=1, description="GVM's beta; the paper asks for >= 2")


class UpdateConfig(Section):
    """Optimizer updates."""

    learning_rate: float = Field(1e-6, gt=0, description="of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after warm-up"
    )
    warmup_updates: int = Field(0, ge=0, description="linear warm-up of the learning rate")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradient; null: never")
    max_skipped: int = Field(
        3,
        ge=0,
        description="updates in a row that are skipped because their loss or gradient is NaN or "
        "infinite; one more stops the run",
    )
    updates_per_step: int = Field(4, ge=1, description="optimizer updates a step, whatever counts")
    micro_batch_tokens: int = Field(16384, ge=1, description="tokens of one forward and backward")


class TrainConfig(Section):
    """Length and width of training."""

    steps: int = Field(100, ge=1, description="training steps")
    prompts_per_step: int = Field(64, ge=1, description="prompts drawn a step (m)")


class VarianceConfig(Section):
    """Measuring how noisy the gradient is: ``dibs variance``, and within training."""

    prompts: int | None = Field(
        None, ge=2, description="dibs variance: prompts measured; default train.prompts_per_step"
    )
    num_generations: int = Field(
        32, ge=4, description="dibs variance: completions a prompt, those that play pilots included"
    )
    interval: int = Field(
        10,
        ge=0,
        description="training: steps between measurements of what the counts achieved, on the step's "
        "own completions; 0: never",
    )


class EvaluateConfig(Section):
    """Scoring on held-out prompts."""

    interval: int = Field(10, ge=0, description="steps between evaluations; 0: only first and last")
    num_generations: int = Field(4, ge=1, description="completions a prompt (k of avg@k, pass@k)")
    temperature: float = Field(1.0, gt=0, description="of evaluation sampling")


class CheckpointConfig(Section):
    """Which intermediate policies are kept."""

    interval: int = Field(50, ge=0, description="steps between checkpoints; 0: none")
    keep: int = Field(2, ge=1, description="checkpoints kept, newest first")


class TrackingConfig(Section):
    """Where numbers and samples go besides the run folder."""

    trackers: tuple[str, ...] = Field(
        (), description="accelerate's by name: tensorboard, wandb, mlflow, ..."
    )
    project: str = Field("dibs", description="project name trackers file the run under")
    samples_interval: int = Field(10, ge=0, description="steps between kept completions; 0: never")
    samples: int = Field(3, ge=1, description="completions kept of such a step, from hard to easy")

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
