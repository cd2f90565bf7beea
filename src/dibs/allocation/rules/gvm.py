"""GVM: more completions where accepted ones are rare and have large gradients (arXiv 2505.02391).

Needs pilots of every prompt with their gradient norms. The paper draws a batch, and does not weigh by
counts.

Unbiased where every prompt gets completions, since pilots are thrown away. Biased in a batch with
``allocate.lower: 0``: prompts without an accepted pilot are left out.

Departures: the verifier may fail on all pilots of a prompt, which the paper does not foresee. Such a
prompt counts as an average pilot of the others: its accept rate is the accepted share of all their
pilots, and its norm the mean of all accepted ones.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """``w_i = G_i / sqrt(p_i + alpha / p_i^(beta - 1))``, [m]: Algorithm 2 and Theorem 3.

    ``p_i`` is the accepted share of the pilots and ``G_i`` the mean gradient norm of the accepted ones.
    A prompt with no accepted pilot has weight 0 and gets its lower bound: with a bound of 0 it is
    starved.
    """
    stats = problem.stats
    trials, successes = np.asarray(stats.trials), np.asarray(stats.successes)
    solved = successes > 0
    rate = np.where(solved, stats.accept_rate, 1.0)
    norm = np.where(solved, stats.grad_norm, 0.0)
    if solved.any():
        rate[trials == 0] = successes.sum() / trials.sum()
        norm[trials == 0] = successes @ norm / successes.sum()
    alpha, beta = problem.penalty.alpha, problem.penalty.beta
    with np.errstate(over="ignore"):  # an infinite penalty is a weight of 0
        penalty = alpha * rate ** (1 - beta) if alpha > 0 else 0.0
    found: np.ndarray = norm / np.sqrt(rate + penalty)
    return found
