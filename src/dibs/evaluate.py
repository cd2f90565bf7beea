"""How good the policy is on held-out prompts: avg@k and pass@k with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dibs.types import Group

_Z95 = 1.959964


@dataclass(frozen=True)
class Evaluation:
    """Scores on prompts with k completions each.

    ``accuracy``: accepted share (avg@k), with its 95% interval ``[low, high]``. ``pass_at_k``: share
    of prompts with at least one accepted completion. ``no_answer``: share of completions in which the
    verifier found no answer.
    """

    accuracy: float
    low: float
    high: float
    pass_at_k: float
    no_answer: float

    def metrics(self) -> dict[str, float]:
        """The scores under the names they have in metrics.jsonl."""
        return {
            "accuracy": self.accuracy,
            "accuracy_low": self.low,
            "accuracy_high": self.high,
            "pass_at_k": self.pass_at_k,
            "accuracy_no_answer_share": self.no_answer,
        }


def score(groups: Sequence[Group]) -> Evaluation:
    """Evaluation of groups of equal size k >= 1."""
    accepted = np.stack([group.accepted for group in groups]).astype(np.float64)
    statuses = [rollout.status for group in groups for rollout in group.rollouts]
    low, high = clustered_interval(accepted.mean(axis=1))
    return Evaluation(
        accuracy=float(accepted.mean()),
        low=low,
        high=high,
        pass_at_k=float(accepted.any(axis=1).mean()),
        no_answer=statuses.count("no_answer") / len(statuses),
    )


def clustered_interval(rates: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of per-prompt accept rates, [m] in [0, 1].

    Completions of one prompt are not independent, so the spread between prompts counts, not the
    number of completions: a Wilson interval at the effective sample size ``mean (1 - mean) / SE^2``.
    Where all prompts agree, each counts as one draw.
    """
    m, mean = len(rates), float(np.mean(rates))
    error = float(np.var(rates, ddof=1)) / m if m > 1 else 0.0
    size = mean * (1 - mean) / error if error > 0 else float(m)
    centre = (mean + _Z95**2 / (2 * size)) / (1 + _Z95**2 / size)
    half = (
        _Z95 / (1 + _Z95**2 / size) * math.sqrt(mean * (1 - mean) / size + (_Z95 / (2 * size)) ** 2)
    )
    return max(centre - half, 0.0), min(centre + half, 1.0)
