"""Attention of packed tokens: completions attend to their prompt and to themselves.

All layers but attention treat every token by itself, so each token is computed once. Here the tokens of
a packed batch (see ``packing``) are put into padded rows for attention alone. Prompts attend to
themselves. Completions attend to a copy of their prompt's keys and values, and to their own. Autograd
adds the gradients of the copies up.

Models call it by transformers' interface for attention functions. Their argument ``prefixes`` is what
completions attend to: the layout of a packed batch, or prompts that sampling holds. Without it, this
attention does what ``sdpa`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dibs_shared_prefix"
"""Under which models find this attention."""


class Prefixes(Protocol):
    """What completions attend to, given to a model as the argument ``prefixes``."""

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Outputs [B, T, H, d] of attention, from queries, keys and values [B, H, T, d].

        ``mask``: what the model makes of its attention mask. ``options``: of the layer.
        """


@dataclass
class PrefixLayout:
    """Where the tokens of G prompts and of n completions lie among N packed tokens: prompts first.

    ``prompts``: length of each prompt, [G]. ``tails``: tokens of each completion that are computed, [n],
    0 included. ``owner``: prompt of each completion, [n]. ``windows``: the sliding windows of the layers
    that computed attention so far, None for a layer without one.
    """

    prompts: np.ndarray
    tails: np.ndarray
    owner: np.ndarray
    device: torch.device
    windows: set[int | None] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.starts = _starts(self.prompts)
        self.tail_starts = self.prompts.sum() + _starts(self.tails)
        self._masks: dict[int | None, tuple[Tensor | None, Tensor]] = {}
        longest, longest_tail = self.prompts.max(), self.tails.max()
        real = np.arange(longest) < self.prompts[:, None]
        real_tail = np.arange(longest_tail) < self.tails[:, None]
        rows = np.where(real, self.starts[:, None] + np.arange(longest), 0)
        tail_rows = np.where(real_tail, self.tail_starts[:, None] + np.arange(longest_tail), 0)
        self._prompt_rows = self._on_device(rows)
        self._tail_rows = self._on_device(tail_rows)
        self._key_rows = self._on_device(np.hstack([rows[self.owner], tail_rows]))
        padded = np.concatenate([real.ravel(), real_tail.ravel()])
        self._packed_rows = self._on_device(np.flatnonzero(padded))

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Outputs [1, N, H, d] of attention, from queries, keys and values [1, H, N, d].

        The layout itself decides what is attended to.
        """
        if options.get("position_bias") is not None:
            raise ValueError("attention with a bias of positions cannot share prompts")
        window = options.pop("sliding_window", None)
        self.windows.add(window)
        prompt_mask, tail_mask = self._masks_of(window)
        inputs = [each[0].transpose(0, 1) for each in (query, key, value)]
        options["is_causal"] = prompt_mask is None
        parts = [_attended(module, inputs, [self._prompt_rows] * 3, prompt_mask, options)]
        if self._tail_rows.shape[1]:
            rows = [self._tail_rows, self._key_rows, self._key_rows]
            options["is_causal"] = False
            parts.append(_attended(module, inputs, rows, tail_mask, options))
        return torch.cat(parts).index_select(0, self._packed_rows).unsqueeze(0)

    def _masks_of(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Which keys prompts and completions see: [., 1, P, P], None if all before; [., 1, T, P + T]."""
        if window not in self._masks:
            device = self.device
            places = torch.arange(self.prompts.max(), device=device)
            mask = None
            if window is not None and window < len(places):
                mask = _near(places, places, window)[None, None]
            # Completions of prompts of one length see the same keys.
            equal = (self.prompts == self.prompts[0]).all()
            lengths = self._on_device(self.prompts[:1] if equal else self.prompts[self.owner])
            own = torch.arange(self.tails.max(), device=device)
            queries = lengths.unsqueeze(1) + own
            of_prompt = _near(queries, places, window) & (places < lengths[:, None, None])
            of_own = _near(own, own, window).expand(len(lengths), -1, -1)
            self._masks[window] = mask, torch.cat([of_prompt, of_own], 2).unsqueeze(1)
        return self._masks[window]

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def _attended(
    module: nn.Module,
    inputs: list[Tensor],
    rows: list[Tensor],
    mask: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Outputs [B * T, H, d] of padded rows, from queries, keys and values [N, H, d] and places."""
    padded = [
        each.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
        for each, places in zip(inputs, rows, strict=True)
    ]
    made, _ = sdpa_attention_forward(module, *padded, mask, **options)
    return made.flatten(0, 1)


def _near(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Whether a key's position [k] is the query's [..., q] or before it, and within the window."""
    distance = queries.unsqueeze(-1) - keys
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefixes: Prefixes | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    if prefixes is None:
        made: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return made
    return prefixes.attend(module, query, key, value, attention_mask, **options), None


AttentionInterface.register(NAME, _prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
