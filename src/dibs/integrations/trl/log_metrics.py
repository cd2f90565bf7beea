"""Numbers of a generation batch for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dibs.allocation.reported import is_accepted

TOTALS = ("rollouts", "known_prompts", "pilots")
"""Numbers of which the latest is logged. Others are averaged over the steps between two log lines."""


def group_numbers(rewards: Sequence[Sequence[float]], threshold: float) -> dict[str, float]:
    """Return means over the prompts that have judged completions; empty if there are none.

    ``reward`` and ``accept_rate`` are means over prompts of each prompt's mean. ``flat`` is the share of
    groups whose rewards are all equal.
    """
    drawn = [np.asarray(group) for group in rewards if len(group)]
    if not drawn:
        return {}
    return {
        "reward": float(np.mean([group.mean() for group in drawn])),
        "accept_rate": float(np.mean([is_accepted(group, threshold).mean() for group in drawn])),
        "flat": float(np.mean([np.ptp(group) == 0 for group in drawn])),
    }


def log_numbers(metrics: dict[str, list[float]], values: Mapping[str, Any]) -> None:
    """Append the numbers in ``values`` to TRL's lists as ``dibs/NAME``; TRL averages and logs them."""
    for name, value in values.items():
        if isinstance(value, int | float):
            before = [] if name in TOTALS else metrics[f"dibs/{name}"]
            metrics[f"dibs/{name}"] = [*before, float(value)]
