"""The prompts of verl's training set as candidates, and batches of those that are chosen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.utils.dataset.rl_dataset import collate_fn

from dibs.data.prompts import prompt_id
from dibs.integrations.pools import Pool, PoolConfig
from dibs.types import InputError

_CHUNK = 256
"""Prompts that are read at a time."""


def prompt_names(batch: TensorDict) -> list[str]:
    """Return a name for each prompt of a verl batch: a hash of its messages and gold answer."""
    messages = tensordict_utils.get(batch, "raw_prompt")
    judged_by = tensordict_utils.get(batch, "reward_model", [{}] * len(batch))
    return [
        prompt_id(
            json.dumps(asked, sort_keys=True, default=_plain),
            str(dict(gold).get("ground_truth")),
        )
        for asked, gold in zip(messages, judged_by, strict=True)
    ]


def _plain(part: Any) -> Any:
    """Convert a part of a message that JSON lacks: an array to its contents, an image to its type."""
    return part.tolist() if hasattr(part, "tolist") else type(part).__name__


@dataclass(frozen=True)
class Candidates:
    """A training set of verl with the pool that steps choose from."""

    dataset: Any
    pool: Pool

    @classmethod
    def of(cls, dataset: Any, options: PoolConfig, config: Any) -> Candidates:
        """Read every prompt of the data set once, to know its name.

        Args:
            options: with a pool.
            config: verl's configuration, whose batch size decides the completions of a step.

        Raises InputError for a data set without a length, and for a pool that cannot be.
        """
        if not hasattr(dataset, "__len__"):
            raise InputError(
                "dibs.pool chooses among all rows of the training set, which has no length; leave it out"
            )
        names: list[str] = []
        for start in range(0, len(dataset), _CHUNK):
            positions = np.arange(start, min(start + _CHUNK, len(dataset)))
            names += prompt_names(_read(dataset, positions))
        completions = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        return cls(dataset, Pool(options, names, completions, int(config.data.get("seed") or 0)))

    def batch(self, positions: np.ndarray, global_steps: int) -> TensorDict:
        """Rows of the data set as verl submits them, each under a name of its own."""
        batch = _read(self.dataset, positions)
        tensordict_utils.assign_non_tensor_data(batch, "global_steps", global_steps)
        return batch


def _read(dataset: Any, positions: np.ndarray) -> TensorDict:
    rows = collate_fn([dataset[i] for i in positions.tolist()])
    rows["uid"] = np.array([str(uuid4()) for _ in positions], dtype=object)
    return tensordict_utils.get_tensordict(rows)
