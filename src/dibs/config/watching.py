"""What is measured, evaluated, saved and tracked while a policy learns."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from dibs.config.section import Section


class VarianceConfig(Section):
    """How the noise of the gradient is measured, by ``dibs variance`` and during training."""

    prompts: int | None = Field(
        None,
        ge=2,
        description="For dibs variance: prompts that are measured. null takes "
        "train.prompts_per_step.",
    )
    num_generations: int = Field(
        32,
        ge=4,
        description="For dibs variance: completions drawn for each prompt, including those that "
        "play the part of pilots. Raise it for narrower intervals.",
    )
    interval: int = Field(
        10,
        ge=0,
        description="For dibs train: steps between measurements of how much variance the counts "
        "saved, on the completions of that step. 0 never measures.",
    )
    window: int = Field(
        16,
        ge=1,
        description="For dibs train: how many of the latest measurements are pooled into "
        "measured_gain. One step's ratio of variances is heavy-tailed; raise it for a steadier number.",
    )


class EvaluateConfig(Section):
    """How held-out prompts are scored."""

    interval: int = Field(
        10,
        ge=0,
        description="Steps between evaluations. 0 evaluates before the first step and after the "
        "last only.",
    )
    num_generations: int = Field(
        4,
        ge=1,
        description="Completions drawn for each held-out prompt: the k of avg@k and pass@k.",
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of evaluations.")


class CheckpointConfig(Section):
    """Which intermediate policies are kept."""

    interval: int = Field(
        50,
        ge=0,
        description="Steps between checkpoints, from which a stopped run can resume. 0 writes "
        "none.",
    )
    keep: int = Field(2, ge=1, description="Newest checkpoints to keep; older ones are deleted.")


class TrackingConfig(Section):
    """Where numbers and samples go besides the run folder."""

    trackers: tuple[str, ...] = Field(
        (),
        description="Trackers that also get the metrics, by the names that accelerate gives them: "
        "tensorboard, wandb, mlflow and others.",
    )
    project: str = Field("dibs", description="Project name under which the trackers file the run.")
    run_name: str | None = Field(
        None,
        min_length=1,
        description="Name of the run in W&B, trackio and MLflow. null takes the last part of "
        "output_dir.",
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="Group of runs that W&B and trackio show together, such as the seeds of one "
        "configuration. MLflow gets it as the tag group.",
    )
    tags: tuple[str, ...] = Field(
        (), description="Words by which W&B and MLflow find the run again."
    )
    notes: str | None = Field(
        None, description="What is special about the run, shown beside it by W&B and MLflow."
    )
    samples_interval: int = Field(
        10,
        ge=0,
        description="Steps between those whose completions are kept as samples to read. 0 keeps "
        "none.",
    )
    samples: int = Field(
        3, ge=1, description="Completions to keep of such a step, from hard prompts to easy ones."
    )

    @field_validator("trackers", "tags", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
