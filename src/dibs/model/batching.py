"""Sequences padded to batches, and batches that cost least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from torch import Tensor

_PASS_COST = 128
"""What a forward and backward pass costs besides its tokens, in tokens, on a CPU."""
_PASS_COST_ON_DEVICE = 2048
"""The same on an accelerator, which small batches leave idle."""


class TokenSequence(Protocol):
    """Tokens of a context and of the completion that follows it."""

    @property
    def context_ids(self) -> tuple[int, ...]: ...

    @property
    def completion_ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class TokenBatch:
    """``B`` padded sequences: contexts of length ``P``, completions of length ``T``.

    ``input_ids``, ``attention_mask``, ``position_ids``: [B, P + T]. ``completion_ids``: [B, T].
    ``completion_mask``: bool [B, T], true on real completion tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    completion_ids: Tensor
    completion_mask: Tensor

    def first(self) -> TokenBatch:
        """The first sequence alone."""
        return TokenBatch(*(getattr(self, field.name)[:1] for field in fields(self)))


def micro_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, pass_cost: int = _PASS_COST
) -> Iterator[list[int]]:
    """Indices of sequences grouped so that each group, padded, holds at most ``max_tokens``.

    Sequences of like length stand together, in the groups that cost least when padding costs what
    tokens cost and a group ``pass_cost`` of them. Long ones first, so that the largest group comes at
    once; a sequence longer than ``max_tokens`` stands alone.
    """
    contexts = np.array([len(s.context_ids) for s in sequences], dtype=np.int64)
    completions = np.array([len(s.completion_ids) for s in sequences], dtype=np.int64)
    order = np.lexsort((np.arange(len(sequences)), -contexts, -contexts - completions))
    contexts, completions = contexts[order], completions[order]
    # cheapest[i]: of the first i sequences. widest and longest: maxima over j .. i, for every start j.
    cheapest = np.zeros(len(sequences) + 1)
    starts = np.zeros(len(sequences), dtype=np.int64)
    widest, longest = np.zeros_like(contexts), np.zeros_like(completions)
    for i in range(len(sequences)):
        np.maximum(widest[: i + 1], contexts[i], out=widest[: i + 1])
        np.maximum(longest[: i + 1], completions[i], out=longest[: i + 1])
        tokens = (i + 1 - np.arange(i + 1)) * (widest[: i + 1] + longest[: i + 1])
        cost = cheapest[: i + 1] + tokens + pass_cost
        cost[:i][tokens[:i] > max_tokens] = np.inf
        starts[i] = cost.argmin()
        cheapest[i + 1] = cost[starts[i]]
    groups = []
    end = len(sequences)
    while end:
        groups.append(order[starts[end - 1] : end].tolist())
        end = int(starts[end - 1])
    yield from reversed(groups)
