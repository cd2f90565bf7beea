"""What a step's optimizer updates were like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dibs.processes import Processes

RATIO_EDGES = (0.5, 0.9, 0.99, 1.01, 1.1, 2.0)
"""Borders of the bins that count ratios of learner to sampler; the outer bins are open."""


@dataclass(frozen=True)
class UpdateMetrics:
    """Of one step: means and sums over its updates; the learning rate is the last.

    ``update_grad_norm``: mean norm of the gradients before clipping.

    ``updates`` counts all updates, and ``skipped_updates`` those of them that were not made because the
    loss or the gradient was NaN or infinite.

    ``gradient_square`` estimates ``||g||^2`` for the gradient g that every update estimates.
    ``gradient_variance`` estimates ``E||g_u - g||^2`` for the estimate g_u of one update. Both come from
    how the updates of a step differ, and are None for a single update. They are unbiased under three
    conditions: counts are multiples of the number of updates, the weights did not move between updates,
    and the advantage of a completion does not depend on other completions. Otherwise they are nearly
    unbiased; where a prompt has fewer completions than there are updates, the variance is overstated.

    ``entropy``: of the distribution that each token was drawn from, mean over the tokens of completions
    with an advantage, in nats.

    The last four compare the learner's probabilities with the sampler's. They are None unless the loss
    needs log-probabilities from before the first update. They are of the completions that are learned
    from: in a process where the gap is mere rounding, of those in its first update alone, since the
    learner then computes no others before the update. ``sampler_gap``: mean of ``|ln ratio|`` over
    tokens; ``sampler_gap_max``: the largest. ``token_ratios`` and ``sequence_ratios``: numbers of tokens
    and of completions whose ratio lies between two of the :data:`RATIO_EDGES`.
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


@dataclass(frozen=True)
class LossGradient:
    """What a backward pass over completions leaves besides the gradient itself.

    ``sums``: of each metric over tokens. ``log_ratios``: ``ln`` of the learner's over the sampler's
    probability of each token, [T] a completion; empty where the loss has no use for it.
    """

    loss: float
    sums: Mapping[str, Tensor]
    log_ratios: Sequence[Tensor] = ()

    def summed(self, processes: Processes, parameters: Sequence[Tensor]) -> LossGradient:
        """Loss and sums over all processes; the gradients of ``parameters`` are added up in place."""
        if processes.size == 1:
            return self
        processes.all_reduce_sum([p.grad for p in parameters if p.grad is not None])
        every = processes.all_gather(
            (self.loss, {name: float(value) for name, value in self.sums.items()})
        )
        names = {name for _, sums in every for name in sums}
        added = {
            name: torch.tensor(sum(sums.get(name, 0.0) for _, sums in every)) for name in names
        }
        return LossGradient(sum(loss for loss, _ in every), added, self.log_ratios)


@dataclass
class UpdateTally:
    """Adds up the updates of one step.

    ``gradient``: sum of the gradients, projected where they are large, [D]; ``squares``: of their norms.
    """

    loss: float = 0.0
    skipped: int = 0
    norms: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    gradient: Tensor | None = None
    sums: dict[str, float] = field(default_factory=dict)
    log_ratios: list[Tensor] = field(default_factory=list)

    def add(self, made: LossGradient, norm: float, gradient: Tensor | None) -> None:
        """Count an update: its loss and sums, its gradient's norm and, for the noise, the gradient."""
        self.loss += made.loss
        for name, value in made.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.log_ratios += made.log_ratios
        self.norms.append(norm)
        if gradient is not None:
            self.squares.append(float(gradient.double() @ gradient.double()))
            self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)

    def metrics(
        self, updates: int, learning_rate: float, mismatch: SamplerMismatch
    ) -> UpdateMetrics:
        """The step's metrics; ``updates`` includes the skipped ones."""
        tokens = max(self.sums.get("tokens", 0.0), 1.0)
        square, variance = self._noise()
        return UpdateMetrics(
            updates=updates,
            loss=self.loss / updates,
            update_grad_norm=sum(self.norms) / max(len(self.norms), 1),
            skipped_updates=self.skipped,
            clip_fraction=self.sums.get("clipped_tokens", 0.0) / tokens,
            kl=self.sums.get("kl", 0.0) / tokens,
            entropy=self.sums.get("entropy", 0.0) / tokens,
            learning_rate=learning_rate,
            gradient_square=square,
            gradient_variance=variance,
            sampler_gap=mismatch.mean,
            sampler_gap_max=mismatch.largest,
            token_ratios=mismatch.tokens,
            sequence_ratios=mismatch.sequences,
        )

    def _noise(self) -> tuple[float | None, float | None]:
        """``gradient_square`` and ``gradient_variance``, from U gradients and their mean."""
        updates = len(self.squares)
        if updates < 2 or self.gradient is None:
            return None, None
        mean = self.gradient.double() / updates
        of_mean, mean_of = float(mean @ mean), sum(self.squares) / updates
        variance = (mean_of - of_mean) * updates / (updates - 1)
        return of_mean - variance / updates, variance


@dataclass(frozen=True)
class SamplerMismatch:
    """How far the sampler's probabilities are from the learner's; see :class:`UpdateMetrics`."""

    mean: float | None = None
    largest: float | None = None
    tokens: list[int] | None = None
    sequences: list[int] | None = None

    @classmethod
    def over(cls, processes: Processes, log_ratios: Sequence[Tensor]) -> SamplerMismatch:
        """From the log-ratios of each process's completions, [T] each; the same in all of them."""
        mine: list[np.ndarray] = []
        if log_ratios:
            tokens = torch.cat(list(log_ratios)).cpu().double().numpy()
            mine = np.split(tokens, np.cumsum([len(each) for each in log_ratios[:-1]]))
        return cls.of([each for part in processes.all_gather(mine) for each in part])

    @classmethod
    def of(cls, log_ratios: Sequence[np.ndarray]) -> SamplerMismatch:
        """From ``ln`` of the ratio of each token, [T] a completion; all None without completions."""
        if not log_ratios:
            return cls()
        tokens = np.concatenate(log_ratios)
        return cls(
            mean=float(np.abs(tokens).mean()),
            largest=float(np.abs(tokens).max()),
            tokens=_histogram(tokens),
            sequences=_histogram(np.array([each.sum() for each in log_ratios])),
        )


def _histogram(log_ratios: np.ndarray) -> list[int]:
    bins = np.searchsorted(np.log(RATIO_EDGES), log_ratios)
    return np.bincount(bins, minlength=len(RATIO_EDGES) + 1).tolist()
