"""GRESO: prompts that keep giving equal rewards are skipped more and more often (arXiv 2506.02177).

Needs the history of earlier steps, and a pool. A prompt whose last z groups had equal rewards each is
skipped with probability ``1 - b^z``. What is published does not weigh by the choice; here every prompt
keeps its uniform share.

Unbiased: what is drawn seldom weighs more. Biased as published, with ``select.correct: false``:
prompts whose rewards differ weigh more.

Departures: b is fixed. The paper moves one b for solved prompts and one for hopeless ones until a
quarter of all groups have equal rewards. Rewards count as equal if all or none of a group are accepted,
whatever their values. A group of one, whose reward has none to differ from, changes no streak.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem

RANDOM = True
HISTORY = True
_BASE = 0.5


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """1 for the prompts that are not skipped, 0 for the others, [m]; all alike if all are skipped."""
    assert rng is not None
    streak = problem.stats.streak
    if streak is None:
        return np.ones(len(problem.stats))
    taken = rng.random(len(streak)) < _BASE ** np.asarray(streak, dtype=np.float64)
    return taken.astype(np.float64) if taken.any() else np.ones(len(streak))
