"""The cache of keys and values for rows that join and leave a batch while it is decoded."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from dibs.model.prefix_attention import Prefixes

_ROOM = 16
"""Least columns by which a buffer grows; a long one grows by a quarter, since new memory is slow."""


class GrowingLayer(DynamicLayer):
    """Keys and values [B, H, L, D] of one layer, in buffers with room for more columns.

    The layer of transformers would copy all columns with every token.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns, and return all keys and values as views of the buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states, value_states]
            self._show(key_states.shape[2])
            return self.keys, self.values
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            for i, seen in enumerate((self.keys, self.values)):
                rows, heads, _, width = seen.shape
                self._buffers[i] = seen.new_empty(rows, heads, _with_room(end), width)
                self._buffers[i][:, :, :start] = seen
        for buffer, fresh in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = fresh
        self._show(end)
        return self.keys, self.values

    def select(self, rows: Tensor, lead: int = 0) -> None:
        """Keep ``rows``, without their first ``lead`` columns; a row may be kept several times."""
        length = self.keys.shape[2] - lead
        self._buffers = [buffer[rows, :, lead:] for buffer in self._buffers]
        self._show(length)

    def join(self, other: GrowingLayer) -> None:
        """Append the rows of another layer; the shorter rows are padded on the left."""
        length = max(self.keys.shape[2], other.keys.shape[2])
        for i, (mine, theirs) in enumerate(((self.keys, other.keys), (self.values, other.values))):
            # Padding is zeros, since masked keys and values must be finite.
            buffer = mine.new_zeros(
                len(mine) + len(theirs), mine.shape[1], _with_room(length), mine.shape[3]
            )
            buffer[: len(mine), :, length - mine.shape[2] : length] = mine
            buffer[len(mine) :, :, length - theirs.shape[2] : length] = theirs
            self._buffers[i] = buffer
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def _with_room(length: int) -> int:
    return length + max(_ROOM, length // 4)


def continued(
    model: PreTrainedModel,
    cache: Cache,
    mask: Tensor,
    fresh: int,
    prompts: Prefixes | None = None,
) -> dict[str, Any]:
    """Arguments of a forward pass that goes on from a cache.

    State-space models have a name of their own for it, and mask the tokens that they read alone.

    Args:
        mask: [B, L], true where a row has a token.
        fresh: tokens that the pass reads, the last columns of ``mask``.
        prompts: that rows also attend to; None where the cache holds them.
    """
    if prompts is not None:
        mask = mask[:, None, None]
        return {"past_key_values": cache, "attention_mask": mask, "prefixes": prompts}
    if "cache_params" in inspect.signature(model.forward).parameters:
        return {"cache_params": cache, "attention_mask": mask[:, -fresh:].long()}
    return {"past_key_values": cache, "attention_mask": mask.long()}


def new_cache(model: PreTrainedModel) -> tuple[Cache, bool]:
    """An empty cache, and whether rows can join and leave it: where no layer has a window or state."""
    usual = DynamicCache(config=model.config)
    if all(type(layer) is DynamicLayer for layer in usual.layers):
        return Cache(layers=[GrowingLayer() for _ in usual.layers]), True
    return usual, False


def leading(mask: Tensor) -> int:
    """How many first columns no row has a token in, of ``mask`` [B, L]."""
    return int((~mask.any(0)).long().cumprod(0).sum())


def select_rows(cache: Cache, rows: Tensor, lead: int = 0) -> None:
    """:meth:`GrowingLayer.select` in every layer."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.select(rows, lead)


def join_rows(cache: Cache, other: Cache) -> None:
    """:meth:`GrowingLayer.join` in every layer."""
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        if mine.is_initialized:
            mine.join(theirs)
