"""Sequences padded to batches, and batches that cost least.

Sequences of a batch are padded so that completions align: contexts on the left, completions on the
right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_PASS_COST = 128
"""What a forward and backward pass costs on a CPU besides its tokens, in tokens."""
_PASS_COST_ON_DEVICE = 2048
"""The same on an accelerator, which small batches leave idle."""


class TokenSequence(Protocol):
    """Token ids of a context and of the completion that follows it."""

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


def collate(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device) -> TokenBatch:
    """Pad sequences with ``pad_id`` and stack them on a device; at least one sequence."""
    contexts = max(len(s.context_ids) for s in sequences)
    length = max(1, *(len(s.completion_ids) for s in sequences))
    ids = torch.full((len(sequences), contexts + length), pad_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, s in enumerate(sequences):
        start, end = contexts - len(s.context_ids), contexts + len(s.completion_ids)
        ids[row, start:end] = torch.tensor([*s.context_ids, *s.completion_ids])
        mask[row, start:end] = True
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return TokenBatch(
        ids, mask.long(), positions, ids[:, contexts:], mask[:, contexts:].contiguous()
    )


def micro_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, device: torch.device | None = None
) -> Iterator[list[int]]:
    """Indices of sequences grouped so that each group, padded, holds at most ``max_tokens``.

    A group costs its tokens, padding included, and a fixed number for the pass, which depends on
    ``device`` (None: a CPU). The grouping costs least among those of sequences sorted by length. The
    longest sequences come first, so that the first group needs most memory. A sequence longer than
    ``max_tokens`` is a group of its own.
    """
    pass_cost = _PASS_COST_ON_DEVICE if device and device.type == "cuda" else _PASS_COST
    contexts = np.array([len(s.context_ids) for s in sequences], dtype=np.int64)
    completions = np.array([len(s.completion_ids) for s in sequences], dtype=np.int64)
    order = np.lexsort((np.arange(len(sequences)), -contexts, -contexts - completions))
    contexts, completions = contexts[order], completions[order]
    # cheapest[i]: least cost of the first i sequences. widest[j] and longest[j]: maxima over j .. i.
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
