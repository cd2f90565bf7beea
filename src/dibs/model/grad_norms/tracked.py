"""Which parameters' gradients are measured, and a model prepared for measuring them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dibs.config import GradNormParameters
from dibs.model.grad_norms.checkpointing import Wrapper, recomputed_within
from dibs.model.grad_norms.recorder import UncoveredError
from dibs.model.policy import Policy


def tracked_parameters(policy: Policy, choice: GradNormParameters = "all") -> dict[str, Tensor]:
    """The chosen trainable parameters by name; InputError where there are none."""
    model = policy.model
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if choice == "lora":
        chosen = {name: p for name, p in trainable.items() if "lora_" in name}
    elif choice == "all":
        chosen = trainable
    else:
        layer = (
            model.get_input_embeddings()
            if choice == "embed_tokens"
            else model.get_output_embeddings()
        )
        own = set() if layer is None else {id(p) for p in layer.parameters()}
        chosen = {name: p for name, p in trainable.items() if id(p) in own}
    if not chosen:
        what = "parameter" if choice == "all" else f"parameter of {choice}"
        raise UncoveredError(f"grad_norm: no {what} of {type(model).__name__} is trainable")
    return chosen


@contextmanager
def gradients_of(
    tracked: dict[str, Tensor],
    model: nn.Module,
    around: Wrapper = lambda function: function,
) -> Iterator[None]:
    """Within, gradients flow to the tracked parameters alone; every ``.grad`` is put aside and put back.

    Gradient checkpointing works within; see :func:`.recomputed_within`.
    """
    chosen = {id(parameter) for parameter in tracked.values()}
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, trainable, _ in before:
            parameter.grad = None
            if trainable and id(parameter) not in chosen:
                parameter.requires_grad_(False)
        with recomputed_within(model, around), torch.enable_grad():
            yield
    finally:
        for parameter, trainable, gradient in before:
            parameter.grad = gradient
            parameter.requires_grad_(trainable)
