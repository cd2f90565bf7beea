"""What a batch needs of its examples, padded like the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dibs.types import TrainingExample


def slope(example: TrainingExample, scale: float) -> float:
    """The loss's derivative by the log-probability of a token whose ratio is 1, in float32."""
    return float(np.float32(-scale * example.advantage * example.weight))


def lengths(examples: Sequence[TrainingExample]) -> list[int]:
    """Tokens of each example, prompt included."""
    return [len(example.context_ids) + len(example.completion_ids) for example in examples]


def padded_sampling_logprobs(examples: Sequence[TrainingExample], otherwise: Tensor) -> Tensor:
    """The sampler's log-probabilities, padded like ``otherwise`` [B, T], which fills in missing ones."""
    rows = [example.sampling_logprobs for example in examples]
    sizes = torch.tensor([len(row) for row in rows], device=otherwise.device)
    known = torch.arange(otherwise.shape[1], device=otherwise.device) < sizes.unsqueeze(1)
    values = otherwise.new_tensor([value for row in rows for value in row])
    return otherwise.masked_scatter(known, values)
