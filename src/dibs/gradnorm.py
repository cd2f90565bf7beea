"""Gradient norms of single completions.

``last_layer``: the norm of ``grad log pi(y|x)`` with respect to the output matrix, in closed form and
without a backward pass. With logits ``W h_t / tau`` the gradient of one completion is

    ``dW = (1/tau) sum_t delta_t h_t^T``,   ``delta_t = onehot(y_t) - softmax_t``

so ``||dW||^2 = (1/tau^2) sum_{t,u} (delta_t . delta_u) (h_t . h_u)``: two T x T Gram matrices, and no
V x d gradient is ever stored. Where input and output embeddings are tied, this is the part of the
shared matrix's gradient that flows through its use as output layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dibs.policy import Policy, TokenBatch, TokenSequence, micro_batches
from dibs.types import InputError, NonFiniteError

_VOCABULARY_CHUNK = 8192


@torch.no_grad()
def last_layer_norms(
    policy: Policy, sequences: Sequence[TokenSequence], max_tokens: int = 16384
) -> np.ndarray:
    """``||grad_W log pi(y|x)||`` of each sequence's completion, W the output matrix. Forward only.

    Args:
        policy: its model must compute logits as a Linear output layer of ``last_hidden_state``
            (Llama, Qwen, Mistral do); one that scales or caps them raises InputError.
        sequences: contexts and completions; an empty completion has norm 0.
        max_tokens: padded tokens of one forward pass.

    Returns:
        float64 [len(sequences)].

    Raises:
        NonFiniteError: a norm is NaN or infinite.
    """
    norms = np.zeros(len(sequences))
    training = policy.model.training
    policy.model.eval()
    try:
        for indices in micro_batches(sequences, max_tokens):
            batch = policy.collate([sequences[i] for i in indices])
            norms[indices] = _batch_norms(policy, batch).cpu().double().numpy()
    finally:
        policy.model.train(training)
    if not np.isfinite(norms).all():
        raise NonFiniteError("the gradient norm of a completion is NaN or infinite")
    return norms


def check_output_layer(policy: Policy, sequence: TokenSequence) -> None:
    """InputError unless the model's logits are its output layer applied to its last hidden state."""
    batch = policy.collate([sequence])
    with torch.no_grad():
        hidden = policy.hidden_states(batch)
        direct = _output_layer(policy)(hidden).float() / policy.temperature
        logits = policy.logits(batch)
    if not torch.allclose(direct, logits, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        raise InputError(
            f"estimate.grad_norm last_layer: {type(policy.model).__name__} changes its logits after "
            "the output layer, so the closed form does not hold; set estimate.grad_norm to none"
        )


def _output_layer(policy: Policy) -> nn.Linear:
    layer = policy.model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise InputError(
            f"estimate.grad_norm last_layer: {type(policy.model).__name__} has no Linear output "
            "layer; set estimate.grad_norm to none"
        )
    return layer


def _batch_norms(policy: Policy, batch: TokenBatch) -> Tensor:
    layer = _output_layer(policy)
    hidden = policy.hidden_states(batch)
    gram = _error_gram(hidden, layer, batch, policy.temperature)
    hidden = hidden.float()
    inner = hidden @ hidden.transpose(1, 2)
    if layer.bias is not None:
        inner = inner + 1.0
    squares = (gram * inner).sum(dim=(1, 2)) / policy.temperature**2
    return squares.clamp(min=0).sqrt()


def _error_gram(hidden: Tensor, layer: nn.Linear, batch: TokenBatch, temperature: float) -> Tensor:
    """``delta_t . delta_u`` for all pairs of completion tokens, [B, T, T]; 0 on padding.

    The vocabulary is walked in chunks, twice: for the normaliser and for the products.
    """
    vocabulary = layer.weight.shape[0]
    chunks = [
        slice(start, min(start + _VOCABULARY_CHUNK, vocabulary))
        for start in range(0, vocabulary, _VOCABULARY_CHUNK)
    ]

    def logits(chunk: slice) -> Tensor:
        bias = None if layer.bias is None else layer.bias[chunk]
        return nn.functional.linear(hidden, layer.weight[chunk], bias).float() / temperature

    normaliser = torch.stack([logits(chunk).logsumexp(-1) for chunk in chunks]).logsumexp(0)
    gram = hidden.new_zeros(hidden.shape[0], hidden.shape[1], hidden.shape[1], dtype=torch.float32)
    for chunk in chunks:
        error = -(logits(chunk) - normaliser.unsqueeze(-1)).exp()
        inside = (batch.completion_ids >= chunk.start) & (batch.completion_ids < chunk.stop)
        index = (batch.completion_ids - chunk.start).clamp(0, chunk.stop - chunk.start - 1)
        error.scatter_add_(-1, index.unsqueeze(-1), inside.float().unsqueeze(-1))
        error = error * batch.completion_mask.unsqueeze(-1)
        gram += error @ error.transpose(1, 2)
    return gram
