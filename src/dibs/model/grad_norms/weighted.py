"""The gradient of a weighted loss and the norm of every completion's gradient, from one backward pass.

A loss that is a weighted sum of log-probabilities, ``sum_b c_b log pi(y_b|x_b)``, has the gradient
``sum_b c_b s_b``. Its backward pass passes each layer's part of every ``c_b s_b``. The norm of each is
recorded (see ``recorder``) and divided by ``|c_b|``. A completion with ``c_b = 0`` runs through the same
backward pass with ``c_b = 1`` and is kept out of ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dibs.model.batching import TokenBatch
from dibs.model.grad_norms.checkpointing import recomputed_within
from dibs.model.grad_norms.methods import through_head
from dibs.model.grad_norms.products import Products
from dibs.model.grad_norms.recorder import Recorder
from dibs.model.grad_norms.tracked import tracked_parameters
from dibs.model.policy import Policy
from dibs.model.token_logprobs import token_logprobs
from dibs.types import InputError

LossOf = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities and entropies, [B, T] each, to the loss. It is called once."""


def check_weighted(policy: Policy, dropout: float) -> None:
    """Raise InputError where norms cannot come from the updates of this policy."""
    reasons = {
        "runs a compiled model (policy.compile)": policy.compiled,
        "multiplies in bfloat16 and keeps float32 weights (mixed)": policy.mixed,
        f"has dropout (policy.lora.dropout {dropout})": dropout > 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(
                f"estimate.grad_norm update: the policy {reason}, so its norms would not be those of a "
                "separate pass; set estimate.grad_norm to exact"
            )


def weighted_backward(
    policy: Policy, batch: TokenBatch, loss_of: LossOf, nominal: Tensor
) -> Tensor:
    """Add the gradient of a loss to ``.grad`` and return the completions' squared norms.

    Args:
        loss_of: the loss, which depends on the policy by the log-probabilities alone.
        nominal: of each completion, [B], the loss's derivative by the log-probability of a token whose
            importance ratio is 1. It is used where a completion's tokens have different derivatives.
            Completions at the end may have 0; no others.

    Returns:
        ``||s||^2``, float64 [B]; NaN for a completion that the loss leaves out although its nominal
        derivative is not 0. Where the derivatives differ within a completion, s is the sum of its
        tokens' gradients, each times its derivative over the nominal one: the norm that the loss has.

    Raises UncoveredError where a trainable parameter is used in a way that is not covered.
    """
    tracked = tracked_parameters(policy)
    head = policy.output_head
    if getattr(head, "bias", None) is not None:
        head = None
    products = Products(len(nominal), pairs=False, device=policy.device)
    recorder = Recorder(tracked, products, batch.input_ids.shape[1])
    recorder.learned = learned = int(nominal.count_nonzero())
    if (nominal[:learned] == 0).any():
        raise ValueError("completions with a nominal derivative of 0 must be the last ones")
    with recomputed_within(policy.model, recorder.around):
        with recorder:
            if head is None:
                start, entropy = policy.logprobs_from_logits(batch)
                logprobs = start.detach()
            else:
                start = policy.hidden_states(batch)
        if head is not None:
            with torch.no_grad():
                scores = token_logprobs(start, head, batch.completion_ids, policy.temperature)
            logprobs, entropy = (each.masked_fill(~batch.completion_mask, 0.0) for each in scores)
        loss = loss_of(logprobs.requires_grad_(), entropy)
        (slopes,) = torch.autograd.grad(loss, logprobs)
        mask = batch.completion_mask
        slopes[learned:] = mask[learned:].to(slopes.dtype)
        passed = slopes
        if head is not None:
            passed = through_head(head, start, batch, policy.temperature, recorder, slopes)
        if start.requires_grad:
            torch.autograd.backward(start, passed)
    recorder.close()
    return products.total.clamp(min=0) / _coefficients(slopes, nominal, mask).double().square()


def _coefficients(slopes: Tensor, nominal: Tensor, mask: Tensor) -> Tensor:
    """What a norm is divided by, [B]: the tokens' derivative if they share one, else the nominal.

    A completion without tokens has norm 0, whatever this is; it must not be 0.
    """
    least = slopes.masked_fill(~mask, torch.inf).amin(1)
    most = slopes.masked_fill(~mask, -torch.inf).amax(1)
    even = most - least <= 1e-6 * torch.maximum(least.abs(), most.abs())
    own = torch.where(even, (least + most) / 2, nominal)
    return torch.where(mask.any(1), own, 1.0)
