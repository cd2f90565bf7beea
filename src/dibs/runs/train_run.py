"""One training run: from a configuration, or a checkpoint, to a finished folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch

from dibs.config import Config
from dibs.config.changes import flat_keys
from dibs.files import one_line, remedy
from dibs.loop import Trainer
from dibs.processes import ALONE, Processes
from dibs.rollouts.source import DrawCost, Purpose
from dibs.runs.build import build_trainer
from dibs.runs.checkpoints import Checkpoint
from dibs.runs.console import NoView, View
from dibs.runs.folder import Plan, RunFolder
from dibs.runs.measured_shape import keep_shape, kept_shape, measured_shape, with_shape
from dibs.runs.prompts_mark import PromptsMark, started
from dibs.runs.resume_state import load_trainer_state, trainer_state
from dibs.runs.stop_request import StopRequest
from dibs.runs.trackers import NoTrackers, Trackers
from dibs.runs.versions import session_line
from dibs.training.records import StepRecord, describe_prompts, sample_records
from dibs.types import InputError, NonFiniteError, NoVerdictError

_Result = TypeVar("_Result")


def run_training(config: Config, view: View, processes: Processes = ALONE) -> dict[str, Any]:
    """Train as configured, write ``config.output_dir`` and return the summary.

    Everything that the user gave is checked before the folder is touched. With ``config.resume`` a run
    goes on from its newest whole checkpoint; if it was stopped before the first one, it starts again.

    All processes of a run go through the same calls. Only the main one has trackers and a view; the
    others have stand-ins that do nothing. What the main process alone may do, such as all that happens
    in the folder, is done through :meth:`.Processes.from_main`, so that an error of it ends all of them.

    Raises InputError, also when NaN or infinite gradients stopped the run. Raises KeyboardInterrupt
    after Ctrl-C or SIGTERM, once the step under way is finished and saved.
    """
    view = view if processes.main else NoView()
    with RunFolder(config.output_dir) as folder:
        plan = processes.from_main(lambda: folder.open(config))
        for fault in plan.faults:
            view.message(fault)
        if plan.summary is not None:
            view.message(f"The run in {folder.path} is finished.")
            return dict(plan.summary)
        if plan.restarts:
            view.message("The run had not reached its first checkpoint; it starts again.")
        shape = _shape(config, view, processes, plan)
        shaped = config if shape is None else with_shape(config, shape)
        clock = processes.broadcast(started(plan.found))
        trainer = build_trainer(shaped, view, processes, clock)
        prompts = PromptsMark(clock, trainer.prompts.fingerprint())
        with closing(trainer.source):
            if plan.found is not None:
                prompts.compare(plan.found, config, view)
                _load(plan.found, trainer)
            elif shape is not None:
                trainer.totals.add_draw(DrawCost(**shape["drawn"]), Purpose.PILOT)

            def begin() -> None:
                folder.begin(config, plan)
                if shape is not None:
                    keep_shape(folder.path, shape)

            processes.from_main(begin)
            return _Session(shaped, view, trainer, folder, processes, plan, prompts).run()


def _shape(config: Config, view: View, processes: Processes, plan: Plan) -> dict[str, Any] | None:
    """The shape that was measured for the run; None where it is given."""
    if config.train.shape == "given":
        return None
    if plan.found is not None:
        return processes.from_main(lambda: kept_shape(config.output_dir))
    return processes.from_main(lambda: measured_shape(config, view))


def _load(found: Checkpoint, trainer: Trainer) -> None:
    """Put a checkpoint into a fresh trainer."""
    try:
        trainer.policy.load(found.folder)
        load_trainer_state(trainer, found.trainer_state())
        trainer.source.sampler.update_weights()
    except (KeyError, ValueError, TypeError, RuntimeError, UnpicklingError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{found.folder} does not fit this configuration: {reason}") from None


@dataclass
class _Session:
    """A run from its start, or from a checkpoint, to its end, or until it is stopped.

    ``saved``: the step of the last checkpoint, -1 for none. ``step``: the last that is finished.
    ``accuracy``: of that step, None where it was not evaluated. ``earlier_seconds``: of the run before
    it was resumed.
    """

    config: Config
    view: View
    trainer: Trainer
    folder: RunFolder
    processes: Processes
    plan: Plan
    prompts: PromptsMark
    earlier_seconds: float = 0.0
    saving_seconds: float = 0.0
    saved: int = -1
    step: int = 0
    accuracy: float | None = None
    trackers: Trackers | NoTrackers = field(default_factory=NoTrackers)
    started: float = field(default_factory=time.perf_counter)

    def run(self) -> dict[str, Any]:
        """Train and return the summary."""
        with StopRequest(self._heard) as stop:
            before, after = self._trained(stop)
            # A signal that comes now is too late: the run is finished.
            summary = self._summary(before, after)
            self._in_folder(lambda: self.folder.write_summary(summary))
        if summary["learned_rollouts"] == 0:
            self.view.message(
                f"No completion of the whole run gave anything to learn from: "
                f"{summary['accepted_rollouts']} were accepted. Look at "
                f"{self.folder.path / 'samples.jsonl'}; a stronger policy, easier prompts or another "
                "verifier is needed."
            )
        return summary

    def _heard(self, name: str) -> None:
        self.view.message(f"{name}: stopping after this step; once more stops at once")

    def _trained(self, stop: StopRequest) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Train to the end, save the policy, and return the first and the last evaluation."""
        try:
            self.processes.from_main(self._open_trackers)
            with closing(self.trackers):
                before = self._begin() if self.plan.found is None else self._go_on(self.plan.found)
                after = self._train(stop)
                self._in_folder(self._save_final)
                return before, after
        except NonFiniteError as error:
            advice = "lower update.learning_rate or set update.max_grad_norm"
            if self.trainer.totals.optimizer_updates == 0:  # training is not to blame
                advice = (
                    f"no update was made yet, so policy.model {self.config.policy.model} itself gives "
                    "them; try policy.dtype float32, or another model"
                )
            raise InputError(f"stopped at {error}; {self._last_good()}; {advice}") from None
        except NoVerdictError as error:
            self._in_folder(partial(self._save, self.step))
            raise InputError(
                f"stopped at {error}; {self._last_good()}; mend "
                f"{self.config.verify.named} and go on with --resume"
            ) from None
        except KeyboardInterrupt:
            onward = " The same command with --resume goes on from it." if self.saved >= 0 else ""
            self.view.message(
                f"Interrupted. {self.folder.path} holds the run so far; {self._last_good()}.{onward}"
            )
            raise
        except OSError as error:  # of a server, say
            raise InputError(
                f"stopped by {one_line(error)}; {self._last_good()}; go on with --resume once that is "
                "mended"
            ) from error

    def _in_folder(self, work: Callable[[], _Result]) -> _Result:
        """What ``work()``, which reads or writes the run folder, returns in the main process."""

        def tried() -> _Result:
            try:
                return work()
            except OSError as error:
                raise InputError(
                    f"cannot write to {self.folder.path}: {error.strerror or error}; "
                    f"{self._last_good()}; {remedy(error)} and go on with --resume"
                ) from None

        return self.processes.from_main(tried)

    def _open_trackers(self) -> None:
        """Replace the stand-in, which the other processes keep."""
        found = self.plan.found
        earlier = {} if found is None else found.facts["trackers"]
        self.trackers = Trackers(
            self.config, self.folder.path, earlier, self.plan.first_step, self.view.message
        )

    def _begin(self) -> Mapping[str, Any]:
        """The first evaluation, which is the record of step 0."""
        self._in_folder(lambda: self._note_session(0))
        try:
            with self.trainer.phase("evaluate"):
                scores = self.trainer.evaluate()
        except NonFiniteError as error:
            raise NonFiniteError(f"the first evaluation: {error}") from None
        first = {"step": 0, **asdict(self.trainer.totals), **scores}
        self.accuracy = first["accuracy"]
        self._in_folder(partial(self._keep_first, first))
        self.trainer.require_verdicts("the first evaluation")
        return first

    def _go_on(self, found: Checkpoint) -> Mapping[str, Any]:
        """Take up the counters of a checkpoint; the record of step 0."""
        self.earlier_seconds = float(found.facts["wall_seconds"])
        self.saving_seconds = float(found.facts["saving_seconds"])
        self.accuracy = found.facts["accuracy"]
        self.saved = self.step = found.step
        self.view.message(f"Going on from step {found.step}, {found.folder}")
        self._in_folder(lambda: self._note_session(found.step))
        return self._in_folder(lambda: self.folder.metrics(0))

    def _train(self, stop: StopRequest) -> Mapping[str, Any]:
        """Train the steps that are left; the metrics of the last one, with an evaluation."""
        first = self.plan.first_step
        after = self._in_folder(lambda: self.folder.metrics(first - 1))
        self._stop_if_asked(stop, first - 1)
        for record in self.trainer.run(first):
            after = record.metrics
            self.accuracy = after.get("accuracy")
            self.step = record.step
            self._in_folder(partial(self._keep, record))
            self._stop_if_asked(stop, record.step)
        if "accuracy" not in after:  # a run resumed after what is now its last step
            after = {**after, **self.trainer.evaluate()}
            self.trainer.require_verdicts("the last evaluation")
        return after

    def _stop_if_asked(self, stop: StopRequest, step: int) -> None:
        """Save and leave if any process received a signal, unless the last step is done."""
        asked = self.processes.any(stop.received is not None)
        if asked and step < self.config.train.steps:
            self._in_folder(partial(self._save, step))
            raise KeyboardInterrupt

    def _keep_first(self, metrics: Mapping[str, Any]) -> None:
        """Write and show the first evaluation."""
        self.folder.append("metrics.jsonl", metrics)
        self.trackers.log(metrics)
        self.view.step(metrics, self.config.train.steps)
        if self._checkpoint_is_due(0):
            self._save(0)

    def _keep(self, record: StepRecord) -> None:
        """Write and show a step, and save a checkpoint if one is due."""
        tracking, steps = self.config.tracking, self.config.train.steps
        facts = (record.step, record.groups, record.stats, record.allocation)
        self.folder.append("metrics.jsonl", record.metrics)
        self.folder.append("allocations.jsonl", describe_prompts(*facts))
        self.view.step(record.metrics, steps)
        if record.metrics.get("level", 1) < self.trainer.curriculum.level:
            self.view.message(self.trainer.curriculum.announcement())
        interval = tracking.samples_interval
        if interval > 0 and (record.step == 1 or record.step % interval == 0):
            for sample in sample_records(*facts, tracking.samples):
                self.folder.append("samples.jsonl", sample)
            self.view.samples(sample_records(*facts))
        if record.metrics["learned"] == 0:
            accepted = record.metrics["accepted"]
            why = "every group was all alike" if accepted else "nothing was accepted"
            self.view.message(f"step {record.step}: {why}, so there is nothing to learn from it")
        self.trackers.log(record.metrics)
        if self._checkpoint_is_due(record.step):
            self._save(record.step)

    def _note_session(self, step: int) -> None:
        device, settings = str(self.trainer.policy.device), flat_keys(self.config.model_dump())
        line = session_line(step, device, self.processes.size, settings)
        self.folder.append("sessions.jsonl", line)

    def _checkpoint_is_due(self, step: int) -> bool:
        interval = self.config.checkpoint.interval
        return interval > 0 and step % interval == 0

    def _save(self, step: int) -> None:
        """Save a checkpoint, unless the step has one."""
        if step == self.saved:
            return
        began = time.perf_counter()
        self._refuse_broken_weights(step)
        facts = {
            "step": step,
            "accuracy": self.accuracy,
            "wall_seconds": self._seconds(),
            "saving_seconds": self.saving_seconds,
            "trackers": self.trackers.run_ids,
            **self.prompts.facts,
        }
        keep = self.config.checkpoint.keep
        self.folder.save_checkpoint(self.trainer.policy, facts, trainer_state(self.trainer), keep)
        self.saved = step
        self.saving_seconds += time.perf_counter() - began

    def _save_final(self) -> None:
        self._refuse_broken_weights(self.config.train.steps)
        self.folder.save_final(self.trainer.policy)

    def _refuse_broken_weights(self, step: int) -> None:
        parameters = self.trainer.policy.model.parameters()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            raise NonFiniteError(f"step {step}: the weights are NaN or infinite")

    def _last_good(self) -> str:
        checkpoint = self.folder.checkpoints.newest()
        return (
            f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was saved"
        )

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def _summary(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        ends = {"before": before, "after": after}
        accuracies = {
            key.replace("accuracy", f"accuracy_{end}"): scores[key]
            for end, scores in ends.items()
            for key in ("accuracy", "accuracy_low", "accuracy_high")
        }
        return {
            "algorithm": config.algorithm.name,
            "objective": config.algorithm.objective,
            "baseline": config.algorithm.baseline,
            "estimator": config.algorithm.estimator,
            "allocator": config.allocate.allocator,
            "seed": config.seed,
            "steps": config.train.steps,
            **asdict(self.trainer.totals),
            "wall_seconds": self._seconds(),
            "saving_seconds": self.saving_seconds,
            **accuracies,
            **{f"pass_at_k_{end}": scores["pass_at_k"] for end, scores in ends.items()},
        }
