"""Sequences padded to batches, and batches that cost least.

Sequences of a batch are padded so that completions align: contexts on the left, completions on the
right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

    @property
    def predicted(self) -> Tensor:
        """The tokens whose log-probabilities are computed, [B, T]: padding too."""
        return self.completion_ids

    def padded(self, values: Tensor) -> Tensor:
        """Values of the predicted tokens, with 0 on padding, [B, T]."""
        return values.masked_fill(~self.completion_mask, 0.0)


def collate(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device) -> TokenBatch:
    """Pad sequences with ``pad_id`` and stack them on a device; at least one sequence."""
    lengths = torch.tensor([len(s.context_ids) for s in sequences])
    width = int(lengths.max())
    completion_ids, completion_mask = padded_completions(sequences, pad_id)
    context_mask = torch.arange(width) >= width - lengths.unsqueeze(1)
    mask = torch.cat([context_mask, completion_mask], 1).to(device)
    contexts = _filled(context_mask, [s.context_ids for s in sequences], pad_id)
    ids = torch.cat([contexts, completion_ids], 1).to(device)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return TokenBatch(ids, mask.long(), positions, ids[:, width:], mask[:, width:].contiguous())


def padded_completions(sequences: Sequence[TokenSequence], pad_id: int) -> tuple[Tensor, Tensor]:
    """Completions padded on the right, [B, T] with T at least 1, and which tokens are real, bool."""
    lengths = torch.tensor([len(s.completion_ids) for s in sequences])
    mask = torch.arange(max(1, int(lengths.max()))) < lengths.unsqueeze(1)
    return _filled(mask, [s.completion_ids for s in sequences], pad_id), mask


def _filled(mask: Tensor, rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """The tokens of rows at the places of a mask, row by row, and ``pad_id`` elsewhere."""
    tokens = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return torch.full(mask.shape, pad_id).masked_scatter_(mask, tokens)


def pass_cost(device: torch.device | None) -> int:
    """What a forward and backward pass costs besides its tokens, in tokens; None: on a CPU."""
    return _PASS_COST_ON_DEVICE if device and device.type == "cuda" else _PASS_COST


def micro_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, device: torch.device | None = None
) -> Iterator[list[int]]:
    """Indices of sequences grouped so that each group, padded, holds at most ``max_tokens``.

    A group costs its tokens, padding included, and a fixed number for the pass, which depends on
    ``device`` (None: a CPU). The grouping costs least among those of sequences sorted by length. The
    longest sequences come first, so that the first group needs most memory. A sequence longer than
    ``max_tokens`` is a group of its own.
    """
    contexts = np.array([len(s.context_ids) for s in sequences], dtype=np.int64)
    completions = np.array([len(s.completion_ids) for s in sequences], dtype=np.int64)
    order = np.lexsort((np.arange(len(sequences)), -contexts, -contexts - completions))

    def cost(end: int, widest: np.ndarray, longest: np.ndarray) -> tuple[np.ndarray, ...]:
        tokens = (end - np.arange(end)) * (widest + longest)
        return tokens, tokens + pass_cost(device)

    runs, _ = cheapest_runs(contexts[order], completions[order], cost, max_tokens)
    for start, end in runs:
        yield order[start:end].tolist()


RunCost = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
"""Memory and cost in tokens of the runs of items that begin at 0, 1, ... and end before an item.

Its arguments are that end and, of each run, the longest context and the longest completion.
"""


def cheapest_runs(
    contexts: np.ndarray, completions: np.ndarray, cost: RunCost, max_tokens: int
) -> tuple[list[tuple[int, int]], float]:
    """Cut a line of items into runs that cost least, and what they cost.

    A run of several items takes at most ``max_tokens`` of memory.

    Args:
        contexts, completions: length of each item's context and completion, [n].
    """
    size = len(contexts)
    # cheapest[i]: least cost of the first i items. widest[j] and longest[j]: maxima over j .. i.
    cheapest = np.zeros(size + 1)
    starts = np.zeros(size, dtype=np.int64)
    widest, longest = np.zeros_like(contexts), np.zeros_like(completions)
    for i in range(size):
        np.maximum(widest[: i + 1], contexts[i], out=widest[: i + 1])
        np.maximum(longest[: i + 1], completions[i], out=longest[: i + 1])
        memory, spent = cost(i + 1, widest[: i + 1], longest[: i + 1])
        total = cheapest[: i + 1] + spent
        total[:i][memory[:i] > max_tokens] = np.inf
        starts[i] = total.argmin()
        cheapest[i + 1] = total[starts[i]]
    runs = []
    end = size
    while end:
        runs.append((int(starts[end - 1]), end))
        end = int(starts[end - 1])
    return runs[::-1], float(cheapest[-1])
