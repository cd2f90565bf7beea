"""The ``dibs.*`` block of a verl run: its keys, and what it changes in verl's own configuration.

The target gradient is verl's. ``algorithm.adv_estimator`` decides objective and baseline of the
advantages, and counts are allocated for those. With ``adv_estimator dibs`` the budget computes the
advantages, for any objective and baseline of ``dibs.*``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from dibs.allocation.target import OBJECTIVES, Target
from dibs.config import Section
from dibs.config.wording import one_line, refuse_unknown
from dibs.integrations.pools import PoolConfig
from dibs.types import InputError

TRAINER = "dibs"
"""Name of the registered trainer, under ``trainer.v1.trainer_mode``."""
ESTIMATOR = "dibs"
"""Name of the registered advantage estimator, whose advantages the budget computes."""
LOSSES = {"raft": "dibs_raft", "raft++": "dibs_raft++"}
"""Names of the registered losses, under ``actor.policy_loss.loss_mode``."""
DR_GRPO = Target("expected_reward", "mean")
"""What verl's ``grpo`` estimates without the division by the deviation."""
_TARGETS = {
    "grpo": Target("grpo", "mean"),
    "grpo_vectorized": Target("grpo", "mean"),
    "rloo": Target("expected_reward", "leave_one_out"),
    "rloo_vectorized": Target("expected_reward", "leave_one_out"),
    "gae": Target("expected_reward", "none", given=True),
}
"""Targets of verl's advantage estimators. PPO's advantages (``gae``) are a critic's, of every token."""
_NOT_HOMOGENEOUS = ("clip_cov", "kl_cov", "dro")
"""verl's losses that are not multiplied by a factor of the advantage."""
_OWN_MEANS = ("geo_mean", "sapo")
"""verl's losses of the policy that average over completions, whatever ``actor.loss_agg_mode`` is."""


class VerlOptions(Section):
    """The keys of the block that are not :class:`PoolConfig`'s."""

    algorithm: Literal["verl", "raft", "raft++"] = Field(
        "verl",
        description="Chooses advantages and loss. verl keeps those of verl's own arguments; raft "
        "fits the accepted completions; raft++ fits them with the clipped importance "
        "ratio.",
    )
    num_pilots: int = Field(
        8, ge=1, description="For mode pilot: fresh completions for each prompt in each step."
    )
    grad_norm: Literal["last_layer", "none"] | None = Field(
        None,
        description="How the gradient norm of a completion is computed. last_layer uses the "
        "output layer, in the forward pass that verl makes anyway; none takes 1 for "
        "every completion. null takes last_layer, or none for uniform counts without "
        "a state_path.",
    )
    state_path: str | None = Field(
        None,
        description="JSON file of what is known of each prompt. A run that does not resume reads "
        "it at its start, if it exists. Every checkpoint writes it, and so does the "
        "end of the run. null keeps no file.",
    )
    counts_path: str | None = Field(
        None,
        description="JSON Lines file that gets the counts of every step, requested and received. "
        "null writes none.",
    )


def read_block(config: Any) -> tuple[VerlOptions, PoolConfig]:
    """Read the block of a composed verl configuration (an OmegaConf, or an object with its keys).

    Raises InputError for an unknown key (the message names the nearest), a bad value, or a value that
    contradicts verl's own arguments.
    """
    block = dict(config.get("dibs") or {})
    known = [*VerlOptions.model_fields, *PoolConfig.model_fields]
    refuse_unknown(block, known, "dibs")
    own = {key: block.pop(key) for key in VerlOptions.model_fields if key in block}
    try:
        options = VerlOptions(**own)
        budget = PoolConfig(
            **_completed(block, options, config.algorithm, config.actor_rollout_ref.rollout.n)
        )
    except ValidationError as error:
        raise InputError(one_line(error, "dibs")) from None
    if "num_pilots" in own and budget.mode != "pilot":
        raise InputError(
            f"dibs.num_pilots is given and dibs.mode is {budget.mode}, which draws none; set dibs.mode "
            "to pilot"
        )
    if budget.target.fits_accepted and config.algorithm.use_kl_in_reward:
        raise InputError(
            "algorithm.use_kl_in_reward: objective log_likelihood learns from accepted or not, which a "
            "penalty would turn into not; set it to False, and actor.use_kl_loss to True"
        )
    if budget.target.given:
        _check_critics_advantages(options, budget)
    if options.grad_norm is None:
        unused = budget.allocator == "uniform" and options.state_path is None
        measured = "none" if unused else "last_layer"
        options = options.model_copy(update={"grad_norm": measured})
    return options, budget


def _check_critics_advantages(options: VerlOptions, budget: PoolConfig) -> None:
    """Raise InputError for what needs more than PPO's advantages tell."""
    if budget.mode == "pilot":
        raise InputError(
            "dibs.mode pilot: the critic sees no pilots, so they have no advantages; set it to online"
        )
    if budget.keep is not None:
        raise InputError(
            f"dibs.keep {budget.keep}: a critic is trained, and its advantages whitened, over all "
            "completions; leave it out"
        )
    if budget.allocator == "min_variance" and options.grad_norm == "none":
        raise InputError(
            "dibs.grad_norm none: counts of algorithm.adv_estimator gae follow from the norms of "
            "advantage times gradient; leave it out, or set dibs.allocator to uniform"
        )


def _completed(
    block: Mapping[str, Any], options: VerlOptions, algorithm: Any, verl_generations: int
) -> dict[str, Any]:
    """Return the keys of PoolConfig, with those that verl's arguments decide."""
    if "advantages" in block:
        raise InputError("dibs.advantages: algorithm.adv_estimator decides it; leave it out")
    values = dict(block)
    asked = values.setdefault("num_generations", verl_generations)
    if verl_generations not in (1, asked):  # 1 is verl's default
        raise InputError(
            f"dibs.num_generations {asked} and actor_rollout_ref.rollout.n {verl_generations} differ; "
            "give one of them"
        )
    if options.algorithm != "verl":
        return _of_raft(values, options.algorithm)
    estimator = str(getattr(algorithm.adv_estimator, "value", algorithm.adv_estimator))
    if estimator not in (*_TARGETS, ESTIMATOR):
        raise InputError(
            f"algorithm.adv_estimator {estimator} has no allocation here; choose "
            f"{', '.join(_TARGETS)} or {ESTIMATOR}"
        )
    if estimator == "gae":
        values["advantages"] = "given"
    if estimator == ESTIMATOR:
        return values
    target = _TARGETS[estimator]
    if estimator == "grpo" and not algorithm.get("norm_adv_by_std_in_grpo", True):
        target = DR_GRPO
    if values.get("deviation") == "expected":
        raise InputError(
            f"dibs.deviation expected: algorithm.adv_estimator {estimator} divides by the group's own "
            f"deviation; set it to {ESTIMATOR}"
        )
    for key, wanted in (("objective", target.objective), ("baseline", target.baseline)):
        if values.setdefault(key, wanted) != wanted:
            raise InputError(
                f"dibs.{key} {values[key]} is not that of algorithm.adv_estimator {estimator}, which is "
                f"{wanted}; leave it out, or set algorithm.adv_estimator to {ESTIMATOR}"
            )
    return values


def _of_raft(values: dict[str, Any], algorithm: str) -> dict[str, Any]:
    """Complete the keys of PoolConfig for ``raft`` or ``raft++``."""
    objective = values.setdefault("objective", "log_likelihood")
    values.setdefault("baseline", "none")
    if objective not in OBJECTIVES:
        return values  # PoolConfig refuses it
    if Target.named(objective).fits_accepted:
        values.setdefault("estimator", "self_normalized")
    if Target.named(objective).divides_by_deviation:
        raise InputError(
            f"dibs.algorithm {algorithm} fits accepted completions; set dibs.objective to "
            "log_likelihood or expected_reward, or dibs.algorithm to verl"
        )
    return values


def adapt(config: Any, options: VerlOptions, budget: PoolConfig) -> None:
    """Set in verl's configuration what the block decides.

    Raises InputError for a setting of verl that draws or drops completions outside the budget.
    """
    mode, v1 = config.trainer.v1.trainer_mode, config.trainer.v1
    current = config.trainer.get("use_v1", True)
    if not current or mode not in ("sync", TRAINER):
        raise InputError(
            f"trainer.v1.trainer_mode {mode}, trainer.use_v1 {current}: a budget is spent a step at a "
            "time; set trainer.use_v1=True trainer.v1.trainer_mode=sync"
        )
    groups = config.algorithm.get("filter_groups")
    refill = v1.sampler.get("sync_refill_failed_groups", False)
    for key, on in (
        ("algorithm.filter_groups.enable", bool(groups and groups.get("enable", False))),
        ("trainer.v1.sampler.sync_refill_failed_groups", bool(refill)),
    ):
        if on:
            raise InputError(f"{key}: prompts drawn anew would exceed the budget; set it to False")
    if config.skip.rollout_tq.enable:
        raise InputError(
            "skip.rollout_tq.enable: completions out of a cache are not those that were asked for; set "
            "it to False"
        )
    even = budget.allocator == "uniform" and budget.keep is None
    if budget.estimator != "flat" and not (even and budget.estimator != "self_normalized"):
        _check_weights(config, options)
    v1.trainer_mode = TRAINER
    config.actor_rollout_ref.rollout.n = budget.num_generations
    if options.algorithm != "verl":
        config.algorithm.adv_estimator = ESTIMATOR
        config.actor_rollout_ref.actor.policy_loss.loss_mode = LOSSES[options.algorithm]


def _check_weights(config: Any, options: VerlOptions) -> None:
    """Raise InputError for a loss of verl's in which weights of completions would not be exact."""
    actor = config.actor_rollout_ref.actor
    loss = actor.policy_loss.loss_mode
    if options.algorithm == "verl" and loss in _NOT_HOMOGENEOUS:
        raise InputError(
            f"actor.policy_loss.loss_mode {loss}: a weight of the advantage does not multiply that "
            "loss; choose another, or set dibs.estimator to flat"
        )
    modes = [("actor_rollout_ref.actor", actor, aggregation(actor))]
    if actor.use_kl_loss or actor.entropy_coeff:
        modes.append(("actor_rollout_ref.actor", actor, str(actor.loss_agg_mode)))
    if uses_critic(config):
        modes.append(("critic", config.critic, config.critic.loss_agg_mode))
    for name, part, mode in modes:
        if mode == "seq-mean-token-sum-norm" and part.loss_scale_factor is None:
            raise InputError(
                f"{name}.loss_agg_mode seq-mean-token-sum-norm divides each micro-batch by its longest "
                f"completion unless told otherwise; set {name}.loss_scale_factor, such as to "
                "data.max_response_length"
            )
    distillation = config.get("distillation")
    if distillation and distillation.get("enabled", False):
        raise InputError(
            "distillation.enabled: its loss is a mean over completions, which has no weights; set it to "
            "False, or dibs.estimator to flat"
        )


def uses_critic(config: Any) -> bool:
    """Whether verl trains a critic."""
    estimator = config.algorithm.adv_estimator
    return bool(estimator == "gae" if config.critic.enable is None else config.critic.enable)


def aggregation(actor: Any) -> str:
    """Return the ``loss_agg_mode`` that the policy's loss of verl's ``actor`` configuration really uses.

    KL and entropy always use the configured one.
    """
    own = actor.policy_loss.loss_mode in _OWN_MEANS
    return "seq-mean-token-mean" if own else str(actor.loss_agg_mode)
