"""Batches in which a prompt is computed once for all its completions, and when they cost less.

A packed batch is one row of tokens without padding: the prompts, then the completions. Forward and
backward passes compute P + sum of R tokens for a prompt of P tokens, in place of n (P + R).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dibs.model.batching import (
    TokenSequence,
    cheapest_runs,
    micro_batches,
    padded_completions,
    pass_cost,
)
from dibs.model.prefix_attention import PrefixLayout

COPY_MEMORY = 1 / 8
"""Memory of one copied key and value, in tokens. A layer keeps some 16 vectors of a token."""
_COPY_COST = 1 / 32
"""Time of copying a key and a value and of adding up their gradients, in tokens."""

_Numbers = TypeVar("_Numbers", float, np.ndarray)


@dataclass(frozen=True)
class PackedBatch:
    """``B`` completions after their prompts, ``N`` tokens in all.

    ``input_ids``, ``position_ids``: [1, N], the prompts first. The last token of a completion predicts
    none, so it is not computed. ``layout``: where prompts and completions lie. ``predictors``: the place
    of the token that predicts each completion token, [K] for the K real ones, row by row.
    ``completion_ids``, ``completion_mask``: as in :class:`.TokenBatch`.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: PrefixLayout
    predictors: Tensor
    completion_ids: Tensor
    completion_mask: Tensor

    @property
    def predicted(self) -> Tensor:
        """The tokens whose log-probabilities are computed, [K]: no padding."""
        return self.completion_ids[self.completion_mask]

    def padded(self, values: Tensor) -> Tensor:
        """Values of the predicted tokens [K] at their places, and 0 on padding, [B, T]."""
        zeros = values.new_zeros(self.completion_mask.shape)
        return zeros.masked_scatter(self.completion_mask, values)


def pack(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device) -> PackedBatch:
    """Lay sequences out with each distinct context once; at least one sequence, no empty context."""
    numbers: dict[tuple[int, ...], int] = {}
    owner = np.array([numbers.setdefault(s.context_ids, len(numbers)) for s in sequences])
    contexts = list(numbers)
    prompts = np.array([len(context) for context in contexts])
    tails = np.array([max(len(s.completion_ids) - 1, 0) for s in sequences])
    layout = PrefixLayout(prompts, tails, owner, device)
    ids = [*contexts, *(s.completion_ids[:-1] for s in sequences)]
    first = np.concatenate([np.zeros_like(prompts), prompts[owner]])
    lengths = np.concatenate([prompts, tails])
    positions = [np.arange(start, start + n) for start, n in zip(first, lengths, strict=True)]
    completion_ids, mask = padded_completions(sequences, pad_id)
    last = layout.starts[owner] + prompts[owner] - 1
    columns = np.arange(completion_ids.shape[1])
    after = layout.tail_starts[:, None] + columns - 1
    predictors = np.where(columns > 0, after, last[:, None])[mask.numpy()]
    return PackedBatch(
        torch.tensor([[token for part in ids for token in part]], device=device),
        torch.from_numpy(np.concatenate(positions)[None]).to(device),
        layout,
        torch.from_numpy(predictors).to(device),
        completion_ids.to(device),
        mask.to(device),
    )


def cheapest_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, device: torch.device, width: int
) -> tuple[list[list[int]], bool]:
    """Indices of sequences grouped to micro-batches, and whether these are to be packed.

    Each kind is grouped as well as it can be, and the one that costs less is taken. The choice
    depends on the lengths of sequences, on which have one prompt, and on the arguments.
    """
    if len({s.context_ids for s in sequences}) == len(sequences):
        return list(micro_batches(sequences, max_tokens, device)), False
    each_pass = pass_cost(device)
    packed, packed_cost = packed_batches(sequences, max_tokens, each_pass, width)
    lengths = np.array([len(s.context_ids) + len(s.completion_ids) for s in sequences])
    passes = np.ceil(np.minimum(lengths, max_tokens).sum() / max_tokens)
    # Plain batches cost at least this, so that they need not be grouped.
    if packed_cost < _row_cost(lengths, width).sum() + passes * each_pass:
        return packed, True
    plain = list(micro_batches(sequences, max_tokens, device))
    cost = 0.0
    for indices in plain:
        contexts = max(len(sequences[i].context_ids) for i in indices)
        length = contexts + max(len(sequences[i].completion_ids) for i in indices)
        cost += len(indices) * _row_cost(length, width) + each_pass
    return (packed, True) if packed_cost < cost else (plain, False)


def _row_cost(length: _Numbers, width: int) -> _Numbers:
    """What a row of a plain batch costs, in tokens, from its length, padding included."""
    # Half of the pairs lie after the query. torch computes them where rows are padded.
    return length + attention_cost(length**2 / 2, width)


def packed_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, each_pass: float, width: int
) -> tuple[list[list[int]], float]:
    """Indices of sequences grouped to packed batches that cost least, and their cost in tokens.

    A group with more tokens than ``max_tokens`` is split, and its prompt computed once in each part. A
    single sequence may have more. Copies of keys and values count towards ``max_tokens`` by
    :data:`COPY_MEMORY`. The parts with the longest sequences come first.

    Args:
        each_pass: what a pass costs besides its tokens, in tokens.
        width: of the model, see :func:`attention_cost`.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(sequence.context_ids, []).append(i)
    sizes = np.array([max(len(s.completion_ids) - 1, 0) for s in sequences])
    parts = [
        (len(context), part)
        for context, members in groups.items()
        for part in _parts(len(context), sizes, members, max_tokens)
    ]
    parts.sort(key=lambda each: (-each[0] - sizes[each[1][0]], -each[0]))
    prompts = np.array([length for length, _ in parts])
    counts = np.array([len(part) for _, part in parts])
    tails = np.array([sizes[part[0]] for _, part in parts])
    packed = prompts + np.array([sizes[part].sum() for _, part in parts])
    packed_before = np.concatenate([[0], packed.cumsum()])
    counts_before = np.concatenate([[0], counts.cumsum()])

    def cost(end: int, longest: np.ndarray, longest_tail: np.ndarray) -> tuple[np.ndarray, ...]:
        tokens = packed_before[end] - packed_before[:end]
        completions = counts_before[end] - counts_before[:end]
        copies = completions * (longest + longest_tail)
        pairs = (end - np.arange(end)) * longest**2 / 2 + copies * longest_tail
        spent = tokens + _COPY_COST * copies + attention_cost(pairs, width)
        return tokens + COPY_MEMORY * copies, spent + each_pass

    runs, total = cheapest_runs(prompts, tails, cost, max_tokens)
    return [[i for _, part in parts[start:end] for i in part] for start, end in runs], total


def attention_cost(pairs: _Numbers, width: int) -> _Numbers:
    """What attention costs, in tokens, from the pairs of query and key.

    In a layer of width w a token takes about 24 w^2 operations outside attention, and a pair 4 w.
    """
    return pairs / (6 * width)


def _parts(prompt: int, sizes: np.ndarray, members: list[int], max_tokens: int) -> list[list[int]]:
    """Completions of one prompt, longest first, in parts that fit into ``max_tokens``."""
    parts: list[list[int]] = []
    tokens = 0.0
    for i in sorted(members, key=lambda i: (-sizes[i], i)):
        if parts:
            copies = COPY_MEMORY * (prompt + sizes[parts[-1][0]])
            tokens += sizes[i] + copies
        if not parts or tokens > max_tokens:
            parts.append([])
            tokens = prompt + sizes[i] + COPY_MEMORY * (prompt + sizes[i])
        parts[-1].append(i)
    return parts
