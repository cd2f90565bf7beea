"""A check, before a run, that updates which measure norms have the gradient of those that do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dibs.config import UpdateConfig
from dibs.model.grad_norms import gradient_norms
from dibs.model.policy import Policy
from dibs.training.dropout import set_update_mode
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from dibs.types import InputError, TrainingExample

_ROUNDING = 1000
"""Relative difference that is allowed, in units of the weights' rounding."""


def check_weighted_gradient(policy: Policy, examples: Sequence[TrainingExample]) -> None:
    """Compare gradient and norms of one batch with those of separate passes.

    ``.grad`` of the policy is None afterwards. Raises InputError where they differ, or where the norms
    of some parameter are not covered (see :func:`.gradient_norms`).
    """
    norms = gradient_norms(policy, examples).norms
    updater = Updater(policy, PolicyLoss(clip=None), UpdateConfig(), 1)
    set_update_mode(policy.model)

    def gradient(squares: np.ndarray | None) -> torch.Tensor:
        updater.optimizer.zero_grad(set_to_none=False)
        updater.gradient(examples, squares=squares)
        return updater.projection()

    squares = np.full(len(examples), np.nan)
    found, expected = gradient(squares), gradient(None)
    updater.optimizer.zero_grad(set_to_none=True)
    rounding = min(_ROUNDING * torch.finfo(policy.model.dtype).eps, 0.1)
    same_norms = np.allclose(np.sqrt(squares), norms, rtol=rounding)
    if not same_norms or (found - expected).norm() > rounding * expected.norm():
        raise InputError(
            f"estimate.grad_norm update: an update of {type(policy.model).__name__} that measures norms "
            "would not have the same gradient; set estimate.grad_norm to exact"
        )
