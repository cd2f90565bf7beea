"""Gradient checkpointing while gradients are recorded: what runs again is recorded too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

_Function = Callable[..., Any]
Wrapper = Callable[[_Function], _Function]


@contextmanager
def recomputed_within(model: nn.Module, around: Wrapper) -> Iterator[None]:
    """Within, ``around`` wraps the function that a layer runs again for the backward pass.

    transformers checkpoints layers in training mode only, so the layers that do are in training mode.
    """
    layers = {
        layer: (layer._gradient_checkpointing_func, layer.training)
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing
    }
    try:
        for layer, (checkpoint, _) in layers.items():
            layer.training = True
            layer._gradient_checkpointing_func = partial(_checkpointed, layer, checkpoint, around)
        yield
    finally:
        for layer, (checkpoint, training) in layers.items():
            layer.training = training
            layer._gradient_checkpointing_func = checkpoint


def _checkpointed(
    layer: nn.Module,
    checkpoint: _Function,
    around: Wrapper,
    function: _Function,
    *inputs: Any,
) -> Any:
    """Checkpoint the layer's ``function``. It runs in evaluation mode, so that dropout stays off."""

    def evaluated(*given: Any) -> Any:
        layer.training = False
        try:
            return function(*given)
        finally:
            layer.training = True

    return checkpoint(around(evaluated), *inputs)
