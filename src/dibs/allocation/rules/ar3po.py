"""AR3PO, adaptive rollout: half groups until a prompt has an accepted completion (arXiv 2509.25808).

Needs nothing. All completions that were drawn are trained on.

Biased: when sampling stops depends on the rewards.

Departures: where no round had an accepted completion, the paper reuses one of earlier steps. It is left
out: it was drawn by another policy.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.drawn import Drawn


def more(drawn: Drawn) -> np.ndarray:
    """Half a group for every prompt without an accepted completion, int64 [N]."""
    return np.where(drawn.successes == 0, max(drawn.group // 2, 1), 0)
