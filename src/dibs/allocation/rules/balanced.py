"""Half accepted and half rejected completions, as far as there are: of Reinforce-Ada (2510.04996).

Baseline and deviation are over all that was drawn.

Biased: what is kept depends on the rewards.

Departures: the first completions of each class are kept, not random ones; they are exchangeable.
"""

from __future__ import annotations

import numpy as np

WHOLE_BASELINE = True


def keep(rewards: np.ndarray, accepted: np.ndarray, count: int) -> np.ndarray:
    """Positions of the ``count`` completions to train on, int64; as many as there are if fewer."""
    right, wrong = np.flatnonzero(accepted), np.flatnonzero(~accepted)
    half = count // 2
    from_right = min(len(right), max(half, count - len(wrong)))
    return np.sort(np.concatenate([right[:from_right], wrong[: count - from_right]]))
