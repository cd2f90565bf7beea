"""The run folder: metrics, samples, checkpoints and the summary, nothing of it ever half-written.

::

    OUT/config.yaml         the whole configuration
    OUT/metrics.jsonl       one line a step
    OUT/allocations.jsonl   one line a step: every prompt's accept rate and count
    OUT/samples.jsonl       completions shown during training
    OUT/sessions.jsonl      one line a start or resumption: when, on what, with which versions
    OUT/checkpoints/step-N  model, state.json, tensors.safetensors, and a checksum of each file
    OUT/model               the final policy
    OUT/summary.json        what the run cost and reached
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dibs.config import Config
from dibs.config.changes import changed_keys
from dibs.files import checksum, sync, to_json, write_json, write_text
from dibs.model.policy import Policy
from dibs.runs.checkpoints import _MANIFEST, Checkpoint, _fault, _step_in_name
from dibs.types import InputError

LINES = ("metrics.jsonl", "allocations.jsonl", "samples.jsonl")
_CONTENTS = (
    *LINES,
    "sessions.jsonl",
    "config.yaml",
    "summary.json",
    "checkpoints",
    "model",
    "figures",
    "trackers",
)


class RunFolder:
    """Writes one run. Create it with :meth:`create` once everything else is known to work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

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
        if not os.access(parent, os.W_OK):
            raise InputError(f"cannot write to output_dir {path}: no permission in {parent}")
        empty = {
            name for name in LINES if (path / name).exists() and not (path / name).stat().st_size
        }
        if not overwrite and any((path / name).exists() for name in {*_CONTENTS} - empty):
            raise InputError(
                f"output_dir {path} already holds a run; give another, go on with --resume, or set "
                "overwrite to true"
            )

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Make the folder, removing the parts of an earlier run (and nothing else) if allowed."""
        path = config.output_dir
        cls.check(path, config.overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            folder.lock()
            # In this order a kill in between leaves no run, rather than a mixture of two.
            (path / "config.yaml").unlink(missing_ok=True)
            folder.clear()
            folder.write_config(config)
        except OSError as error:
            raise InputError(f"cannot write to output_dir {path}: {error.strerror}") from None
        return folder

    @classmethod
    def reopen(cls, config: Config) -> RunFolder:
        """The folder of a run that is to go on.

        Raises InputError where it holds none, another process runs in it, or the configuration is
        another than the run's and ``allow_changes`` is not set.
        """
        path = config.output_dir
        folder = cls(path)
        # A run that has just begun is locked before it has a configuration.
        if (path / ".lock").exists() or (path / "config.yaml").exists():
            folder.lock()
        try:
            changed = changed_keys(config)
            if changed and not config.allow_changes:
                raise InputError(
                    f"the run in {path} has another configuration ({'; '.join(changed)}); undo the "
                    "changes, or set allow_changes to true"
                )
        except InputError:
            folder.unlock()
            raise
        return folder

    def write_config(self, config: Config) -> None:
        """Write config.yaml."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_text(self.path / "config.yaml", text)

    def has_results(self) -> bool:
        """Whether more is here than a run's beginning."""
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
        self._lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self.unlock()
            raise InputError(f"output_dir {self.path} is in use by {holder}") from None
        self._lock.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._lock.write(f"process {os.getpid()}, started {started}\n")
        self._lock.flush()

    def unlock(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add one line to one of the JSON Lines files."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")

    def cut_back(self, step: int) -> None:
        """Drop the lines of steps after ``step``, and one that was cut off."""
        for name in LINES:
            kept = [line for line in self._lines(name) if _step_of(line) <= step]
            write_text(self.path / name, b"".join(kept).decode("utf-8"))
        known = [_step_of(line) for line in self._lines("metrics.jsonl")]
        if known != list(range(step + 1)):
            raise InputError(f"{self.path / 'metrics.jsonl'} does not hold steps 0 to {step}")

    def metrics(self, step: int) -> dict[str, Any]:
        """The line of metrics.jsonl of a step."""
        record: dict[str, Any] = json.loads(self._lines("metrics.jsonl")[step])
        return record

    def _lines(self, name: str) -> list[bytes]:
        """Lines with their ends; text may hold any other mark that separates lines."""
        path = self.path / name
        content = path.read_bytes() if path.exists() else b""
        return [line + b"\n" for line in content.split(b"\n") if line]

    def summary(self) -> dict[str, Any] | None:
        """What a finished run left; None where it is not finished."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.path / "summary.json", summary)

    def save_checkpoint(
        self,
        policy: Policy,
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        keep: int,
    ) -> Path:
        """Save a run as checkpoints/step-N; drop all but the newest ``keep`` and the best.

        The best is the one of highest ``accuracy`` in its state. Raises InputError where it cannot be
        written; the earlier ones stay as they are.
        """
        folder = self.path / "checkpoints" / f"step-{state['step']:06d}"
        try:
            self._save(policy, folder, state, tensors)
        except (OSError, SafetensorError) as error:
            last = self.last_checkpoint()
            raise InputError(
                f"checkpoint {folder} cannot be written: {getattr(error, 'strerror', None) or error}; "
                + (f"{last} is whole" if last else "there is none yet")
                + "; make room and go on with --resume"
            ) from None
        self._prune(keep)
        return folder

    def save_final(self, policy: Policy) -> Path:
        """Save the policy as model; OSError where it cannot be written."""
        self._save(policy, self.path / "model", None, {})
        return self.path / "model"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        return next(iter(self._checkpoints()), None)

    def _checkpoints(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        return sorted((self.path / "checkpoints").glob("step-*"), key=_step_in_name, reverse=True)

    def newest_whole(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint whose files are what was written, and what is wrong with newer ones."""
        broken: list[str] = []
        for folder in self._checkpoints():
            fault = _fault(folder)
            if fault is None:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                return Checkpoint(folder, state), broken
            broken.append(f"{folder} is broken: {fault}")
        return None, broken

    def set_aside_newer(self, found: Checkpoint) -> None:
        """Take checkpoints newer than the one a run goes on from out of the count: they are broken."""
        for folder in self._checkpoints():
            if _step_in_name(folder) > found.step:
                aside = folder.with_name(f"broken-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)

    def _prune(self, keep: int) -> None:
        folders = self._checkpoints()
        accuracies = {}
        for folder in folders:
            try:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if state.get("accuracy") is not None:
                accuracies[folder] = state["accuracy"]
        best = max(accuracies, key=lambda f: (accuracies[f], _step_in_name(f)), default=None)
        for folder in folders[keep:]:
            if folder != best:
                shutil.rmtree(folder)

    def _save(
        self,
        policy: Policy,
        folder: Path,
        state: Mapping[str, Any] | None,
        tensors: Mapping[str, Tensor],
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            if state is None:
                policy.save_merged(unfinished)
            else:
                policy.save(unfinished)
                save_file(dict(tensors), unfinished / "tensors.safetensors")
                write_json(unfinished / "state.json", state)
                files = sorted(p for p in unfinished.rglob("*") if p.is_file())
                sums = {str(p.relative_to(unfinished)): checksum(p) for p in files}
                write_json(unfinished / _MANIFEST, sums)
                for name in LINES:  # what a checkpoint builds on must be on disk before it
                    sync(self.path / name)
            for path in (*unfinished.rglob("*"), unfinished):
                sync(path)
            unfinished.chmod(0o755)
            if folder.exists():  # a broken one, or of a run that is done again
                shutil.rmtree(folder)
            unfinished.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _step_of(line: bytes) -> float:
    """The step of a JSON line; infinity for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
