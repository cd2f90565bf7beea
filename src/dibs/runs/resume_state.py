"""Everything a run needs to go on as if it had never stopped, besides the policy's weights.

Tensors (optimizer, random states) go to safetensors, the rest to JSON; nothing is pickled. Sampling and
the order of prompts need no state of their own: they are functions of the seed, the step and the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dibs.allocation.cross_fit import undivided
from dibs.allocation.history import History
from dibs.train import Trainer
from dibs.training.totals import Totals
from dibs.types import CompletionMoments, PromptStats, RewardMoments

_NESTED = {"accepted": CompletionMoments, "rejected": CompletionMoments, "rewards": RewardMoments}


def capture(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State as JSON takes it, and tensors."""
    optimizer = trainer.updater.optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{name}": value.detach().cpu().contiguous()
        for index, values in optimizer["state"].items()
        for name, value in values.items()
    }
    tensors["random.torch"] = torch.get_rng_state()
    for device in range(torch.cuda.device_count()):
        tensors[f"random.cuda.{device}"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    state = {
        "totals": asdict(trainer.totals),
        "drawn": trainer.drawn,
        "upcoming": [
            {"prompts": [p.prompt_id for p in prompts], "stats": _of_stats(estimate.stats)}
            for prompts, estimate in trainer.upcoming
        ],
        "history": trainer.history.state(),
        "optimizer": optimizer["param_groups"],
        "scheduler": trainer.updater.scheduler.state_dict(),
        "skipped_in_a_row": trainer.updater.skipped_in_a_row,
        "micro_batch_tokens": trainer.updater.micro_batch_tokens,
        "batch_tokens": trainer.source.sampler.batch_tokens,
        "norm_batch_tokens": trainer.gradients.micro_batch_tokens,
        "random": {
            "python": random.getstate(),
            "numpy": [kind, np.asarray(keys).tolist(), *rest],
        },
    }
    return state, tensors


def restore(trainer: Trainer, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put :func:`capture`'s state into a fresh trainer, whose policy has the weights already."""
    trainer.totals = Totals(**state["totals"])
    trainer.drawn = int(state["drawn"])
    by_id = {prompt.prompt_id: prompt for prompt in trainer.prompts.train}
    trainer.upcoming = []
    for each in state["upcoming"]:
        prompts = [by_id[prompt_id] for prompt_id in each["prompts"]]
        trainer.upcoming.append((prompts, undivided(_to_stats(each["stats"]), prompts)))
    # What the configuration says, it says again: only what was learned comes from the checkpoint.
    half_life = trainer.history.half_life
    trainer.history = History.from_state(state["history"])
    trainer.history.half_life = half_life
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        if part == "optimizer":
            index, _, name = rest.partition(".")
            moments.setdefault(int(index), {})[name] = value
        elif rest == "torch":
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, int(rest.partition(".")[2]))
    updater = trainer.updater
    decay = updater.config.weight_decay
    updater.optimizer.load_state_dict({"state": moments, "param_groups": state["optimizer"]})
    rates = list(updater.scheduler.base_lrs)
    updater.scheduler.load_state_dict(dict(state["scheduler"]))
    updater.scheduler.base_lrs = rates
    for group, rate in zip(updater.optimizer.param_groups, rates, strict=True):
        group |= {"weight_decay": decay, "initial_lr": rate}
        group["lr"] = rate * updater.scheduler.lr_lambdas[0](updater.scheduler.last_epoch)
    updater.skipped_in_a_row = int(state["skipped_in_a_row"])
    updater.micro_batch_tokens = int(state["micro_batch_tokens"])
    trainer.source.sampler.batch_tokens = int(state["batch_tokens"])
    trainer.gradients.micro_batch_tokens = int(state["norm_batch_tokens"])
    version, numbers, gauss = state["random"]["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["random"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002


def _of_stats(stats: PromptStats) -> dict[str, Any]:
    return {field.name: _of_value(getattr(stats, field.name)) for field in fields(stats)}


def _of_value(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, CompletionMoments | RewardMoments):
        return {field.name: _of_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        # NaN is not JSON.
        return [None if np.isnan(number) else number for number in value.tolist()]
    return list(value)


def _to_stats(state: Mapping[str, Any]) -> PromptStats:
    return PromptStats(**{name: _to_value(name, value) for name, value in state.items()})


def _to_value(name: str, value: Any) -> Any:
    if value is None or name == "prompt_ids":
        return value
    if name in _NESTED:
        return _NESTED[name](**{key: _to_value(key, inner) for key, inner in value.items()})
    return np.array([np.nan if number is None else number for number in value], dtype=np.float64)
