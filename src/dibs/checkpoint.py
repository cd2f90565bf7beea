"""The run folder: metrics, samples, checkpoints and the summary, nothing of it ever half-written.

::

    OUT/config.yaml         the whole configuration
    OUT/metrics.jsonl       one line a step
    OUT/allocations.jsonl   one line a step: every prompt's accept rate and count
    OUT/samples.jsonl       completions shown during training
    OUT/checkpoints/step-N  model and counters
    OUT/model               the final policy
    OUT/summary.json        what the run cost and reached
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from dibs.config import Config
from dibs.policy import Policy
from dibs.types import InputError

LINES = ("metrics.jsonl", "allocations.jsonl", "samples.jsonl")
_CONTENTS = (*LINES, "config.yaml", "summary.json", "checkpoints", "model", "figures", "trackers")


class RunFolder:
    """Writes one run. Create it with :meth:`create` once everything else is known to work."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def check(cls, path: Path, overwrite: bool) -> None:
        """InputError when ``path`` is no folder, or holds a run and may not be overwritten."""
        if path.exists() and not path.is_dir():
            raise InputError(f"output_dir {path} is a file; give a folder")
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not os.access(parent, os.W_OK):
            raise InputError(f"cannot write to output_dir {path}: no permission in {parent}")
        if not overwrite and any((path / name).exists() for name in _CONTENTS):
            raise InputError(
                f"output_dir {path} already holds a run; give another or set overwrite to true"
            )

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Make the folder, removing the parts of an earlier run (and nothing else) if allowed."""
        path = config.output_dir
        cls.check(path, config.overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in _CONTENTS:
                old = path / name
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                else:
                    old.unlink(missing_ok=True)
            for name in LINES:
                (path / name).touch()
            (path / "config.yaml").write_text(
                yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
            )
        except OSError as error:
            raise InputError(f"cannot write to output_dir {path}: {error.strerror}") from None
        return cls(path)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add one line to one of the JSON Lines files."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.path / "summary.json", summary)

    def save_checkpoint(self, policy: Policy, state: Mapping[str, Any], keep: int) -> Path:
        """Save the policy and counters as checkpoints/step-N and drop all but the newest ``keep``."""
        folder = self.path / "checkpoints" / f"step-{state['step']:06d}"
        self._save(policy, folder, state)
        for old in sorted(folder.parent.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
        return folder

    def save_final(self, policy: Policy) -> Path:
        """Save the policy as model."""
        self._save(policy, self.path / "model", None)
        return self.path / "model"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        return max((self.path / "checkpoints").glob("step-*"), default=None)

    def _save(self, policy: Policy, folder: Path, state: Mapping[str, Any] | None) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            policy.save(unfinished)
            if state is not None:
                write_json(unfinished / "state.json", state)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def all_finite(policy: Policy) -> bool:
    """Whether no parameter of the policy is NaN or infinite."""
    return all(bool(torch.isfinite(p).all()) for p in policy.model.parameters())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one rename."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one rename, so that readers see the old one or the new one."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities become null."""
    return json.dumps(_strict(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
