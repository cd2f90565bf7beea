"""The gradient of a weighted loss and the norm of every completion's gradient, from one backward pass.

A loss that is a weighted sum of log-probabilities, ``sum_b c_b log pi(y_b|x_b)``, has the gradient
``sum_b c_b s_b``. The backward pass of ``sum_b log pi(y_b|x_b)`` passes each layer's part of every
``s_b``. So that one is run: it records the norm of each ``s_b`` (see ``recorder``), and ``.grad`` gets
the weighted sum. A completion with ``c_b = 0`` is measured like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dibs.model.batching import TokenBatch
from dibs.model.grad_norms.checkpointing import recomputed_within
from dibs.model.grad_norms.methods import through_head, tracked_parameters
from dibs.model.grad_norms.products import Products
from dibs.model.grad_norms.recorder import Recorder
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

    Returns:
        ``||s||^2``, float64 [B]. Where the derivatives differ within a completion, s is the sum of its
        tokens' gradients, each times its derivative over the nominal one: the norm that the loss has.

    Raises UncoveredError where a trainable parameter is used in a way that is not covered.
    """
    tracked = tracked_parameters(policy)
    head = policy.output_head
    if getattr(head, "bias", None) is not None:
        head = None
    products = Products(len(nominal), pairs=False, device=policy.device)
    recorder = Recorder(tracked, products, batch.input_ids.shape[1])
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
        relative, recorder.coefficients = _relative(slopes, nominal, batch.completion_mask)
        if head is not None:
            relative = through_head(head, start, batch, policy.temperature, recorder, relative)
        if start.requires_grad:
            torch.autograd.backward(start, relative)
    recorder.close()
    return products.total.clamp(min=0)


def _relative(slopes: Tensor, nominal: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives as those of a completion's tokens relative to each other [B, T], times a number [B].

    They are 1 where all of a completion's derivatives are equal, rounding aside.
    """
    least = slopes.masked_fill(~mask, torch.inf).amin(1)
    most = slopes.masked_fill(~mask, -torch.inf).amax(1)
    empty = ~mask.any(1)
    least, most = least.masked_fill(empty, 0.0), most.masked_fill(empty, 0.0)
    size = torch.maximum(least.abs(), most.abs())
    uneven = (most - least > 1e-6 * size) & (nominal != 0)
    coefficients = torch.where(uneven, nominal, (least + most) / 2)
    ratios = slopes / torch.where(uneven, nominal, 1.0).unsqueeze(1)
    return torch.where(uneven.unsqueeze(1), ratios, mask.to(slopes.dtype)), coefficients
