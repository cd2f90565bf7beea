"""Dropout in updates: the adapters' alone, its masks a function of seed, update and process.

Two log-probabilities of a completion are comparable under equal masks only: the importance ratio would
otherwise differ from 1, and tokens be clipped, before any weight has moved. So one update has the same
masks before and after the weights move. Masks need no state in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


def set_update_mode(model: nn.Module) -> None:
    """Put the model into the mode of updates: evaluation mode, LoRA's dropout excepted.

    The model's own dropout stays off, since completions are drawn without it. It is not a choice of the
    user either: many pretrained models declare some. ``policy.lora.dropout`` is one. Activations are
    checkpointed in training mode only, so modules that checkpoint keep it.
    """
    model.eval()
    for name, module in model.named_modules():
        if ".lora_dropout." in name or getattr(module, "gradient_checkpointing", False):
            module.training = True


@contextmanager
def dropout_masks(*seed: int) -> Iterator[None]:
    """Draw dropout masks as a function of ``seed``, and leave the global random state as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        if torch.accelerator.is_available():
            torch.manual_seed(state)
        else:
            # torch.manual_seed looks for devices of all kinds, which takes longer than all the rest.
            torch.default_generator.manual_seed(state)
        yield
