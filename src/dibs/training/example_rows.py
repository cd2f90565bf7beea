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
    padded = otherwise.clone()
    for row, example in zip(padded, examples, strict=True):
        known = example.sampling_logprobs
        row[: len(known)] = torch.tensor(known, device=row.device)
    return padded


def completion_rows(
    values: Tensor, examples: Sequence[TrainingExample], chosen: Sequence[bool]
) -> list[Tensor]:
    """The tokens of each chosen completion that has any, out of padded rows [B, T]."""
    sizes = [len(example.completion_ids) for example in examples]
    return [
        row[:size]
        for row, size, wanted in zip(values, sizes, chosen, strict=True)
        if size and wanted
    ]
