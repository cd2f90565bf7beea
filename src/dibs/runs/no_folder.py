"""What stands in for the run folder in processes that do not write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dibs.config import Config
from dibs.model.policy import Policy
from dibs.runs.checkpoints import Checkpoints
from dibs.runs.folder import Plan


class NoFolder:
    """The methods of :class:`.RunFolder` that a run calls; they do nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")

    def __enter__(self) -> NoFolder:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def open(self, config: Config) -> Plan:
        """A run that begins; the main process decides what there is to do."""
        return Plan()

    def begin(self, config: Config, plan: Plan) -> None:
        """Nothing."""

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def metrics(self, step: int) -> dict[str, Any]:
        """No metrics."""
        return {}

    def save_checkpoint(
        self, policy: Policy, facts: Mapping[str, Any], trainer_state: Mapping[str, Any], keep: int
    ) -> Path:
        """Nothing; where the checkpoint would be."""
        return self.checkpoints.path

    def save_final(self, policy: Policy) -> None:
        """Nothing."""

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""
