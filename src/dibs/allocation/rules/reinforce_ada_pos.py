"""Reinforce-Ada, positive variant: rounds until a prompt has one accepted completion (arXiv 2510.04996).

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
    """A group for every prompt without an accepted completion, int64 [N]."""
    return np.where(drawn.successes == 0, drawn.group, 0)
