"""CurES, its counts: in proportion to a completion's deviation around the group mean (arXiv 2510.01037).

Needs accept rates and gradient norms of both classes. Accepted completions have advantage ``1 - p`` and
rejected ones ``-p``; the deviation follows from the mean squared norms of both, less the square of what
the two classes' mean norms let expect of the mean gradient.

Unbiased over a pool, and in a batch where every prompt gets completions: earlier steps or pilots
decide the counts.

Departures: rates and norms are those of the posterior. The released code rounds each share by itself,
so that its counts add up to the budget only about; here they do exactly. It counts a class that was not
seen as one of norm 0.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i^2 = p q^2 E[G+^2] + p^2 q E[G-^2] - p^2 q^2 (G+ - G-)^2`` with ``q = 1 - p``, [m].

    ``G+`` and ``G-``: gradient norms of accepted and of rejected completions; 1 where none is known.
    """
    p = problem.posterior.accept_rate
    q = 1 - p
    (square_yes, square_no), (mean_yes, mean_no) = _norms(problem)
    apart = p**2 * q**2 * (mean_yes - mean_no) ** 2
    variance = p * q**2 * square_yes + p**2 * q * square_no - apart
    return np.sqrt(np.maximum(variance, 0.0))


def _norms(problem: AllocationProblem) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared norms and mean norms of accepted and rejected completions, [2, m] each."""
    squares = np.broadcast_to(problem.posterior.norms.squares, (2, len(problem.stats)))
    largest = np.sqrt(squares)  # no mean exceeds the root of the mean square
    own = np.array([problem.stats.grad_norm, _of_rejected(problem)], dtype=np.float64)
    return squares, np.where(np.isfinite(own), np.minimum(own, largest), largest)


def _of_rejected(problem: AllocationProblem) -> np.ndarray:
    known = problem.stats.grad_norm_rejected
    return np.full(len(problem.stats), np.nan) if known is None else np.asarray(known)
