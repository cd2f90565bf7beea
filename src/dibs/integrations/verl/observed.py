"""What verl's rows tell of their prompts, as :meth:`.PromptBudget.update` takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dibs.integrations.loss_lengths import Normalization, trained_norms
from dibs.integrations.verl.groups import Groups
from dibs.integrations.verl.last_layer import NORMS

SCORED = [NORMS, "old_log_probs"]
"""Fields of a batch whose norms are measured."""


def row_sums(values: torch.Tensor) -> np.ndarray:
    """Sum values [rows, T] in float64 [rows], since verl scores in bfloat16 by default."""
    sums: np.ndarray = values.double().sum(1).numpy()
    return sums


def observed(groups: Groups, data: dict[str, Any]) -> dict[str, Any]:
    """Rewards and lengths of each prompt's completions, from padded ``rm_scores``, ``response_mask``."""
    return {
        "rewards": groups.last(row_sums(data["rm_scores"])),
        "lengths": groups.total(row_sums(data["response_mask"])),
    }


def observed_with_norms(
    groups: Groups, data: dict[str, Any], normalization: Normalization
) -> dict[str, Any] | None:
    """The same with log-probabilities and gradient norms; None if no norm is finite.

    Completions whose norm is not finite are left out.

    Args:
        data: also :data:`SCORED`.
        normalization: of the loss, which the norms get too.
    """
    tokens = row_sums(data["response_mask"])
    rows = row_sums(data[NORMS].reshape(groups.rows, 1))
    # The scores of a completion's outputs are uncorrelated, so their squared norms add up on average.
    # With a critic's advantages the terms may be correlated, since the advantages of an early output
    # depend on what follows; the sum is an approximation there.
    squares = groups.total(trained_norms(rows, tokens, normalization) ** 2)
    norms = [np.sqrt(each).tolist() for each in squares]
    finite = [np.isfinite(each) for each in norms]
    if not np.concatenate(finite).any():
        return None
    logprobs = groups.total(row_sums(data["old_log_probs"].double() * data["response_mask"]))
    found = {**observed(groups, data), "logprobs": logprobs, "grad_norms": norms}
    return {
        name: [np.array(each)[kept].tolist() for each, kept in zip(values, finite, strict=True)]
        for name, values in found.items()
    }
