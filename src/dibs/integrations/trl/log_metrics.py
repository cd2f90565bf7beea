"""Numbers of a generation batch for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dibs.allocation.reported import is_accepted

TOTALS = ("rollouts", "known_prompts", "pilots")
"""They stand as they are at a time; a mean over the steps between two lines of the log says nothing."""


def group_numbers(rewards: Sequence[Sequence[float]], threshold: float) -> dict[str, float]:
    """Means over the prompts that have judged completions; none without any.

    ``reward`` and ``accept_rate``: every prompt counts once, however many completions it has.
    ``flat``: share of groups without spread.
    """
    drawn = [np.asarray(group) for group in rewards if len(group)]
    if not drawn:
        return {}
    return {
        "reward": float(np.mean([group.mean() for group in drawn])),
        "accept_rate": float(np.mean([is_accepted(group, threshold).mean() for group in drawn])),
        "flat": float(np.mean([np.ptp(group) == 0 for group in drawn])),
    }


def write_notes(metrics: dict[str, list[float]], noted: Mapping[str, Any]) -> None:
    """Into TRL's lists, which it averages when it logs; as ``dibs/...``, numbers only."""
    for name, value in noted.items():
        if isinstance(value, int | float):
            before = [] if name in TOTALS else metrics[f"dibs/{name}"]
            metrics[f"dibs/{name}"] = [*before, float(value)]
