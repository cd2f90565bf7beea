"""The truncated log-likelihood: its gradient without bias, at any count of k completions or more.

``ln p = -sum_{j >= 1} (1 - p)^j / j``. Cut off after k terms it has the gradient ``w_k(p) grad p``
with ``w_k(p) = sum_{j < k} (1 - p)^j = (1 - (1 - p)^k) / p``. ``w_1 = 1`` is the expected accept rate's
gradient, and ``w_k`` tends to ``1 / p``, that of ``ln p``.

The self-normalized estimate from k completions, ``(1 / S) sum_j r_j s_j`` or 0 where S = sum_j r_j is
0, has exactly that expectation (MaxRL, arXiv 2602.02710; its order is the group's size). So has its
mean over all subsets T of k of n completions. As ``C(S - 1, i) / (i + 1) = C(S, i + 1) / S``, the mean
has a closed form: a completion's coefficient is

``(1 / C(n, k)) sum_{T: j in T} r_j / S_T = r_j (1 - C(n - S, k) / C(n, k)) / S``

which is the self-normalized one times the group's own pass@k (arXiv 2107.03374, eq. (1)).

With a baseline, pass@k of the *other* completions of the prompt is subtracted. It estimates the mean
advantage ``p w_k(p)``, and it is independent of the completion that it is subtracted from, so it biases
nothing. (To subtract the mean within each subset, where a subset of rejected completions has advantages
0, lowers the order by one.)

The variance with n completions is that of a U-statistic. To leading order in 1 / n it is ``v / n`` with

``v = p (w^2 Q1 - 2 w d M + d^2 M) - (w - d)^2 p^2 M``,
``d = k (k - 1) p (E[1 / (1 + B)] - E[1 / (2 + B)])``, ``B ~ Binomial(k - 2, p)``

where Q1 and M are the moments of :mod:`.target`. Counts are decided with ``d = 0``, that is with the
second moment of ``w_k(p) r``. This is an upper bound, because ``M`` is taken as 0. It was checked for
three kinds of completions, p of 1/16, 0.3 and 0.7, and orders 2, 4 and 8. There the true variance is
0.43 to 0.94 times the bound. Only its shape in n decides counts: n times the variance falls by a quarter
at most from n = k to n = 4 k. Tests hold this for orders 2 and 4 by enumeration. numpy only.
"""

from __future__ import annotations

import math

import numpy as np


def pass_at_k(n: int, accepted: int, k: int) -> float:
    """Chance that one of k completions is accepted, where k of n are drawn without replacement.

    This is unbiased for the chance with k fresh completions (arXiv 2107.03374, eq. (1)). Where n is
    below k, it is 1 if any completion was accepted, else 0: pass@n.
    """
    if n < k:
        return float(accepted > 0)
    return 1.0 - math.comb(n - accepted, k) / math.comb(n, k)


def expected_pass(accept_rate: np.ndarray | float, k: int) -> np.ndarray:
    """``p w_k(p) = 1 - (1 - p)^k``, the chance that one of k fresh completions is accepted."""
    # Without the difference, which would lose the digits of a small rate.
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(k * np.log1p(-np.asarray(accept_rate, dtype=np.float64))))


def order_k_advantages(
    accepted: np.ndarray, order: int, *, baseline: bool, baseline_only: np.ndarray
) -> np.ndarray:
    """Advantages whose mean over a group, times the scores, estimates ``w_k(p) grad p``.

    A group of fewer than ``order`` completions has the order of its size.

    Args:
        accepted: whether each completion was accepted, 0 or 1, [n].
        order: k, at least 1.
        baseline: whether pass@k of the others is subtracted.
        baseline_only: further completions of the prompt, which count among the others, and nowhere else.

    Returns:
        float64 [n]. With a baseline, 0 for a completion without others.
    """
    n, successes = len(accepted), int(accepted.sum())
    passed = pass_at_k(n, successes, order)
    own = accepted * (n / successes * passed) if successes else np.zeros(n)
    if not baseline:
        return np.asarray(own, dtype=np.float64)
    others = n - 1 + len(baseline_only)
    if others < 1:
        return np.zeros(n)
    total = successes + int(baseline_only.sum())
    subtracted = np.zeros(n)
    for r in (0, 1):
        if (accepted == r).any():
            subtracted[accepted == r] = pass_at_k(others, total - r, min(order, n))
    return np.asarray(own - subtracted)
