"""Log-probabilities before a step's first update: the learner's, or the sampler's where they agree.

A clipped ratio compares the policy with what it was before the first update. The learner computes that
with a forward pass over all completions of later updates. Where sampler and learner compute the same, up
to rounding, the sampler has it already. Whether they do is seen from the first update's own completions,
in every step anew. So nothing need be known of engine, precision or dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from dibs.types import TrainingExample

SAMPLERS: Final = "sampler's"
"""Says that the sampler's log-probabilities are used."""
OldLogprobs = list[Tensor] | Literal["sampler's"] | None
"""Log-probabilities before a step's first update, [T] a completion; None: nothing has moved since."""
_ROUNDING = 1e-4
"""Difference of a token's log-probabilities, in nats, that is put down to rounding in float32."""

_DOUBT = 0.1
"""Surprise of a token, in nats, from which on lower precision shows."""
_DOUBTFUL_TOKENS = 16
"""So many of these have to agree, since one may do so by luck."""


def log_ratio_rows(
    log_ratios: Tensor, examples: Sequence[TrainingExample], chosen: Sequence[bool]
) -> list[Tensor]:
    """``ln`` of learner's over sampler's probabilities of each chosen completion, out of rows [B, T].

    A completion is passed over where it is empty or the sampler's log-probabilities are unknown.
    """
    return [
        row[: len(example.completion_ids)]
        for row, example, wanted in zip(log_ratios, examples, chosen, strict=True)
        if wanted and example.completion_ids and _is_known(example)
    ]


def sampler_agrees(
    log_ratios: Sequence[Tensor],
    compared: Sequence[TrainingExample],
    others: Sequence[TrainingExample],
) -> bool:
    """Whether the sampler's log-probabilities can stand for the learner's of ``others``.

    They can where they are known and differ by no more than 1e-4 nats a token on the completions that
    the learner computed. Of these tokens 16 at least must have been in doubt: of a token that is all but
    certain, every precision says the same.

    Args:
        log_ratios: learner's less sampler's log-probabilities of ``compared``, [T] each.
    """
    # A sum is finite only where all are.
    if not all(_is_known(e) and math.isfinite(sum(e.sampling_logprobs)) for e in others):
        return False
    doubtful = sum(
        value <= -_DOUBT for e in compared if e.advantage for value in e.sampling_logprobs
    )
    if doubtful < _DOUBTFUL_TOKENS or not log_ratios:
        return False
    return float(torch.cat(list(log_ratios)).abs().max()) <= _ROUNDING


def _is_known(example: TrainingExample) -> bool:
    return len(example.sampling_logprobs) == len(example.completion_ids)
