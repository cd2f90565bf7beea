"""CERO: completions where the reward's variance is large and few were drawn before (arXiv 2606.05606).

Needs the history of earlier steps. The value of a prompt's completions is the variance of its reward,
expected under the posterior, times a share that saturates as completions add up over the epochs.

Unbiased over a pool: earlier steps decide the counts. In a batch, biased if a prompt of weight 0 gets
no completions (``allocate.lower: 0``).

Departures: the share is ``1 - exp(-x / s)`` for x completions in all, with s the number that a prompt
has on average; the paper's own form could not be read. The budget of a step is fixed, so the best
counts of a step follow from one multiplier. The paper moves its multipliers by gradient steps over the
whole run. Completions of earlier steps count less by ``half_life``.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.problem import AllocationProblem


def weights(problem: AllocationProblem, rng: np.random.Generator | None = None) -> np.ndarray:
    """Completions beyond the x_i drawn before that raise the sum of values most, [m]."""
    known = problem.posterior
    size = known.alpha + known.beta
    value = known.alpha * known.beta / (size * (size + 1))  # E[p (1 - p)]
    before = np.asarray(problem.stats.trials, dtype=np.float64)
    budget = float(problem.budget / problem.cost.mean())
    scale = float(before.mean()) + budget / len(before)
    # The best: value_i exp(-(x_i + n_i) / s) is the same for all prompts with n_i > 0.
    level = scale * np.log(value) - before
    found: np.ndarray = np.maximum(level - _water_level(level, budget), 0.0)
    return found


def _water_level(level: np.ndarray, budget: float) -> float:
    """The c at which ``sum_i max(level_i - c, 0)`` is the budget."""
    falling = np.sort(level)[::-1]
    candidates = (np.cumsum(falling) - budget) / np.arange(1, len(falling) + 1)
    return float(candidates[np.flatnonzero(falling > candidates)[-1]])
