"""Forward passes of a causal language model over a batch: hidden states and logits of completion tokens.

Column ``t`` of a result is what predicts token ``t`` of the completion. No other column is computed at
the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dibs.model.batching import TokenBatch


def completion_hidden_states(decoder: Callable[..., Any], batch: TokenBatch) -> Tensor:
    """Last hidden states that predict each completion token, [B, T, d]."""
    hidden: Tensor = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden[:, -batch.completion_ids.shape[1] - 1 : -1]


def completion_logits(model: Callable[..., Any], batch: TokenBatch) -> Tensor:
    """The model's own logits that predict each completion token, [B, T, V], at temperature 1."""
    length = batch.completion_ids.shape[1]
    logits: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=length + 1,
    ).logits
    return logits[:, -length - 1 : -1]


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
