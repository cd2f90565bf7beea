"""What the variance of one rollout's share is made of, for each objective and baseline.

The variance of one rollout's share is ``sigma_i^2 = E[a^2 ||s||^2] - ||E[a s]||^2``. For rewards of 0
and 1 it follows from four numbers: the accept rate p, the second moments ``Q1 = E[||s||^2 | accepted]``
and ``Q0`` (rejected), and ``M = ||E[s | accepted]||^2``. The mean gradient of the rejected is not among
them, because ``E[s] = 0`` fixes it (but see ``GIVEN``). Each of Q1, Q0 and M is multiplied by a product
of powers of p and 1 - p, which ``ROWS`` lists. For other rewards ``E[a^2 ||s||^2]`` follows from
``E[r^k ||s||^2]``, k = 0, 1, 2, of both classes (:meth:`.Target.second_moment`).
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

Powers = tuple[int, int]
"""Powers of p and of 1 - p."""
KNOWN_BASELINES = ("history", "shrinkage")
"""Baselines that need no group, since other completions of the prompt tell them."""


class Row(NamedTuple):
    """What multiplies Q1, Q0 and M in sigma^2; None: the moment does not enter."""

    accepted: Powers | None
    rejected: Powers | None
    mean: Powers


ROWS: dict[tuple[str, str], Row] = {
    ("log_likelihood", "none"): Row((-1, 0), None, (0, 0)),
    ("log_likelihood", "mean"): Row((-1, 2), (0, 1), (0, 0)),
    ("expected_reward", "none"): Row((1, 0), None, (2, 0)),
    ("expected_reward", "mean"): Row((1, 2), (2, 1), (2, 0)),
    ("expected_reward", "leave_one_out"): Row((1, 2), (2, 1), (2, 0)),
    ("grpo", "mean"): Row((0, 1), (1, 0), (1, -1)),
}
for _objective, _baseline in product(
    ("log_likelihood", "expected_reward", "grpo"), KNOWN_BASELINES
):
    ROWS[_objective, _baseline] = ROWS[_objective, "mean"]
GIVEN = Row((1, 0), (0, 1), (0, 0))
"""The row of advantages that the norms hold already: each class counts as often as it occurs.

M is ``||E[s]||^2`` here, over all completions, as ``E[s]`` is no longer 0.
"""
