"""Put the parts of a run together from a configuration; and the commands that do not train."""

from __future__ import annotations

import os
from datetime import datetime

import torch
import transformers

from dibs.allocation.history import History
from dibs.config import Config, PolicyConfig, VerifyConfig
from dibs.data.arithmetic import TASKS
from dibs.data.curriculum import Curriculum, up_to
from dibs.data.prompts import (
    PromptSet,
    build_prompts,
    check_batch_size,
    read_questions,
)
from dibs.loop import Trainer
from dibs.model.grad_norms import check_weighted, gradient_norms
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.model.turn_end import stops_of
from dibs.model.warm_start import warm_started_policy
from dibs.processes import ALONE, Processes
from dibs.rollouts.sampling import Sampler, build_sampler
from dibs.rollouts.source import RolloutSource
from dibs.rollouts.verify.verifiers import build_verifier
from dibs.runs.announce import announce
from dibs.runs.check_config import check_config
from dibs.runs.console import View
from dibs.training.losses import PolicyLoss
from dibs.training.norms_of_updates import check_weighted_gradient
from dibs.training.phases import PhaseTimer
from dibs.training.rollout_gradients import RolloutGradients
from dibs.training.sharing_check import made_up_examples, try_holding, try_sharing
from dibs.training.updater import Updater
from dibs.types import InputError, NonFiniteError, TrainingExample


def _quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def build_trainer(
    config: Config, view: View, processes: Processes = ALONE, clock: datetime | None = None
) -> Trainer:
    """Check the configuration against the world and put the parts of a run together.

    ``clock``: the time that chat templates write; None: now. Raises InputError for anything that would
    stop the run later.
    """
    check_config(config)
    _quiet_transformers()
    torch.manual_seed(config.seed)
    questions = read_questions(config.data, config.seed)
    with processes.main_first():  # it warms up an embedded task's policy
        start = starting_policy(config.policy, view)
    policy = loaded_policy(config, start)
    sampler = build_sampler(config, policy, processes.main)
    try:
        room = processes.broadcast(_room_for_prompts(policy, config, sampler))
        prompts = build_prompts(questions, config.data, policy.tokenizer, config.seed, room, clock)
        return _assembled(config, view, prompts, policy, sampler, processes)
    except NonFiniteError as error:
        sampler.close()
        raise InputError(f"policy.model {config.policy.model}: {error}") from None
    except BaseException:
        sampler.close()
        raise


def _assembled(
    config: Config,
    view: View,
    prompts: PromptSet,
    policy: Policy,
    sampler: Sampler,
    processes: Processes,
) -> Trainer:
    first = up_to(prompts.train, 1)
    check_batch_size(first, config.train.prompts_per_step)
    if isinstance(config.select.pool, int):
        check_batch_size(first, config.select.pool, "select.pool")
    _check_gradient_norms(config, prompts, policy)
    messages = _share_prompts(config, prompts, policy, processes)
    announce(config, policy, prompts, sampler, view, processes)
    for message in messages:
        view.message(message)
    algorithm = config.algorithm
    high = algorithm.epsilon if algorithm.epsilon_high is None else algorithm.epsilon_high
    clip = None if algorithm.name == "raft" else (algorithm.epsilon, high)
    return Trainer(
        config=config,
        policy=policy,
        source=RolloutSource(
            config,
            sampler,
            build_verifier(_own_workers(config.verify, processes), config.data.train),
            processes,
        ),
        updater=Updater(
            policy,
            PolicyLoss(
                clip,
                algorithm.beta,
                None if algorithm.importance_sampling == "none" else algorithm.importance_sampling,
                algorithm.importance_sampling_cap,
            ),
            config.update,
            config.train.steps * config.update.updates_per_step,
            reference=policy.frozen_copy() if algorithm.beta > 0 else None,
            processes=processes,
            seed=config.seed,
        ),
        prompts=prompts,
        curriculum=Curriculum(prompts.train, config),
        history=History(config.estimate.half_life, algorithm.length_normalization),
        gradients=RolloutGradients(policy, config, processes),
        phase=PhaseTimer(view.phase),
    )


def _check_gradient_norms(config: Config, prompts: PromptSet, policy: Policy) -> None:
    """InputError where norms cannot be measured as the configuration says."""
    method = config.estimate.grad_norm
    if config.estimate.mode == "none" or method == "none":
        return
    first = prompts.train[0].token_ids
    samples = [
        TrainingExample(first[:16], first[:4], 1.0, 1.0),
        TrainingExample(first[:8], first[:2], -0.5, 1.0),
    ]
    if method == "update":
        check_weighted(policy, config.policy.lora.dropout)
        check_weighted_gradient(policy, samples)
    else:
        parameters = config.estimate.grad_norm_parameters
        gradient_norms(policy, samples, method, parameters=parameters)


def _share_prompts(
    config: Config, prompts: PromptSet, policy: Policy, processes: Processes
) -> list[str]:
    """Let updates and sampling share prompts where they can; messages for the user where not."""
    if config.policy.share_prompts == "never":
        return []
    longest = config.sampling.max_completion_length
    contexts = list(dict.fromkeys(prompt.token_ids[-32:] for prompt in prompts.train[:3]))
    messages = []
    made = made_up_examples(contexts, longest)
    alone = try_sharing(policy, made, config.policy.lora.dropout, processes)
    if alone is not None:
        messages.append(f"Updates compute a prompt again for each of its completions: {alone}")
    if config.sampling.engine == "transformers":
        held = try_holding(policy, contexts, longest, processes)
        if held is not None:
            messages.append(f"Sampling copies a prompt's keys for each of its completions: {held}")
    return messages


def _own_workers(config: VerifyConfig, processes: Processes) -> VerifyConfig:
    """The processes of a run share the machine's cores, unless ``verify.workers`` is set."""
    if config.workers is not None or processes.size == 1:
        return config
    workers = max(1, min(os.cpu_count() or 1, 8) // processes.size)
    return config.model_copy(update={"workers": workers})


def starting_policy(config: PolicyConfig, view: View) -> PolicyConfig:
    """The configuration with an embedded task's name replaced by its warm-started folder."""
    if config.model not in TASKS:
        return config
    _quiet_transformers()
    folder = warm_started_policy(
        config.model,
        config.warm_start,
        lambda done, total, loss: view.preparing("warm start", done, total, f"loss {loss:.3f}"),
    )
    return config.model_copy(update={"model": str(folder)})


def loaded_policy(config: Config, start: PolicyConfig) -> Policy:
    """The policy that ``start`` names, and what ends its completions."""
    policy = load_policy(start, config.sampling.temperature)
    policy.stops = stops_of(policy.tokenizer, config.sampling.stop, chat=config.data.chat_template)
    return policy


def _room_for_prompts(policy: Policy, config: Config, sampler: Sampler) -> int | None:
    """Tokens the context leaves for a prompt beside a completion; None if unlimited."""
    positions = getattr(policy.model.config, "max_position_embeddings", None)
    limits = {config.policy.model: positions, "the sampling engine": sampler.context}
    known = {name: int(limit) for name, limit in limits.items() if limit is not None}
    if not known:
        return None
    whose = min(known, key=lambda name: known[name])
    room = known[whose] - config.sampling.max_completion_length
    if room < 1:
        raise InputError(
            f"sampling.max_completion_length {config.sampling.max_completion_length} leaves no room "
            f"for a prompt in the {known[whose]} positions of {whose}; lower it"
        )
    return room
