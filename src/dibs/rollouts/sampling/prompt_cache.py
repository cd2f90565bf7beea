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
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from dibs.rollouts.sampling.cache import GrowingLayer, leading


class PromptCache:
    """G prompts that B rows go on from.

    ``mask``: bool [G, P], true where a prompt has a token; short ones are padded on the left. ``owner``:
    the prompt of each row, [B]. ``keys``, ``values``: of each layer, [G, H, P, D]. Prompts with most
    rows come first, so that those with about as many lie side by side and are multiplied together.
    """

    def __init__(self, cache: Cache, mask: Tensor, owner: Tensor) -> None:
        self.keys = [layer.keys for layer in cache.layers]
        self.values = [layer.values for layer in cache.layers]
        self.mask = mask
        self._arrange(owner)

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
        self._arrange(self.owner[rows])

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
        self._arrange(owner)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Outputs [B, 1, H, D] of attention, from queries [B, H, 1, D] and the rows' own tokens.

        ``key``, ``value``: of these, [B, H, T, D]. ``mask``: which there are, bool [B, 1, 1, T].
        """
        if mask is None:
            raise ValueError("the model leaves out the attention mask that it is given")
        if options.get("sliding_window") is not None or options.get("position_bias") is not None:
            raise ValueError("attention with a window or a bias cannot go on from held prompts")
        scaling = options.get("scaling")
        rows, heads, _, width = query.shape
        groups = query.view(rows, key.shape[1], -1, width)
        layer: Any = module.layer_idx
        parts = [
            self._of_prompts(
                groups, places, self.keys[layer][which], self.values[layer][which], added, scaling
            )
            for which, places, added in self._alike
        ]
        shared, shared_sum = (torch.cat(each)[self._back] for each in zip(*parts, strict=True))
        own, own_sum = _softmax(groups, key, value, _added(mask, query), scaling)
        weight = (shared_sum - own_sum).sigmoid().unsqueeze(-1)
        made = torch.lerp(own, shared, weight)
        return made.reshape(rows, 1, heads, -1)

    @staticmethod
    def _of_prompts(
        groups: Tensor,
        places: Tensor,
        keys: Tensor,
        values: Tensor,
        added: Tensor | None,
        scaling: float | None,
    ) -> tuple[Tensor, Tensor]:
        """:func:`_softmax` of prompts with about as many rows, [G n, H, Q, D] and [G n, H, Q].

        ``groups``: queries of all rows, [B, H, Q, D]. ``places``: the rows of each prompt, [G, n].
        """
        together = groups[places.flatten()].unflatten(0, places.shape).transpose(1, 2)
        shape = together.shape[:4]
        made, sums = _softmax(together.flatten(2, 3), keys, values, added, scaling)
        made, sums = made.unflatten(2, shape[2:]), sums.unflatten(2, shape[2:])
        return made.transpose(1, 2).flatten(0, 1), sums.transpose(1, 2).flatten(0, 1)

    def _arrange(self, owner: Tensor) -> None:
        """Put prompts in order, without those that no row needs.

        ``_alike``: runs of prompts of which none has less than half of the rows of the first: which they
        are, their rows [G, n], padded with row 0, and what is added to scores, None if all are seen.
        ``_back``: where each row is in all of these, one after the other, [B].
        """
        counts = owner.bincount(minlength=len(self.mask))
        order = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
        mask = self.mask[order]
        lead = leading(mask)
        self.mask = mask[:, lead:]
        # Where rows and heads do not lie one after another, every product would copy them.
        self.keys = [each[order, :, lead:].contiguous() for each in self.keys]
        self.values = [each[order, :, lead:].contiguous() for each in self.values]
        rank = torch.empty_like(counts)
        rank[order] = torch.arange(len(order), device=owner.device)
        self.owner = rank[owner]
        sizes = counts[order].tolist()
        by_prompt = self.owner.argsort(stable=True)
        rows = by_prompt.split(sizes)
        self._alike: list[tuple[slice, Tensor, Tensor | None]] = []
        firsts: list[int] = []  # where the rows of each prompt begin among those of all runs
        before = 0
        while len(firsts) < len(sizes):
            start, most = len(firsts), sizes[len(firsts)]
            end = next((g for g in range(start, len(sizes)) if 2 * sizes[g] < most), len(sizes))
            shown = self.mask[start:end]
            places = pad_sequence(rows[start:end], batch_first=True)
            self._alike.append(
                (
                    slice(start, end),
                    places,
                    None if shown.all() else _added(shown, self.keys[0])[:, None, None],
                )
            )
            firsts += range(before, before + (end - start) * most, most)
            before += (end - start) * most
        shift = owner.new_tensor(firsts) - counts[order].cumsum(0) + counts[order]
        self._back = torch.empty_like(owner)
        place = torch.arange(len(owner), device=owner.device)
        self._back[by_prompt] = place + shift[self.owner[by_prompt]]


def _softmax(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, Q, D] of attention to these keys alone, and ln sum exp(scores), [B, H, Q].

    torch's public attention keeps the sums to itself, so this calls the kernel below it.

    Args:
        query: [B, H, Q, D].
        keys, values: [B, H, L, D].
        mask: what is added to scores, [B, 1, 1, L]; None: nothing.
        scaling: of the scores; None: ``D ** -0.5``.
    """
    made, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, attn_mask=mask, scale=scaling
    )
    return made, sums


def _added(shown: Tensor, like: Tensor) -> Tensor:
    """What to add to scores so that keys which are not ``shown`` get no weight."""
    return torch.zeros_like(shown, dtype=like.dtype).masked_fill_(~shown, -torch.inf)


def _stacked(parts: Sequence[Tensor], length: int) -> Tensor:
    """Keys or values [., H, L, D] of several caches, padded on the left to ``length``.

    Padding is zeros, since masked keys and values must be finite.
    """
    return torch.cat([pad(each, (0, 0, length - each.shape[2], 0)) for each in parts])
