"""Reinforce-Ada, balanced variant: rounds until half a group is right and half is wrong (2510.04996).

Needs nothing. Each round draws a whole group. Of all that was drawn, as many as a group are trained on,
half of them accepted if there are so many. Baseline and deviation are over all that was drawn.

Biased: when sampling stops depends on the rewards, and so does what is kept.

Departures: the released code can also normalize by rewards of earlier steps, which is left out.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.drawn import Drawn

KEEP = "balanced"


def more(drawn: Drawn) -> np.ndarray:
    """A group for every prompt without half a group of each class, int64 [N]."""
    right, wrong = drawn.successes, drawn.trials - drawn.successes
    half = drawn.group // 2
    short = (right < half) | (wrong < drawn.group - half)
    return np.where(short, drawn.group, 0)
