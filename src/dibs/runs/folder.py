"""The run folder: metrics, samples, checkpoints and the summary, nothing of it ever half-written.

::

    OUT/config.yaml         the whole configuration
    OUT/metrics.jsonl       one line a step
    OUT/allocations.jsonl   one line a step: every prompt's accept rate and count
    OUT/samples.jsonl       completions shown during training
    OUT/sessions.jsonl      one line a start or resumption: when, on what, with which versions
    OUT/checkpoints/step-N  a checkpoint; see :mod:`dibs.runs.checkpoints`
    OUT/model               the final policy
    OUT/summary.json        what the run cost and reached
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from dibs.config import Config
from dibs.config.changes import changed_keys
from dibs.config.secrets import without_secrets
from dibs.files import (
    read_whole_lines,
    remedy,
    remove_unfinished,
    sync,
    to_json,
    whole_folder,
    write_json,
    write_text,
)
from dibs.model.policy import Policy
from dibs.runs.checkpoints import Checkpoint, Checkpoints
from dibs.types import InputError

LINES = ("metrics.jsonl", "allocations.jsonl", "samples.jsonl")
_CONTENTS = (
    *LINES,
    "sessions.jsonl",
    "config.yaml",
    "shape.json",
    "summary.json",
    "checkpoints",
    "model",
    "figures",
    "trackers",
)
_IN_SUMMARY = {
    "steps",
    "accuracy_before",
    "accuracy_after",
    "accuracy_after_low",
    "accuracy_after_high",
    "optimizer_updates",
    "rollouts",
    "pilot_rollouts",
    "wall_seconds",
}
"""What a summary must hold, since ``dibs train`` prints it for a run that is finished already."""
_OF_NO_STEP = {"config.yaml", "sessions.jsonl", "shape.json", "trackers"}
"""What a run that has no step yet may have written besides its empty files."""
_LOCK, _HOLDER = ".lock", ".holder"
"""Files that say whether a process runs in the folder, and which one did last."""


@dataclass(frozen=True)
class Plan:
    """What a run has to do, as its folder shows it.

    ``found``: the checkpoint to go on from; None for a run that begins. ``restarts``: whether an earlier
    run was stopped before its first checkpoint. ``summary``: of a run that is finished already.
    ``faults``: what is wrong with newer checkpoints, a line each.
    """

    found: Checkpoint | None = None
    restarts: bool = False
    summary: Mapping[str, Any] | None = None
    faults: tuple[str, ...] = ()

    @property
    def first_step(self) -> int:
        """The first step to train."""
        return 1 if self.found is None else self.found.step + 1


class RunFolder:
    """Writes one run. Call :meth:`open`, and :meth:`begin` once all else is known to work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._lock = FileLock(path / _LOCK, timeout=0, thread_local=False)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.unlock()

    @classmethod
    def check(cls, path: Path, overwrite: bool) -> None:
        """InputError when ``path`` is no folder, or holds a run and may not be overwritten."""
        if path.exists() and not path.is_dir():
            raise InputError(f"output_dir {path} is a file; give a folder")
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        try:
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=parent):
                pass  # found out now, before anything is loaded
        except OSError as error:
            raise InputError(
                f"cannot write to output_dir {path}: {error.strerror} in {parent}"
            ) from None
        empty = {
            name for name in LINES if (path / name).exists() and not (path / name).stat().st_size
        }
        # All three are made when a run begins; a run that ended before its first line is no loss.
        parts = {*_CONTENTS} - empty - (set() if empty != {*LINES} else _OF_NO_STEP)
        if not overwrite and any((path / name).exists() for name in parts):
            raise InputError(
                f"output_dir {path} already holds a run; give another, go on with --resume, or set "
                "overwrite to true"
            )

    def open(self, config: Config) -> Plan:
        """Find out what there is to do, and keep other processes out of a run that goes on.

        Raises InputError where the run cannot begin or go on as configured: the folder holds another
        run, or none to resume, or no whole checkpoint; another process runs in it; or its configuration
        is another and ``allow_changes`` is not set.
        """
        started = (self.path / "config.yaml").exists()
        if config.resume == "no" or (config.resume == "auto" and not started):
            self.check(self.path, config.overwrite)
            return Plan()
        # A run that has just begun is locked before it has a configuration.
        if started or (self.path / _LOCK).exists():
            self.lock()
        changed = changed_keys(config)
        if changed and not config.allow_changes:
            raise InputError(
                f"the run in {self.path} has another configuration ({'; '.join(changed)}); undo the "
                "changes, or set allow_changes to true"
            )
        summary = self.summary()
        if summary is not None and summary["steps"] >= config.train.steps:
            return Plan(summary=summary)
        found, broken = self.checkpoints.newest_whole()
        if found is None and (broken or self.has_results()):
            raise InputError(
                f"output_dir {self.path} holds no whole checkpoint to resume from"
                f"{''.join(f'; {fault}' for fault in broken)}; start again with overwrite true"
            )
        if found is not None and found.step > config.train.steps:
            raise InputError(
                f"train.steps is {config.train.steps}, but the run in {self.path} is at step "
                f"{found.step}"
            )
        return Plan(found, restarts=found is None, faults=tuple(broken))

    def begin(self, config: Config, plan: Plan) -> None:
        """Make the folder, clear it of an earlier run (and nothing else), or go back to a checkpoint.

        Raises InputError where that is not possible.
        """
        try:
            if plan.found is None:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock()
                # In this order a kill in between leaves no run, rather than a mixture of two.
                (self.path / "config.yaml").unlink(missing_ok=True)
                self.clear()
            else:
                # The run has not reached its new end; until then it is not finished.
                (self.path / "summary.json").unlink(missing_ok=True)
                self.cut_back(plan.found.step)
                self.checkpoints.set_aside_newer(plan.found.step)
            remove_unfinished(self.path)
            self.write_config(config)
        except OSError as error:
            onward = "" if plan.found is None else f"; {remedy(error)} and go on with --resume"
            raise InputError(
                f"cannot write to output_dir {self.path}: {error.strerror}{onward}"
            ) from None

    def write_config(self, config: Config) -> None:
        """Write config.yaml: what the run is, and not how it was called, so that it can be run anew.

        Secrets are left out; a run that needs them gets them from the command line again.
        """
        anew = {"resume": "no", "overwrite": False, "allow_changes": False}
        values = {**without_secrets(config.model_dump(mode="json")), **anew}
        text = yaml.safe_dump(values, sort_keys=False)
        write_text(self.path / "config.yaml", text)

    def has_results(self) -> bool:
        """Whether more is here than the beginning of a run."""
        return any((self.path / name).exists() for name in ("model", "summary.json"))

    def clear(self) -> None:
        """Remove all parts of a run but its configuration."""
        for name in _CONTENTS:
            old = self.path / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            elif name != "config.yaml":
                old.unlink(missing_ok=True)
        for name in LINES:
            (self.path / name).touch()

    def lock(self) -> None:
        """Keep other processes out until this one ends. InputError where one is in."""
        holder = self.path / _HOLDER
        try:
            self._lock.acquire()
        except Timeout:
            known = holder.read_text(encoding="utf-8").strip() if holder.exists() else ""
            raise InputError(
                f"output_dir {self.path} is in use by {known or 'another process'}"
            ) from None
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        holder.write_text(f"process {os.getpid()}, started {started}\n", encoding="utf-8")

    def unlock(self) -> None:
        """Let other processes in."""
        self._lock.release(force=True)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add one line to one of the JSON Lines files."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")

    def cut_back(self, step: int) -> None:
        """Drop the lines of steps after ``step``, and one that was cut off."""
        for name in LINES:
            lines = read_whole_lines(self.path / name)
            kept = [line for line, record in lines if record.get("step", step + 1) <= step]
            self._rewrite(name, kept)
        # Sessions stay, also those whose steps are lost.
        sessions = "sessions.jsonl"
        self._rewrite(sessions, [line for line, _ in read_whole_lines(self.path / sessions)])
        known = [record["step"] for _, record in read_whole_lines(self.path / "metrics.jsonl")]
        if known != list(range(step + 1)):
            raise InputError(f"{self.path / 'metrics.jsonl'} does not hold steps 0 to {step}")

    def _rewrite(self, name: str, lines: Sequence[bytes]) -> None:
        write_text(self.path / name, b"".join(lines).decode("utf-8"))

    def metrics(self, step: int) -> dict[str, Any]:
        """The line of metrics.jsonl of a step."""
        return read_whole_lines(self.path / "metrics.jsonl")[step][1]

    def summary(self) -> dict[str, Any] | None:
        """What a finished run left; None where it is not finished. InputError where it is damaged."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            summary = None
        whole = isinstance(summary, dict) and summary.keys() >= _IN_SUMMARY
        if not whole or not isinstance(summary["steps"], int):
            raise InputError(f"{path} is damaged; remove it and go on with --resume")
        return dict(summary)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.path / "summary.json", summary)

    def save_checkpoint(
        self,
        policy: Policy,
        facts: Mapping[str, Any],
        trainer_state: Mapping[str, Any],
        keep: int,
    ) -> Path:
        """Save a checkpoint; see :meth:`.Checkpoints.save`. InputError where it cannot be written."""
        with self._room_for(f"checkpoint step-{facts['step']:06d} in {self.checkpoints.path}"):
            for name in LINES:  # the checkpoint builds on them, so they are on disk before it is
                sync(self.path / name)
            return self.checkpoints.save(policy, facts, trainer_state, keep)

    def save_final(self, policy: Policy) -> None:
        """Save the policy as model; InputError where it cannot be written."""
        path = self.path / "model"
        with self._room_for(str(path)), whole_folder(path) as unfinished:
            policy.save_merged(unfinished)

    @contextmanager
    def _room_for(self, what: str) -> Iterator[None]:
        """Raise InputError where weights cannot be written."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            last = self.checkpoints.newest()
            raise InputError(
                f"{what} cannot be written: {getattr(error, 'strerror', None) or error}; "
                + (f"{last} is whole" if last else "there is no checkpoint yet")
                + f"; {remedy(error)} and go on with --resume"
            ) from None
