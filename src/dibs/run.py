"""Put the parts of a run together from a configuration; and the commands that do not train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from dibs.allocation.allocators import check_allocator
from dibs.allocation.history import History
from dibs.allocation.objectives import check_objective
from dibs.benchmark import Evaluator
from dibs.config import Config, PolicyConfig, VerifyConfig
from dibs.data.arithmetic import TASKS
from dibs.data.prompts import (
    PromptSet,
    Questions,
    batches,
    build_prompts,
    check_batch_size,
    read_questions,
)
from dibs.files import one_line
from dibs.losses import PolicyLoss
from dibs.measure import Measure
from dibs.meter import measure_variance
from dibs.model.grad_norms import gradient_norms
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy, load_tokenizer
from dibs.model.warm_start import build_tokenizer, warm_started_policy
from dibs.processes import ALONE, Processes
from dibs.report.trackers import check_trackers
from dibs.report.views import View
from dibs.rollouts.sampling import Sampler, build_sampler
from dibs.rollouts.source import RolloutSource
from dibs.rollouts.verify.verifiers import build_verifier
from dibs.train import Trainer
from dibs.types import InputError, NonFiniteError, TrainingExample
from dibs.update import Updater


def run_variance(config: Config, view: View) -> dict[str, Any]:
    """Measure the gradient's variance on the configured policy and prompts; writes nothing.

    Raises InputError as :func:`run_training` does.
    """
    wanted = config.variance.prompts or config.train.prompts_per_step
    trainer = build_trainer(config, view)
    check_batch_size(trainer.prompts.train, wanted)
    try:
        return measure_variance(trainer, view.preparing)
    except NonFiniteError as error:
        raise InputError(f"policy.model {config.policy.model}: {error}") from None
    finally:
        trainer.source.close()


def run_evaluation(
    config: Config, sources: Sequence[str], k: int, samples: int, out: Path | None, view: View
) -> dict[str, Any]:
    """Evaluate the configured policy on known sets or files; see :class:`dibs.benchmark.Evaluator`.

    Raises InputError for a source that cannot be read, before anything is sampled.
    """
    _quiet_transformers()
    policy = load_policy(starting_policy(config.policy, view), config.sampling.temperature)
    policy.model.eval()
    with (
        closing(build_sampler(config, policy)) as sampler,
        closing(build_verifier(config.verify, "")) as verifier,
    ):
        evaluator = Evaluator(config, policy, sampler, verifier, k, samples, view)
        try:
            return evaluator.run(sources, out, _room_for_prompts(policy, config, sampler))
        except NonFiniteError as error:
            raise InputError(f"policy.model {config.policy.model}: {error}") from None


def describe_data(config: Config) -> dict[str, Any]:
    """What a run would train on: counts, lengths in tokens, five rendered prompts, dropped rows."""
    _quiet_transformers()
    if config.policy.model in TASKS:
        tokenizer = build_tokenizer()
    else:
        options = {"trust_remote_code": config.policy.trust_remote_code}
        try:
            tokenizer = load_tokenizer(config.policy.model, options)
        except Exception as error:
            raise InputError(
                f"policy.model {config.policy.model}: its tokenizer cannot be loaded: {one_line(error)}"
            ) from error
    prompts = build_prompts(
        read_questions(config.data, config.seed), config.data, tokenizer, config.seed
    )
    lengths = np.array([len(prompt.token_ids) for prompt in prompts.train])
    first = next(batches(prompts.train, min(5, len(prompts.train)), config.seed))
    return {
        "train": len(prompts.train),
        "eval": len(prompts.eval),
        "steps_per_epoch": len(prompts.train) // config.train.prompts_per_step,
        "prompt_length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "p95": float(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
        },
        "dropped": prompts.dropped,
        "prompts": [
            {"prompt_id": prompt.prompt_id, "text": prompt.text, "answer": prompt.answer}
            for prompt in first
        ],
    }


def _quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def build_trainer(config: Config, view: View, processes: Processes = ALONE) -> Trainer:
    """Check the configuration against the world and put the parts of a run together.

    Raises InputError for anything that would stop the run later.
    """
    _check(config)
    _quiet_transformers()
    torch.manual_seed(config.seed)
    questions = read_questions(config.data, config.seed)
    with processes.main_first():  # it warms up an embedded task's policy
        start = starting_policy(config.policy, view)
    policy = load_policy(start, config.sampling.temperature)
    sampler = build_sampler(config, policy, processes.main)
    try:
        return _assembled(config, view, questions, policy, sampler, processes)
    except BaseException:
        sampler.close()
        raise


def _assembled(
    config: Config,
    view: View,
    questions: Questions,
    policy: Policy,
    sampler: Sampler,
    processes: Processes,
) -> Trainer:
    room = processes.told(_room_for_prompts(policy, config, sampler))
    prompts = build_prompts(questions, config.data, policy.tokenizer, config.seed, room)
    check_batch_size(prompts.train, config.train.prompts_per_step)
    if config.estimate.mode != "none" and config.estimate.grad_norm != "none":
        first = prompts.train[0].token_ids
        sample = TrainingExample(first[:16], first[:4], 0.0, 0.0)
        gradient_norms(
            policy,
            [sample, sample],
            config.estimate.grad_norm,
            parameters=config.estimate.grad_norm_parameters,
        )
    _announce(config, policy, prompts, sampler, view, processes)
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
        ),
        prompts=prompts,
        history=History(config.estimate.half_life),
        measure=Measure(policy, config, processes),
        on_phase=view.phase,
    )


def _own_workers(config: VerifyConfig, processes: Processes) -> VerifyConfig:
    """Unless told otherwise, the processes of a run share the machine's cores."""
    if config.workers is not None or processes.size == 1:
        return config
    workers = max(1, min(os.cpu_count() or 1, 8) // processes.size)
    return config.model_copy(update={"workers": workers})


def _check(config: Config) -> None:
    """InputError for what can be told without loading anything."""
    check_allocator(config.allocate.allocator)
    check_objective(config.algorithm.objective, config.algorithm.baseline)
    check_trackers(config.tracking.trackers)


def _announce(
    config: Config,
    policy: Policy,
    prompts: PromptSet,
    sampler: Sampler,
    view: View,
    processes: Processes,
) -> None:
    """Say what is about to be trained on what, and how it is sampled."""
    for reason, rows in prompts.dropped.items():
        view.message(f"{config.data.train}: {rows} rows dropped: {reason}")
    view.message(
        f"{len(prompts.train):,} training prompts, {len(prompts.eval):,} held out; policy "
        f"{config.policy.model} with {sum(p.numel() for p in policy.model.parameters()):,} "
        f"parameters on {policy.device}"
    )
    view.message(
        f"Sampling at temperature {policy.temperature:g}, no top-k, top-p or penalties, by "
        f"{sampler.description}"
    )
    if processes.size > 1:
        view.message(f"{processes.size} processes on this machine share sampling and gradients")
    if config.estimate.mode != "none" and not config.uses_statistics:
        view.message("The estimates decide nothing here; estimate.mode none saves their cost.")
    if config.estimate.mode == "online" and config.allocate.allocator != "uniform":
        view.message(_online_note(config, len(prompts.train)))


def _online_note(config: Config, prompts: int) -> str:
    """Whether what is known of a prompt still counts when it comes back."""
    steps = -(-prompts // config.train.prompts_per_step)
    half_life, m = config.estimate.half_life, config.train.prompts_per_step
    drawn = config.allocate.num_generations if config.budget is None else config.budget / m
    left = drawn * 0.5 ** (steps / half_life)
    if steps >= config.train.steps:
        return (
            f"No prompt comes back within {config.train.steps:,} steps, a pass takes {steps:,}: counts "
            "stay near uniform; estimate.mode cross_fit or pilot knows prompts at once"
        )
    if left < min(1.0, drawn / 2):  # a budget of one a prompt leaves less than one at once
        return (
            f"A prompt comes back after {steps:,} steps, when its completions count for {left:.1g}: "
            f"counts stay near uniform; raise estimate.half_life ({half_life:g}) towards {steps:,}"
        )
    return f"A prompt comes back after {steps:,} steps; until then its count is near uniform"


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
