"""What training measured of the gain of counts, pooled over steps and seeds. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dibs.allocation.variance import pooled_gain
from dibs.config import VarianceConfig
from dibs.runs.read import Run, finite_number

CHOSEN, UNIFORM = "measured_variance", "measured_variance_uniform"
"""Keys of metrics.jsonl. Runs of before have ``measured_gain`` only, the ratio of a single step. Such
ratios cannot be pooled, so these runs have no measured gain here."""


def measured_steps(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return step, and variance under uniform and under the step's counts, float64 [steps measured, 3].

    Variances are NaN where the counts left a prompt out.
    """
    found = [
        [finite_number(line, key) for key in ("step", UNIFORM, CHOSEN)]
        for line in lines
        if UNIFORM in line and CHOSEN in line
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def measured_variance(
    runs: Sequence[Run],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, and 1 / measured gain with its 95% interval; float64 [steps] each.

    The gain at a step is that of the latest ``variance.window`` measurements of every seed, pooled. Of
    one run it is ``measured_gain`` of metrics.jsonl. A step without a gain is left out.
    """
    measured = [measured_steps(run.metrics) for run in runs]
    columns = []
    for step in np.unique(np.concatenate([np.zeros(0), *(each[:, 0] for each in measured)])):
        latest = [
            each[each[:, 0] <= step][-_window(run) :]
            for run, each in zip(runs, measured, strict=True)
        ]
        found = pooled_gain(*np.concatenate(latest)[:, 1:].T)
        if found.value:
            columns.append(
                (step, *(1 / (x or np.nan) for x in (found.value, found.high, found.low)))
            )
    steps, mean, low, high = np.array(columns, dtype=float).reshape(-1, 4).T
    return steps, mean, low, high


def _window(run: Run) -> int:
    window = run.setting("variance.window")
    return window if isinstance(window, int) and window > 0 else VarianceConfig().window
