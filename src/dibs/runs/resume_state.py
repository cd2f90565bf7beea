"""Everything that a run needs to go on as if it had never stopped, besides the policy's weights.

Each part of the trainer has ``state_dict`` and ``load_state_dict``; here they are put together. Sampling
and the order of prompts need no state: they are functions of the seed, the step and the prompt. Neither
do dropout masks, which are functions of the seed, the update and the process. So one process may write
the state of all.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dibs.allocation.cross_fit import undivided
from dibs.loop import Trainer
from dibs.types import CompletionMoments, PromptStats, RewardMoments

_PARTS = ("totals", "curriculum", "history", "updater", "source", "gradients")
_NESTED = {"accepted": CompletionMoments, "rejected": CompletionMoments, "rewards": RewardMoments}


def trainer_state(trainer: Trainer) -> dict[str, Any]:
    """The state of a trainer and of the random number generators, as ``torch.save`` takes it."""
    return {
        **{name: getattr(trainer, name).state_dict() for name in _PARTS},
        "upcoming": [
            ([prompt.prompt_id for prompt in prompts], _plain(estimate.stats))
            for prompts, estimate in trainer.upcoming
        ],
        "random": _random_state(),
    }


def load_trainer_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Put :func:`trainer_state` into a fresh trainer, whose policy has the weights already.

    What the configuration decides, such as the learning rate and the half-life, it decides anew; only
    what the run has learned and spent comes from the state.
    """
    earlier = {"curriculum": {"drawn": state.get("drawn")}}  # as 0.1.0 wrote it
    for name in _PARTS:
        getattr(trainer, name).load_state_dict({**earlier, **state}[name])
    by_id = {prompt.prompt_id: prompt for prompt in trainer.prompts.train}
    trainer.upcoming = []
    for prompt_ids, stats in state["upcoming"]:
        prompts = [by_id[prompt_id] for prompt_id in prompt_ids]
        trainer.upcoming.append((prompts, undivided(_record(PromptStats, stats), prompts)))
    _set_random_state(state["random"])


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, device)


def _plain(value: Any) -> Any:
    """Records as dictionaries, and arrays as tensors."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value if value is None else list(value)


def _record(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The record of which :func:`_plain` made the values."""
    own: dict[str, Any] = {}
    for name, value in values.items():
        if name in _NESTED and value is not None:
            own[name] = _record(_NESTED[name], value)
        else:
            own[name] = value.numpy() if isinstance(value, Tensor) else value
    return kind(**own)
