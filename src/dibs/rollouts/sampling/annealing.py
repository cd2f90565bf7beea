"""A temperature that falls along a completion: exploratory annealed decoding (arXiv 2510.05251)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dibs.config import SamplingConfig


@dataclass(frozen=True)
class Annealing:
    """The temperature of token t, the first being 0: ``max(1 + start - exp(t / decay), floor)``.

    So it is ``start`` at first, and ``start - 1.72`` or ``floor`` after ``decay`` tokens: early tokens
    explore, late ones are nearly greedy. What is drawn is not from the policy, so importance weights
    must correct for it; the sampler reports the log-probabilities that it drew with.

    Departure: ``decay`` stays the same over a run. The paper raises it with the step, since completions
    grow longer.
    """

    start: float
    floor: float
    decay: float

    def at(self, places: Tensor) -> Tensor:
        """Temperatures of tokens by their places in their completions, float32 of the same shape."""
        fallen = 1 + self.start - torch.exp((places.float() / self.decay).clamp(max=80))
        return fallen.clamp(min=self.floor)


def configured_annealing(sampling: SamplingConfig) -> Annealing | None:
    """What ``sampling.anneal_from`` and its companions say; None where the temperature stays."""
    if sampling.anneal_from is None:
        return None
    return Annealing(sampling.anneal_from, sampling.anneal_floor, sampling.anneal_tokens)
