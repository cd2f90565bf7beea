"""Keys and values of prompts, held once for all completions of a prompt while these are decoded.

The queries of a prompt's completions are multiplied with its keys together, so that memory is read
once a prompt and not once a completion. Each completion also attends to its own tokens, whose keys and
values lie in the usual cache. The two softmaxes are put together by the sums that they were divided by
("bifurcated attention", arXiv:2403.08845, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache

from dibs.rollouts.sampling.cache import GrowingLayer, leading


class PromptCache:
    """G prompts that B rows go on from.

    ``mask``: bool [G, P], true where a prompt has a token; short ones are padded on the left. ``owner``:
    the prompt of each row, [B]. ``keys``, ``values``: of each layer, [G, H, P, D].
    """

    def __init__(self, cache: Cache, mask: Tensor, owner: Tensor) -> None:
        # Where rows and heads do not lie one after another, every product would copy them.
        self.keys = [layer.keys.contiguous() for layer in cache.layers]
        self.values = [layer.values.contiguous() for layer in cache.layers]
        self.mask = mask
        self._set_owner(owner)

    def empty_cache(self) -> Cache:
        """A cache for the rows' own tokens, without any yet."""
        rows, layers = len(self.owner), []
        for keys, values in zip(self.keys, self.values, strict=True):
            layer = GrowingLayer()
            layer.update(
                keys[:1, :, :0].repeat(rows, 1, 1, 1), values[:1, :, :0].repeat(rows, 1, 1, 1)
            )
            layers.append(layer)
        return Cache(layers=layers)

    def select(self, rows: Tensor) -> None:
        """Keep ``rows``, and the prompts that they need."""
        needed, owner = self.owner[rows].unique(return_inverse=True)
        if len(needed) < len(self.mask):
            self.mask = self.mask[needed]
            lead = leading(self.mask)
            self.mask = self.mask[:, lead:]
            self.keys = [each[needed, :, lead:] for each in self.keys]
            self.values = [each[needed, :, lead:] for each in self.values]
        self._set_owner(owner)

    def join(self, other: PromptCache) -> None:
        """Append the prompts and rows of another cache."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        owner = torch.cat([self.owner, other.owner + len(self.mask)])
        masks = [pad(mask, (length - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        self.mask = torch.cat(masks)
        self.keys = [_stacked(each, length) for each in zip(self.keys, other.keys, strict=True)]
        self.values = [
            _stacked(each, length) for each in zip(self.values, other.values, strict=True)
        ]
        self._set_owner(owner)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        **options: Any,
    ) -> Tensor:
        """Outputs [B, 1, H, D] of attention, from queries [B, H, 1, D] and the rows' own tokens.

        ``key``, ``value``: of these, [B, H, T, D]. ``mask``: which there are, bool [B, 1, 1, T].
        """
        if options.get("sliding_window") is not None or options.get("position_bias") is not None:
            raise ValueError("attention with a window or a bias cannot go on from shared prompts")
        scaling = options.get("scaling")
        query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        layer: Any = module.layer_idx
        rows, heads, _, width = query.shape
        groups = query.view(rows, key.shape[1], -1, width)
        places, back = self._places, self._back
        together = groups[places.flatten()].unflatten(0, places.shape).transpose(1, 2)
        shape = together.shape
        shared, shared_sum = _softmax(
            together.flatten(2, 3), self.keys[layer], self.values[layer], self._shown
        )
        shared = shared.view(*shape[:4], -1).transpose(1, 2).flatten(0, 1)[back]
        shared_sum = shared_sum.view(shape[:4]).transpose(1, 2).flatten(0, 1)[back]
        own, own_sum = _softmax(groups, key, value, mask)
        weight = (shared_sum - own_sum).sigmoid().unsqueeze(-1)
        made = torch.lerp(own, shared, weight)
        return made.to(query.dtype).view(rows, 1, heads, -1)

    def _set_owner(self, owner: Tensor) -> None:
        """``_places``: the rows of each prompt, [G, n], padded; ``_back``: where a row is there, [B]."""
        self.owner = owner
        self._shown = None if self.mask.all() else self.mask[:, None, None]
        counts = owner.bincount(minlength=len(self.mask))
        order = owner.argsort(stable=True)
        rank = torch.empty_like(order)
        starts = (counts.cumsum(0) - counts)[owner[order]]
        rank[order] = torch.arange(len(owner), device=owner.device) - starts
        self._places = owner.new_zeros(len(self.mask), int(counts.max()))
        self._places[owner, rank] = torch.arange(len(owner), device=owner.device)
        self._back = owner * self._places.shape[1] + rank


def _softmax(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, Q, D] of attention to these keys alone, and ln sum exp(scores), [B, H, Q].

    Both in float32.

    Args:
        query: [B, H, Q, D], scaled.
        keys, values: [B, H, L, D].
        mask: bool [B, 1, 1, L], true for keys that are seen; None if all are.
    """
    scores = (query @ keys.transpose(2, 3)).float()
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    sums = weights.sum(-1, keepdim=True)
    made = (weights.to(values.dtype) @ values).float() / sums
    return made, (sums.log_() + highest).squeeze(-1)


def _stacked(parts: Sequence[Tensor], length: int) -> Tensor:
    """Keys or values [., H, L, D] of several caches, padded on the left to ``length``.

    Padding is zeros, since masked keys and values must be finite.
    """
    return torch.cat([pad(each, (0, 0, length - each.shape[2], 0)) for each in parts])
