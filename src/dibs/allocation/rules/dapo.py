"""DAPO: groups of equal rewards are replaced by those of further prompts (arXiv 2503.14476).

Needs a pool of candidates. Whole groups are drawn until as many as a step trains on have rewards that
differ, or the candidates or rounds are used up. The others are not trained on.

Biased: which groups are trained on depends on their rewards.

Departures: a round draws as many groups as are missing. The released code draws a whole batch again.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.drawn import Drawn

LEAST_GROUP = 2


def more(drawn: Drawn) -> np.ndarray:
    """A group for as many untried candidates as groups are missing, int64 [N]."""
    missing = max(drawn.wanted - int(drawn.spread.sum()), 0)
    return np.where(drawn.first(drawn.asked == 0, missing), drawn.group, 0)


def trained(drawn: Drawn) -> np.ndarray:
    """Those whose rewards differ, bool [N]."""
    return drawn.first(drawn.spread, drawn.wanted)
