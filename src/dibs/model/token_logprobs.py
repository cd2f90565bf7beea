"""Log-probabilities and entropies of tokens without a [tokens, vocabulary] tensor.

The output layer is applied to a block of tokens at a time, and again in the backward pass, so that only
one block of logits is held. torch's ``linear_cross_entropy`` is of no use here: it computes gradients in
the forward pass, and the slope of a clipped ratio is known only afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 2**22
"""Logits held at once on a CPU (16 MiB), more where one token's logits need it."""
_BLOCK_ON_DEVICE = 2**27
"""The same on an accelerator (512 MiB)."""


def token_logprobs(
    hidden: Tensor, layer: nn.Linear, tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """``log softmax(layer(hidden) / temperature)`` at each token, and the softmax's entropy.

    Args:
        hidden: inputs of the layer, [..., d].
        layer: the output layer; its bias may be None.
        tokens: token ids, int64 [...].
        temperature: divides the logits, above 0.

    Returns:
        Log-probabilities and entropies in nats, float32 [...] each. The entropy carries no gradient.
    """
    flat = hidden.flatten(0, -2)
    logprobs, entropy = _TokenLogprobs.apply(
        flat, layer.weight, layer.bias, tokens.flatten(), temperature
    )
    return logprobs.view(tokens.shape), entropy.view(tokens.shape)


def full_logprobs(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of tokens [...], from logits over temperature [..., V]."""
    table = logits.log_softmax(-1)
    chosen = table.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = -(table.exp() * table).sum(-1)
    return chosen, entropy


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        chosen = hidden.new_empty(len(tokens), dtype=torch.float32)
        normalizer, entropy = torch.empty_like(chosen), torch.empty_like(chosen)
        ctx.dtype = hidden.dtype
        for rows in _blocks(tokens, weight):
            output = nn.functional.linear(hidden[rows], weight, bias)
            ctx.dtype = output.dtype  # under autocast, autocast's
            logits = _over(output, temperature)
            normalizer[rows] = logits.logsumexp(-1)
            chosen[rows] = logits.gather(-1, tokens[rows].unsqueeze(-1)).squeeze(-1)
            powers = (logits - normalizer[rows].unsqueeze(-1)).exp_()
            entropy[rows] = normalizer[rows] - torch.linalg.vecdot(powers, logits)
        ctx.temperature = temperature
        ctx.save_for_backward(hidden, weight, bias, tokens, normalizer)
        ctx.mark_non_differentiable(entropy)
        return chosen - normalizer, entropy

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, normalizer = ctx.saved_tensors
        to_hidden, to_weight, to_bias, *_ = ctx.needs_input_grad
        d_hidden = torch.zeros_like(hidden) if to_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if to_bias else None
        matrix = weight.to(ctx.dtype)
        offset = None if bias is None else bias.to(ctx.dtype)
        for rows in _blocks(tokens, weight):
            inputs = hidden[rows].to(ctx.dtype)
            logits = _over(nn.functional.linear(inputs, matrix, offset), ctx.temperature)
            # d logprob / d logits = (onehot - softmax) / temperature
            slope = slopes[0][rows].unsqueeze(-1) / ctx.temperature
            errors = logits.sub_(normalizer[rows].unsqueeze(-1)).exp_().mul_(-slope)
            errors.scatter_add_(-1, tokens[rows].unsqueeze(-1), slope)
            if d_bias is not None:
                d_bias += errors.sum(0)
            errors = errors.to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (errors @ matrix).to(hidden.dtype)
            if d_weight is not None:
                if ctx.dtype == torch.float32:
                    d_weight.addmm_(errors.T, inputs)
                else:
                    d_weight += errors.T @ inputs
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )


def _over(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1 else logits.div_(temperature)


def _blocks(tokens: Tensor, weight: Tensor) -> Iterator[slice]:
    size = max(1, (_BLOCK_ON_DEVICE if weight.is_cuda else _BLOCK) // len(weight))
    for start in range(0, len(tokens), size):
        yield slice(start, start + size)
