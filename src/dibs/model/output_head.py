"""Whether a model's logits are one plain output layer applied to its last hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dibs.model.batching import TokenBatch, collate
from dibs.model.forward_pass import completion_hidden_states, completion_logits, in_evaluation_mode

_PROBE_LENGTH = 4
"""Tokens of the sequence that the model is tried on."""


@dataclass(frozen=True)
class _Probe:
    """Token ids of the sequence that the model is tried on."""

    context_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@torch.no_grad()
def find_output_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output layer, if the model's logits are ``W h (+ b)`` of its last hidden states and no more.

    None for every other model: one that caps or scales its logits, whose layer has hooks, adapters or a
    parametrized weight, or that trains a parameter outside of decoder and output layer. Such a model
    must be asked for its logits.

    The model is tried on one short sequence, in evaluation mode: random numbers in place of the layer's
    output must come back as the logits, unchanged, and the layer's input must be the decoder's output.
    That takes two forward passes of four tokens. The global random state is not used.
    """
    layer = model.get_output_embeddings()
    if not _is_plain(layer) or _trains_other_parameters(model, layer):
        return None
    batch = _probing_batch(len(layer.weight), next(model.parameters()).device)
    seen: dict[str, Tensor] = {}

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        numbers = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * 50
        seen["input"], seen["output"] = inputs[0], numbers.to(output)
        return seen["output"]

    with in_evaluation_mode(model):
        handle = layer.register_forward_hook(replace)
        try:
            logits = completion_logits(model, batch)
        finally:
            handle.remove()
        if not seen:
            return None
        hidden = completion_hidden_states(model.get_decoder(), batch)
    columns = slice(-logits.shape[1] - 1, -1)
    same_input = torch.allclose(seen["input"][:, columns], hidden, rtol=1e-2, equal_nan=True)
    unchanged = torch.equal(seen["output"][:, columns].float(), logits.float())
    return layer if same_input and unchanged else None


def _is_plain(layer: nn.Module | None) -> bool:
    """Whether a layer is torch's own Linear with nothing added to it."""
    return (
        type(layer) is nn.Linear
        and isinstance(layer.weight, nn.Parameter)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and "forward" not in vars(layer)
    )


def _trains_other_parameters(model: PreTrainedModel, layer: nn.Linear) -> bool:
    """Whether a trainable parameter is in neither the decoder nor the output layer.

    Such a parameter may change the logits later, though it has no effect on them yet.
    """
    known = {id(p) for part in (model.get_decoder(), layer) for p in part.parameters()}
    return any(p.requires_grad and id(p) not in known for p in model.parameters())


def _probing_batch(vocabulary: int, device: torch.device) -> TokenBatch:
    """One sequence of different tokens, since the embedding of a padding token may be zero."""
    first, *others = (i % vocabulary for i in range(_PROBE_LENGTH))
    return collate([_Probe((first,), tuple(others))], pad_id=0, device=device)
