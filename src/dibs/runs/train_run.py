"""One training run: from a configuration, or a checkpoint, to a finished folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from dibs.config import Config
from dibs.processes import ALONE, Processes
from dibs.runs.build import build_trainer
from dibs.runs.checkpoints import Checkpoint, all_finite
from dibs.runs.console import View
from dibs.runs.folder import RunFolder
from dibs.runs.resume_state import capture, restore
from dibs.runs.stop_request import StopRequest
from dibs.runs.trackers import Trackers
from dibs.runs.versions import session_line
from dibs.train import Trainer
from dibs.training.records import StepRecord, describe_prompts, sample_records
from dibs.types import InputError, NonFiniteError


def run_training(config: Config, view: View, processes: Processes = ALONE) -> dict[str, Any]:
    """Train as configured, write ``config.output_dir`` and return the summary.

    Everything the user gave is checked before the folder is touched. With ``config.resume`` a run goes
    on from its newest whole checkpoint, or starts again if it was stopped before the first. Raises
    InputError, also when NaN or infinite gradients stopped the run; KeyboardInterrupt after Ctrl-C or
    SIGTERM, when the current step is finished and saved. Of several processes the first writes and
    returns the summary; the others work along and return an empty one.
    """
    if not processes.main:
        _work_along(config, view, processes)
        return {}
    resuming = config.resume == "yes" or (
        config.resume == "auto" and (config.output_dir / "config.yaml").exists()
    )
    if not resuming:
        RunFolder.check(config.output_dir, config.overwrite)
        processes.broadcast(_Plan())
        trainer = build_trainer(config, view, processes)
        with closing(trainer.source), RunFolder.create(config) as folder:
            return _Session(config, view, trainer, folder).run(None)
    with RunFolder.reopen(config) as folder:
        finished = folder.summary()
        if finished is not None and finished["steps"] >= config.train.steps:
            view.message(f"The run in {folder.path} is finished.")
            processes.broadcast(_Plan(finished=True))
            return finished
        found = _newest(folder, config, view)
        processes.broadcast(_Plan(found))
        trainer = build_trainer(config, view, processes)
        with closing(trainer.source):
            if found is None:
                view.message("The run had not reached its first checkpoint; it starts again.")
                folder.clear()
            return _Session(config, view, trainer, folder).run(found)


@dataclass(frozen=True)
class _Plan:
    """What the first process tells the others: whether there is work, and where to go on from."""

    found: Checkpoint | None = None
    finished: bool = False


def _work_along(config: Config, view: View, processes: Processes) -> None:
    """What a process does that does not write: the same steps at the same time."""
    plan = processes.broadcast(_Plan())
    if plan.finished:
        return
    trainer = build_trainer(config, view, processes)
    with closing(trainer.source), StopRequest(lambda name: None) as stop:
        try:
            _same_steps(trainer, plan.found, stop)
        except NonFiniteError as error:
            raise InputError(f"stopped at {error}") from None


def _same_steps(trainer: Trainer, found: Checkpoint | None, stop: StopRequest) -> None:
    if found is None:
        first, after = 1, trainer.evaluate()
    else:
        _load(found, trainer)
        first, after = found.step + 1, {"accuracy": found.state["accuracy"]}
    if _asked_to_stop(trainer, stop, first - 1):
        return
    for record in trainer.run(first):
        after = record.metrics
        if _asked_to_stop(trainer, stop, record.step):
            return
    if after.get("accuracy") is None:
        trainer.evaluate()


def _asked_to_stop(trainer: Trainer, stop: StopRequest, step: int) -> bool:
    """Whether any process heard a signal; after the last step there is nothing left to stop."""
    asked = trainer.source.processes.any(stop.received is not None)
    return asked and step < trainer.config.train.steps


def _load(found: Checkpoint, trainer: Trainer) -> None:
    """Put a checkpoint into a fresh trainer."""
    try:
        trainer.policy.load(found.folder)
        restore(trainer, found.state, found.tensors())
        trainer.source.sampler.update_weights()
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{found.folder} does not fit this configuration: {reason}") from None


def _newest(folder: RunFolder, config: Config, view: View) -> Checkpoint | None:
    """The checkpoint to go on from; None for a run that was stopped before its first."""
    found, broken = folder.newest_whole()
    for fault in broken:
        view.message(fault)
    if found is None and (broken or folder.has_results()):
        raise InputError(
            f"output_dir {folder.path} holds no whole checkpoint to resume from; start again with "
            "overwrite true"
        )
    if found is not None and found.step > config.train.steps:
        raise InputError(
            f"train.steps is {config.train.steps}, but the run in {folder.path} is at step {found.step}"
        )
    return found


@dataclass
class _Session:
    """One process's part of a run: from the start or a checkpoint to the end, or until it is stopped."""

    config: Config
    view: View
    trainer: Trainer
    folder: RunFolder
    earlier_seconds: float = 0.0
    saving_seconds: float = 0.0
    saved: int = -1
    accuracy: float | None = None
    run_ids: Mapping[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def run(self, found: Checkpoint | None) -> dict[str, Any]:
        """Train and return the summary."""
        with StopRequest(self._told) as stop:
            before, after = self._trained(found, stop)
            return self._finish(before, after)

    def _told(self, name: str) -> None:
        self.view.message(f"{name}: stopping after this step; once more stops at once")

    def _trained(
        self, found: Checkpoint | None, stop: StopRequest
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Train to the end and save the policy; the first evaluation and the last."""
        earlier = {} if found is None else found.state.get("trackers")
        first = 1 if found is None else found.step + 1
        try:
            with closing(Trackers(self.config, self.folder.path, earlier, first)) as trackers:
                self.run_ids = trackers.run_ids
                before = self._begin(trackers) if found is None else self._go_on(found)
                after = self._train(trackers, first, stop)
                _refuse_broken_weights(self.trainer, f"step {self.config.train.steps}")
                self.folder.save_final(self.trainer.policy)
                return before, after
        except NonFiniteError as error:
            advice = "lower update.learning_rate or set update.max_grad_norm"
            raise InputError(f"stopped at {error}; {_kept(self.folder)}; {advice}") from None
        except KeyboardInterrupt:
            onward = " The same command with --resume goes on from it." if self.saved >= 0 else ""
            self.view.message(
                f"Interrupted. {self.folder.path} holds the run so far; {_kept(self.folder)}.{onward}"
            )
            raise
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder.path}: {error.strerror or error}; {_kept(self.folder)}; "
                "make room and go on with --resume"
            ) from None

    def _finish(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        """The summary."""
        spent = {"wall_seconds": self._seconds(), "saving_seconds": self.saving_seconds}
        summary = _summary(self.trainer, before, after, spent)
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
        self._note_session(0)
        before = _first_record(self.trainer)
        self.accuracy = before["accuracy"]
        self.folder.append("metrics.jsonl", before)
        trackers.log(before)
        self.view.step(before, self.config.train.steps)
        if self._checkpoint_is_due(0):
            self._save(0)
        return before

    def _go_on(self, found: Checkpoint) -> dict[str, Any]:
        _load(found, self.trainer)
        self.earlier_seconds = float(found.state["wall_seconds"])
        self.saving_seconds = float(found.state.get("saving_seconds", 0.0))
        self.folder.cut_back(found.step)
        self.folder.set_aside_newer(found)
        self.folder.write_config(self.config)
        self._note_session(found.step)
        self.saved = found.step
        self.view.message(f"Going on from step {found.step}, {found.folder}")
        return self.folder.metrics(0)

    def _note_session(self, step: int) -> None:
        device, processes = self.trainer.policy.device, self.trainer.source.processes.size
        self.folder.append("sessions.jsonl", session_line(step, str(device), processes))

    def _train(self, trackers: Trackers, first: int, stop: StopRequest) -> Mapping[str, Any]:
        after: Mapping[str, Any] = self.folder.metrics(first - 1)
        config = self.config
        self._stop_if_asked(stop, first - 1)
        for record in self.trainer.run(first):
            after = record.metrics
            self.accuracy = after.get("accuracy")
            _keep(record, self.folder, self.view, config)
            trackers.log(after)
            if self._checkpoint_is_due(record.step):
                self._save(record.step)
            self._stop_if_asked(stop, record.step)
        if after.get("accuracy") is None:  # a run resumed after what is now its last step
            after = {**after, **self.trainer.evaluate()}
        return after

    def _stop_if_asked(self, stop: StopRequest, step: int) -> None:
        """Save and leave; after the last step only the policy and figures are left to write."""
        if _asked_to_stop(self.trainer, stop, step):
            self._save(step)
            raise KeyboardInterrupt

    def _checkpoint_is_due(self, step: int) -> bool:
        interval = self.config.checkpoint.interval
        return interval > 0 and step % interval == 0

    def _save(self, step: int) -> None:
        if step == self.saved:
            return
        began = time.perf_counter()
        _refuse_broken_weights(self.trainer, f"step {step}")
        state, tensors = capture(self.trainer)
        state |= {
            "step": step,
            "accuracy": self.accuracy,
            "wall_seconds": self._seconds(),
            "saving_seconds": self.saving_seconds,
            "trackers": self.run_ids,
        }
        self.folder.save_checkpoint(
            self.trainer.policy, state, tensors, self.config.checkpoint.keep
        )
        self.saved = step
        self.saving_seconds += time.perf_counter() - began

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started


def _kept(folder: RunFolder) -> str:
    checkpoint = folder.last_checkpoint()
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was saved"


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
        for sample in sample_records(*facts, config.tracking.samples):
            folder.append("samples.jsonl", sample)
        view.samples(sample_records(*facts))
    if record.metrics["learned"] == 0:
        why = "every group was all alike" if record.metrics["accepted"] else "nothing was accepted"
        view.message(f"step {record.step}: {why}, so there is nothing to learn from it")


def _refuse_broken_weights(trainer: Trainer, where: str) -> None:
    if not all_finite(trainer.policy):
        raise NonFiniteError(f"{where}: the weights are NaN or infinite")


def _summary(
    trainer: Trainer,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    spent: Mapping[str, float],
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
        **spent,
        "accuracy_before": before["accuracy"],
        "accuracy_before_low": before["accuracy_low"],
        "accuracy_before_high": before["accuracy_high"],
        "accuracy_after": after["accuracy"],
        "accuracy_after_low": after["accuracy_low"],
        "accuracy_after_high": after["accuracy_high"],
        "pass_at_k_before": before["pass_at_k"],
        "pass_at_k_after": after["pass_at_k"],
    }
