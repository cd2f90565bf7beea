"""Advantages by which a step's completions judge the step's counts. numpy only."""

from __future__ import annotations

import numpy as np

from dibs.allocation.target import Target


def judging_advantages(
    target: Target, rewards: np.ndarray, known: np.ndarray, of_step: np.ndarray
) -> np.ndarray:
    """``a_i(r)`` of some completions of a prompt, at moments that others of the step estimate.

    What an allocator believes of a prompt does not enter: counts that follow a false belief would be
    judged by that belief. The moments of a completion are those of the prompt's k - 1 other completions
    and of one more, which stands for the mean completion of the step. Without the completion itself,
    its ``a^2`` and its gradient are independent.

    ``log_likelihood`` needs ``1 / p^2``. With S of the k - 1 others accepted, ``k (k + 1) / ((S + 1)
    (S + 2))`` is used. Its mean is ``P(two or more of k + 1 are accepted) / p^2``: right where the
    prompt has a few successes, and bounded where it has none.

    Args:
        target: the objective and its baseline.
        rewards: r of the completions, [n].
        known: r of all completions of the prompt in this step, those included, [k].
        of_step: r of all completions of the step.

    Returns:
        float64 [n]; 0 where a divisor is 0.
    """
    if not len(rewards):
        return np.zeros(0)
    k = len(known)
    mean = (known.sum() - rewards + of_step.mean()) / k
    square = (np.square(known).sum() - np.square(rewards) + np.square(of_step).mean()) / k
    deviation = np.sqrt((square - mean**2).clip(min=0))
    if target.fits_accepted:
        accepted = known.sum() - rewards
        mean = np.sqrt((accepted + 1) * (accepted + 2) / (k * (k + 1)))
    return np.array(
        [
            target.expected_advantages(rewards[j : j + 1], mean[j], deviation[j])[0]
            for j in range(len(rewards))
        ]
    )
