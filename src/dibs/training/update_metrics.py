"""What a step's optimizer updates were like."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

_MISMATCH = ("sampler_gap", "sampler_gap_max", "token_ratios", "sequence_ratios")
RATIO_EDGES = (0.5, 0.9, 0.99, 1.01, 1.1, 2.0)
"""Between the bins that ratios of learner to sampler are counted in; the outer bins are open."""


@dataclass(frozen=True)
class UpdateMetrics:
    """Of one step: sums over its updates, the mean gradient norm before clipping, the last rate.

    ``skipped_updates``: those whose loss or gradient was NaN or infinite; ``updates`` counts them.

    ``gradient_square`` and ``gradient_variance``: estimates of ``||g||^2`` for the gradient g that every
    update estimates, and of ``E||g_u - g||^2`` for an update's estimate g_u, from how the updates of a
    step differ; None for a single one. Unbiased where counts are multiples of the number of updates, the
    weights did not move between them, and a completion's advantage does not depend on others; otherwise
    nearly so, and with fewer completions of a prompt than updates the variance is overstated.

    ``entropy``: of the distribution that each token was drawn from, mean over the tokens learned from,
    in nats. The rest is None unless the loss needs log-probabilities from before the first update:
    ``sampler_gap``: mean of ``|ln (learner's probability / sampler's)|`` a token, ``sampler_gap_max``
    the largest; ``token_ratios`` and ``sequence_ratios``: how many tokens and completions have a ratio
    of the two between the :data:`RATIO_EDGES`.
    """

    updates: int
    loss: float
    update_grad_norm: float
    skipped_updates: int
    clip_fraction: float
    kl: float
    entropy: float
    learning_rate: float
    gradient_square: float | None
    gradient_variance: float | None
    sampler_gap: float | None
    sampler_gap_max: float | None
    token_ratios: list[int] | None
    sequence_ratios: list[int] | None


@dataclass
class _Tally:
    loss: float = 0.0
    norms: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    gradient: Tensor | None = None
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    gaps: list[Tensor] = field(default_factory=list)

    def add(self, loss: float, sums: dict[str, Tensor]) -> None:
        self.loss += loss
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def add_gradient(self, gradient: Tensor) -> None:
        self.squares.append(float(gradient.double() @ gradient.double()))
        self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)

    def noise(self) -> tuple[float | None, float | None]:
        """``gradient_square`` and ``gradient_variance``, from U gradients and their mean."""
        updates = len(self.squares)
        if updates < 2 or self.gradient is None:
            return None, None
        mean = self.gradient.double() / updates
        of_mean, mean_of = float(mean @ mean), sum(self.squares) / updates
        variance = (mean_of - of_mean) * updates / (updates - 1)
        return of_mean - variance / updates, variance


def _histogram(log_ratios: np.ndarray) -> list[int]:
    bins = np.searchsorted(np.log(RATIO_EDGES), log_ratios)
    return np.bincount(bins, minlength=len(RATIO_EDGES) + 1).tolist()
