"""What a budget remembers of earlier steps, whatever the trainer reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dibs.allocation.history import History

logger = logging.getLogger(__name__)


class Memory:
    """The history of a trainer's prompts, with measured gradient norms or without them.

    ``given``: whether norms have the advantages in them. ``warns``: whether to log, once, that
    ``half_life`` is too short for the data.
    """

    def __init__(
        self,
        half_life: float,
        length_normalization: Literal["none", "sequence"],
        *,
        given: bool = False,
        warns: bool,
    ) -> None:
        self.half_life, self.length_normalization = half_life, length_normalization
        self._kind = f"{length_normalization}, with advantages" if given else length_normalization
        self.history = History(half_life, self._kind)
        self._measured: bool | None = None
        self._warns = warns

    def take_in(
        self, names: Sequence[str], sums: Sequence[np.ndarray], step: int, *, measured: bool
    ) -> None:
        """Add a step's completions, and forget prompts that have not come for long.

        ``measured``: whether they came with gradient norms. The two kinds are never mixed.
        """
        self._keep_apart(measured)
        for name, each in zip(names, sums, strict=True):
            self.history.take_in(name, each, step)
        if self.history.forget(step):
            self.warn("prompts are forgotten before they come back")

    def warn(self, what: str) -> None:
        """Log, once, that the half-life is too short."""
        if self._warns:
            logger.warning(
                "%s: half_life is %g steps, so mode online stays near uniform counts; raise half_life "
                "to the steps of a pass over the data or more, or set mode to pilot",
                what,
                self.half_life,
            )
        self._warns = False

    def state(self) -> dict[str, Any]:
        """Everything remembered, as JSON takes it."""
        return {"measured": self._measured, "history": self.history.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._measured = state.get("measured")
        dropped = self.history.load_state_dict(state["history"])
        if dropped:
            logger.warning(
                "what was known of %d prompts is forgotten: its gradient norms are of another loss, "
                "which divides completions by other lengths or has other advantages",
                dropped,
            )

    def _keep_apart(self, measured: bool) -> None:
        """Forget what came with measured norms where there are none now, or the other way round."""
        if self._measured is not None and self._measured != measured and len(self.history):
            logger.warning(
                "what was known of %d prompts is forgotten: it came %s gradient norms, and what comes "
                "now is %s them",
                len(self.history),
                *(("with", "without") if self._measured else ("without", "with")),
            )
            self.history = History(self.half_life, self._kind)
        self._measured = measured
