"""One training run from a configuration to a finished folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from dibs.allocate import check_allocator
from dibs.benchmark import Evaluator
from dibs.checkpoint import Checkpoint, RunFolder, all_finite
from dibs.config import Config, PolicyConfig
from dibs.gradnorm import gradient_norms
from dibs.history import History
from dibs.interrupts import StopRequest
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
from dibs.state import capture, restore
from dibs.tasks.arithmetic import TASKS
from dibs.tasks.warm_start import build_tokenizer, warm_started_policy
from dibs.train import StepRecord, Trainer
from dibs.types import InputError, NonFiniteError, TrainingExample
from dibs.update import Updater
from dibs.verify import build_verifier


def run_training(config: Config, view: View) -> dict[str, Any]:
    """Train as configured, write ``config.output_dir`` and return the summary.

    Everything the user gave is checked before the folder is touched. With ``config.resume`` a run goes
    on from its newest whole checkpoint, or starts again if it was stopped before the first. Raises
    InputError, also when NaN or infinite gradients stopped the run; KeyboardInterrupt after Ctrl-C or
    SIGTERM, when the current step is finished and saved.
    """
    resuming = config.resume == "yes" or (
        config.resume == "auto" and (config.output_dir / "config.yaml").exists()
    )
    if not resuming:
        RunFolder.check(config.output_dir, config.overwrite)
        trainer = build_trainer(config, view)
        folder = RunFolder.create(config)
        return _Session(config, view, trainer, folder).run(None)
    folder = RunFolder.reopen(config)
    try:
        finished = folder.summary()
        if finished is not None:
            view.message(f"The run in {folder.path} is finished.")
            return finished
        found, broken = folder.newest_whole()
        for fault in broken:
            view.message(fault)
        if found is None and broken:
            raise InputError(
                f"output_dir {folder.path} holds no whole checkpoint to resume from; start again with "
                "overwrite true"
            )
        trainer = build_trainer(config, view)
        if found is None:
            view.message("The run had not reached its first checkpoint; it starts again.")
            folder.clear()
        return _Session(config, view, trainer, folder).run(found)
    finally:
        folder.unlock()


@dataclass
class _Session:
    """One process's part of a run: from the start or a checkpoint to the end, or until it is stopped."""

    config: Config
    view: View
    trainer: Trainer
    folder: RunFolder
    earlier_seconds: float = 0.0
    saved: int = -1
    accuracy: float | None = None
    started: float = field(default_factory=time.perf_counter)

    def run(self, found: Checkpoint | None) -> dict[str, Any]:
        """Train and return the summary."""
        trackers = Trackers(self.config, self.folder.path)
        try:
            before = self._begin(trackers) if found is None else self._go_on(found)
            after = self._train(trackers, 1 if found is None else found.step + 1)
            _refuse_broken_weights(self.trainer, f"step {self.config.train.steps}")
            self.folder.save_final(self.trainer.policy)
        except NonFiniteError as error:
            advice = "lower update.learning_rate or set update.max_grad_norm"
            raise InputError(f"stopped at {error}; {_kept(self.folder)}; {advice}") from None
        except KeyboardInterrupt:
            self.view.message(
                f"Interrupted. {self.folder.path} holds the run so far; {_kept(self.folder)}. The same "
                "command with --resume goes on from it."
            )
            raise
        finally:
            trackers.close()
            self.trainer.verifier.close()
            self.folder.unlock()
        summary = _summary(self.trainer, before, after, self._seconds())
        self.view.phase("drawing figures")
        arm = {self.config.allocate.allocator: self.folder.path}
        draw_figures(arm, self.folder.path / "figures")
        self.folder.write_summary(summary)
        if summary["learned_rollouts"] == 0:
            self.view.message(
                f"No completion of the whole run gave anything to learn from: "
                f"{summary['accepted_rollouts']} were accepted. Look at "
                f"{self.folder.path / 'samples.jsonl'}; a stronger policy, easier prompts or another "
                "verifier is needed."
            )
        return summary

    def _begin(self, trackers: Trackers) -> dict[str, Any]:
        before = _first_record(self.trainer)
        self.accuracy = before["accuracy"]
        self.folder.append("metrics.jsonl", before)
        trackers.log(before)
        self.view.step(before, self.config.train.steps)
        self._save(0)
        return before

    def _go_on(self, found: Checkpoint) -> dict[str, Any]:
        found.load_weights(self.trainer.policy)
        restore(self.trainer, found.state, found.tensors())
        self.folder.cut_back(found.step)
        self.earlier_seconds = float(found.state["wall_seconds"])
        self.accuracy = found.state["accuracy"]
        self.saved = found.step
        self.view.message(f"Going on from step {found.step}, {found.folder}")
        return self.folder.first_metrics()

    def _train(self, trackers: Trackers, first: int) -> Mapping[str, Any]:
        after: Mapping[str, Any] = self.folder.last_metrics()
        config = self.config

        def told(name: str) -> None:
            self.view.message(f"{name}: stopping after this step; once more stops at once")

        with StopRequest(told) as stop:
            for record in self.trainer.run(first):
                after = record.metrics
                self.accuracy = after.get("accuracy", self.accuracy)
                _keep(record, self.folder, self.view, config)
                trackers.log(after)
                interval = config.checkpoint.interval
                if interval > 0 and record.step % interval == 0:
                    self._save(record.step)
                if stop.received:
                    self._save(record.step)
                    raise KeyboardInterrupt
        return after

    def _save(self, step: int) -> None:
        if self.config.checkpoint.interval == 0 or step == self.saved:
            return
        _refuse_broken_weights(self.trainer, f"step {step}")
        state, tensors = capture(self.trainer)
        state |= {"step": step, "accuracy": self.accuracy, "wall_seconds": self._seconds()}
        self.folder.save_checkpoint(
            self.trainer.policy, state, tensors, self.config.checkpoint.keep
        )
        self.saved = step

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started


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
