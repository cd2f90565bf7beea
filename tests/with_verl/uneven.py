"""An allocator for tests: very uneven counts, decided by what is known of the prompts."""

from __future__ import annotations

import numpy as np

COUNTS = [10, 7, 5, 4, 3, 2, 1, 0]
"""Of 8 prompts, 4 on average: a prompt left out and a group of one among them."""


def by_successes(problem):
    """Most completions to the prompt that was accepted most often."""
    counts = np.zeros(len(COUNTS), dtype=np.int64)
    counts[np.argsort(-problem.stats.successes, kind="stable")] = COUNTS
    return counts
