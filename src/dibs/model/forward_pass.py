"""Forward passes of a causal language model over a batch: hidden states and logits of completion tokens.

Column ``t`` of a result is what predicts token ``t`` of the completion. No other column is computed at
the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dibs.model.batching import TokenBatch
from dibs.model.packing import PackedBatch


def completion_hidden_states(
    decoder: Callable[..., Any], batch: TokenBatch | PackedBatch
) -> Tensor:
    """Last hidden states that predict each completion token, [B, T, d]; of a packed batch [K, d]."""
    hidden: Tensor = decoder(**_inputs(batch)).last_hidden_state
    if isinstance(batch, PackedBatch):
        return hidden[0].index_select(0, batch.predictors)
    return hidden[:, -batch.completion_ids.shape[1] - 1 : -1]


def completion_logits(model: Callable[..., Any], batch: TokenBatch | PackedBatch) -> Tensor:
    """The model's own logits that predict each completion token, [B, T, V], at temperature 1.

    Of a packed batch they are those of its real tokens alone, [K, V].
    """
    if isinstance(batch, PackedBatch):
        kept: Tensor = model(**_inputs(batch), logits_to_keep=batch.predictors).logits
        return kept[0]
    length = batch.completion_ids.shape[1]
    logits: Tensor = model(**_inputs(batch), logits_to_keep=length + 1).logits
    return logits[:, -length - 1 : -1]


def _inputs(batch: TokenBatch | PackedBatch) -> dict[str, Any]:
    """The arguments of a forward pass over a batch."""
    given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if isinstance(batch, TokenBatch):
        return {**given, "attention_mask": batch.attention_mask}
    # The layout decides what is attended to. A mask of four axes keeps models from making one.
    mask = batch.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
    return {**given, "attention_mask": mask, "prefixes": batch.layout}


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode; afterwards each is in the mode it was in before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
