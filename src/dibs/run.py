"""One training run from a configuration to a finished folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from dibs.allocate import check_allocator
from dibs.benchmark import Evaluator
from dibs.checkpoint import RunFolder, all_finite
from dibs.config import Config, PolicyConfig
from dibs.gradnorm import gradient_norms
from dibs.history import History
from dibs.losses import PolicyLoss
from dibs.measure import Measure
from dibs.meter import measure_variance
from dibs.objectives import check_objective
from dibs.policy import Policy, load_policy, load_tokenizer
from dibs.prompts import PromptSet, batches, build_prompts, check_batch_size, read_questions
from dibs.report.figures import draw_figures
from dibs.report.metrics import describe_prompts, sample_records
from dibs.report.trackers import Trackers, check_trackers
from dibs.report.views import View
from dibs.rows import one_line
from dibs.sampling import build_sampler
from dibs.tasks.arithmetic import TASKS
from dibs.tasks.warm_start import build_tokenizer, warm_started_policy
from dibs.train import StepRecord, Trainer
from dibs.types import InputError, NonFiniteError, TrainingExample
from dibs.update import Updater
from dibs.verify import build_verifier


def run_training(config: Config, view: View) -> dict[str, Any]:
    """Train as configured, write ``config.output_dir`` and return the summary.

    Everything the user gave is checked before the folder is touched. Raises InputError, also when a
    NaN or infinite gradient stopped the run; the last good checkpoint stays.
    """
    RunFolder.check(config.output_dir, config.overwrite)
    trainer = build_trainer(config, view)
    folder = RunFolder.create(config)
    started = time.perf_counter()
    trackers = Trackers(config, folder.path)
    try:
        before = _first_record(trainer)
        folder.append("metrics.jsonl", before)
        trackers.log(before)
        view.step(before, config.train.steps)
        _save_checkpoint(folder, trainer, step=0)
        after: Mapping[str, Any] = before
        for record in trainer.run():
            after = record.metrics
            _keep(record, folder, view, config)
            trackers.log(after)
            if config.checkpoint.interval > 0 and record.step % config.checkpoint.interval == 0:
                _save_checkpoint(folder, trainer, record.step)
        _refuse_broken_weights(trainer, f"step {config.train.steps}")
        folder.save_final(trainer.policy)
    except NonFiniteError as error:
        advice = "lower update.learning_rate or set update.max_grad_norm"
        raise InputError(f"stopped at {error}; {_kept(folder)}; {advice}") from None
    except KeyboardInterrupt:
        view.message(f"Interrupted. {folder.path} holds the run so far; {_kept(folder)}.")
        raise
    finally:
        trackers.close()
        trainer.verifier.close()
    summary = _summary(trainer, before, after, time.perf_counter() - started)
    view.phase("drawing figures")
    draw_figures({config.allocate.allocator: folder.path}, folder.path / "figures")
    folder.write_summary(summary)
    if summary["learned_rollouts"] == 0:
        view.message(
            f"No completion of the whole run gave anything to learn from: "
            f"{summary['accepted_rollouts']} were accepted. Look at {folder.path / 'samples.jsonl'}; "
            "a stronger policy, easier prompts or another verifier is needed."
        )
    return summary


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
        trainer.verifier.close()


def run_evaluation(
    config: Config, sources: Sequence[str], k: int, samples: int, out: Path | None, view: View
) -> dict[str, Any]:
    """Evaluate the configured policy on known sets or files; see :class:`dibs.benchmark.Evaluator`.

    Raises InputError for a source that cannot be read, before anything is sampled.
    """
    _quiet_transformers()
    policy = load_policy(_trained(config.policy, view), config.sampling.temperature)
    policy.model.eval()
    verifier = build_verifier(config.verify, "")
    evaluator = Evaluator(
        config, policy, build_sampler(config.sampling, policy), verifier, k, samples, view
    )
    try:
        return evaluator.run(sources, out, _room_for_prompts(policy, config))
    except NonFiniteError as error:
        raise InputError(f"policy.model {config.policy.model}: {error}") from None
    finally:
        verifier.close()


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


def build_trainer(config: Config, view: View) -> Trainer:
    """Check the configuration against the world and put the parts of a run together.

    Raises InputError for anything that would stop the run later.
    """
    _check(config)
    _quiet_transformers()
    torch.manual_seed(config.seed)
    questions = read_questions(config.data, config.seed)
    policy = load_policy(_trained(config.policy, view), config.sampling.temperature)
    room = _room_for_prompts(policy, config)
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
    _announce(config, policy, prompts, view)
    algorithm = config.algorithm
    high = algorithm.epsilon if algorithm.epsilon_high is None else algorithm.epsilon_high
    clip = None if algorithm.name == "raft" else (algorithm.epsilon, high)
    return Trainer(
        config=config,
        policy=policy,
        sampler=build_sampler(config.sampling, policy),
        verifier=build_verifier(config.verify, config.data.train),
        updater=Updater(
            policy,
            PolicyLoss(clip, algorithm.beta),
            config.update,
            config.train.steps * config.update.updates_per_step,
            reference=policy.frozen_copy() if algorithm.beta > 0 else None,
        ),
        prompts=prompts,
        history=History(config.estimate.half_life),
        measure=Measure(policy, config),
        on_phase=view.phase,
    )


def _check(config: Config) -> None:
    """InputError for what can be told without loading anything."""
    check_allocator(config.allocate.allocator)
    check_objective(config.algorithm.objective, config.algorithm.baseline)
    check_trackers(config.tracking.trackers)


def _announce(config: Config, policy: Policy, prompts: PromptSet, view: View) -> None:
    """Say what is about to be trained on what, and how it is sampled."""
    for reason, rows in prompts.dropped.items():
        view.message(f"{config.data.train}: {rows} rows dropped: {reason}")
    view.message(
        f"{len(prompts.train):,} training prompts, {len(prompts.eval):,} held out; policy "
        f"{config.policy.model} with {sum(p.numel() for p in policy.model.parameters()):,} "
        f"parameters on {policy.device}; sampling temperature {policy.temperature:g}, no top-k, "
        "top-p or penalties"
    )
    if config.estimate.mode != "none" and not config.uses_statistics:
        view.message("The estimates decide nothing here; estimate.mode none saves their cost.")


def _kept(folder: RunFolder) -> str:
    checkpoint = folder.last_checkpoint()
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was saved"


def _trained(config: PolicyConfig, view: View) -> PolicyConfig:
    """The configuration with an embedded task's name replaced by its warm-started folder."""
    if config.model not in TASKS:
        return config
    folder = warm_started_policy(
        config.model,
        config.warm_start,
        lambda done, total, loss: view.preparing("warm start", done, total, f"loss {loss:.3f}"),
    )
    return config.model_copy(update={"model": str(folder)})


def _room_for_prompts(policy: Policy, config: Config) -> int | None:
    """Tokens the model's context leaves for a prompt beside a completion; None if unlimited."""
    positions = getattr(policy.model.config, "max_position_embeddings", None)
    if positions is None:
        return None
    room = int(positions) - config.sampling.max_completion_length
    if room < 1:
        raise InputError(
            f"sampling.max_completion_length {config.sampling.max_completion_length} leaves no room "
            f"for a prompt in the {positions} positions of {config.policy.model}; lower it"
        )
    return room


def _first_record(trainer: Trainer) -> dict[str, Any]:
    try:
        with trainer.phase("evaluate"):
            return {"step": 0, **asdict(trainer.totals), **trainer.evaluate()}
    except NonFiniteError as error:
        raise NonFiniteError(f"the first evaluation: {error}") from None


def _keep(record: StepRecord, folder: RunFolder, view: View, config: Config) -> None:
    facts = (record.step, record.groups, record.stats, record.allocation)
    folder.append("metrics.jsonl", record.metrics)
    folder.append("allocations.jsonl", describe_prompts(*facts))
    view.step(record.metrics, config.train.steps)
    interval = config.tracking.samples_interval
    if interval > 0 and (record.step == 1 or record.step % interval == 0):
        samples = sample_records(*facts)
        for sample in samples:
            folder.append("samples.jsonl", sample)
        view.samples(samples)
    if record.metrics["learned"] == 0:
        why = "every group was all alike" if record.metrics["accepted"] else "nothing was accepted"
        view.message(f"step {record.step}: {why}, so there is nothing to learn from it")


def _save_checkpoint(folder: RunFolder, trainer: Trainer, step: int) -> None:
    if trainer.config.checkpoint.interval == 0:
        return
    _refuse_broken_weights(trainer, f"step {step}")
    state = {"step": step, **asdict(trainer.totals)}
    if trainer.config.estimate.mode == "online":
        state["history"] = trainer.history.state()
    folder.save_checkpoint(trainer.policy, state, trainer.config.checkpoint.keep)


def _refuse_broken_weights(trainer: Trainer, where: str) -> None:
    if not all_finite(trainer.policy):
        raise NonFiniteError(f"{where}: the weights are NaN or infinite")


def _summary(
    trainer: Trainer, before: Mapping[str, Any], after: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    config = trainer.config
    return {
        "algorithm": config.algorithm.name,
        "objective": config.algorithm.objective,
        "baseline": config.algorithm.baseline,
        "estimator": config.algorithm.estimator,
        "allocator": config.allocate.allocator,
        "seed": config.seed,
        "steps": config.train.steps,
        **asdict(trainer.totals),
        "wall_seconds": seconds,
        "accuracy_before": before["accuracy"],
        "accuracy_before_low": before["accuracy_low"],
        "accuracy_before_high": before["accuracy_high"],
        "accuracy_after": after["accuracy"],
        "accuracy_after_low": after["accuracy_low"],
        "accuracy_after_high": after["accuracy_high"],
        "pass_at_k_before": before["pass_at_k"],
        "pass_at_k_after": after["pass_at_k"],
    }
