"""PODS: of a group, the completions whose rewards have the largest variance (arXiv 2504.13818).

Baseline and deviation are over those that are kept.

Biased: what is kept depends on the rewards.

Departures: none. Some of the smallest and some of the largest rewards are always among the best subsets
(the paper's theorem), so only those are compared.
"""

from __future__ import annotations

import numpy as np

WHOLE_BASELINE = False


def keep(rewards: np.ndarray, accepted: np.ndarray, count: int) -> np.ndarray:
    """Positions of the ``count`` completions to train on, int64; as many as there are if fewer.

    Of subsets of the same variance, the one with the larger rewards.
    """
    n = len(rewards)
    if n <= count:
        return np.arange(n)
    order = np.argsort(rewards, kind="stable")

    def ends(largest: int) -> np.ndarray:
        return np.concatenate([order[: count - largest], order[n - largest :]])

    def merit(largest: int) -> tuple[float, float, int]:
        kept = rewards[ends(largest)]
        # Rounded, so that equal variances compare as equal.
        return round(float(np.var(kept)), 12), round(float(kept.sum()), 12), -largest

    return np.sort(ends(max(range(count + 1), key=merit)))
