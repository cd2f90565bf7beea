"""What a batch of TRL's completions holds: the tokens that count, contexts and log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dibs.types import InputError


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """Return the mask of the tokens that TRL's loss counts, [B, T]."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def sampled_logprobs(batch: dict[str, Any]) -> np.ndarray | None:
    """Return ``ln pi(y|x)`` of each completion, float64 [B], or None if TRL has not computed it."""
    per_token = batch.get("old_per_token_logps")
    if per_token is None:
        return None
    return (per_token * loss_mask(batch)).sum(1).double().cpu().numpy()


def contexts_of(batch: dict[str, Any]) -> list[list[int]]:
    """Return the tokens before each completion.

    Raises InputError for a batch with masked tokens inside completions.
    """
    if "tool_mask" in batch:
        raise InputError(
            "rollout_func gives an env_mask, and gradient norms do not leave out masked tokens; "
            "set DIBSConfig.grad_norm to none"
        )
    pairs = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]
