"""What tells whether a resumed run has the prompts that it began with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dibs.config import Config
from dibs.runs.checkpoints import Checkpoint
from dibs.runs.console import View
from dibs.types import InputError

_CLOCK, _HASH = "prompts_clock", "prompts_hash"


def started(found: Checkpoint | None) -> datetime:
    """The time that chat templates write: that of the run's start, which its checkpoints hold."""
    try:
        return datetime.fromisoformat(found.facts[_CLOCK] if found else "")
    except (KeyError, TypeError, ValueError):
        return datetime.now().replace(microsecond=0)


@dataclass(frozen=True)
class PromptsMark:
    """The clock that prompts were rendered with, and a hash of all of them."""

    clock: datetime
    hash: str

    @property
    def facts(self) -> dict[str, Any]:
        """The same, as a checkpoint keeps it."""
        return {_CLOCK: self.clock.isoformat(), _HASH: self.hash}

    def compare(self, found: Checkpoint, config: Config, view: View) -> None:
        """Say that the prompts are others than those of a checkpoint, where they are.

        Raises InputError where the configuration does not allow changes. Checkpoints of earlier versions
        hold no hash; they are taken as they are.
        """
        before = found.facts.get(_HASH)
        if before in (None, self.hash):
            return
        what = (
            f"the prompts are others than those of {found.folder}: the data, the tokenizer or its chat "
            "template changed"
        )
        if not config.allow_changes:
            raise InputError(f"{what}; restore them, or set allow_changes to true")
        view.message(f"Since the run is allowed to change: {what}.")
