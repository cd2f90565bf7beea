"""Checkpoints of a run: written whole, checked before they are used, pruned.

A checkpoint is a folder ``step-N`` that holds the policy, ``state.json`` (the step, the accuracy and
other facts), ``trainer.pt`` (the state of the trainer's parts) and ``checksums.json`` (of all the
others).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dibs.files import checksum, remove_unfinished, whole_folder, write_json
from dibs.model.policy import Policy

_MANIFEST = "checksums.json"
_FACTS = "state.json"
_TRAINER = "trainer.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, and the facts that were saved with it."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return int(self.facts["step"])

    def trainer_state(self) -> dict[str, Any]:
        """The state of the trainer's parts."""
        state: dict[str, Any] = torch.load(
            self.folder / _TRAINER, map_location="cpu", weights_only=True
        )
        return state


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder, which need not exist yet."""

    path: Path

    def newest(self) -> Path | None:
        """The newest checkpoint, whole or not; None where there is none."""
        return next(iter(self._folders()), None)

    def newest_whole(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint whose files are what was written, and what is wrong with newer ones."""
        broken: list[str] = []
        for folder in self._folders():
            fault = _fault(folder)
            if fault is None:
                return Checkpoint(folder, _facts(folder)), broken
            broken.append(f"{folder} is broken: {fault}")
        return None, broken

    def save(
        self,
        policy: Policy,
        facts: Mapping[str, Any],
        trainer_state: Mapping[str, Any],
        keep: int,
    ) -> Path:
        """Save ``step-N``, N being ``facts["step"]``; drop all but the newest ``keep`` and the best.

        The best is the one of highest ``facts["accuracy"]``. Raises OSError, or what else a full disk
        raises, where the checkpoint cannot be written; the earlier ones stay as they are.
        """
        folder = self.path / f"step-{facts['step']:06d}"
        self.path.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as unfinished:
            policy.save(unfinished)
            torch.save(dict(trainer_state), unfinished / _TRAINER)
            write_json(unfinished / _FACTS, facts)
            files = sorted(path for path in unfinished.rglob("*") if path.is_file())
            sums = {str(path.relative_to(unfinished)): checksum(path) for path in files}
            write_json(unfinished / _MANIFEST, sums)
        self._prune(keep)
        return folder

    def set_aside_newer(self, step: int) -> None:
        """Rename the checkpoints of later steps, which are broken, and remove half-written ones."""
        for folder in self._folders():
            if _step_in_name(folder) > step:
                aside = folder.with_name(f"broken-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        remove_unfinished(self.path)

    def _folders(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        return sorted(self.path.glob("step-*"), key=_step_in_name, reverse=True)

    def _prune(self, keep: int) -> None:
        folders = self._folders()
        accuracies = {}
        for folder in folders:
            try:
                accuracy = _facts(folder).get("accuracy")
            except (OSError, ValueError):
                continue
            if accuracy is not None:
                accuracies[folder] = accuracy
        best = max(accuracies, key=lambda f: (accuracies[f], _step_in_name(f)), default=None)
        for folder in folders[keep:]:
            if folder != best:
                shutil.rmtree(folder)


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    return facts


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{_MANIFEST} is missing or damaged"
    if not isinstance(sums, dict) or _FACTS not in sums:
        return f"{_MANIFEST} is damaged"
    if _TRAINER not in sums:
        return f"it has no {_TRAINER}; another version of DIBS wrote it"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if checksum(path) != expected:
            return f"{name} is not what was written"
    return None


def _step_in_name(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1
