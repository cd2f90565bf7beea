"""Rows of a generation batch: their prompts, and how ragged groups are divided among processes.

TRL divides one flat list of rows into equal slices, one for each process. The rows of a group stand
together in the list, so a group may lie on two processes. Ragged groups are divided in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from dibs.integrations.pools import Pool
from dibs.integrations.trl.config import DIBSConfig
from dibs.processes import Processes
from dibs.types import InputError

Row = dict[str, Any]
_Item = TypeVar("_Item")


def distinct_rows(mine: Sequence[Row], group_size: int, processes: Processes) -> list[Row]:
    """Return one row for each prompt of a batch that has ``group_size`` rows of every prompt.

    Args:
        mine: this process's slice of the batch.
        group_size: rows of each prompt.
        processes: all of them must call this.
    """
    start = processes.rank * len(mine)
    first = [row for i, row in enumerate(mine, start) if i % group_size == 0]
    return [row for rows in processes.all_gather(first) for row in rows]


def own_names(rows: Iterable[Row], column: str | None) -> list[str]:
    """Return the name of each prompt; see :func:`prompt_id`.

    Raises InputError if two different prompts have the same name.
    """
    names: list[str] = []
    prompts: dict[str, Any] = {}
    for row in rows:
        name = prompt_id(row, column)
        if prompts.setdefault(name, row["prompt"]) != row["prompt"]:
            raise InputError(
                f"DIBSConfig.prompt_id_column {column}: two prompts have the value {name!r}; "
                "give each prompt its own, or leave prompt_id_column out"
            )
        names.append(name)
    return names


def require_text(row: Row) -> None:
    """Raise InputError for a row with images."""
    if any(key in row for key in ("image", "images")):
        raise InputError("rows with images are for GRPOTrainer; DIBSGRPOTrainer takes text")


def make_pool(dibs: DIBSConfig, args: Any, rows: Any) -> Pool | None:
    """Return the pool of a data set, or None where TRL's own batches are kept.

    Raises InputError for a data set without a length, and for a pool that cannot be.
    """
    if dibs.pool is None:
        return None
    if not hasattr(rows, "__len__"):
        raise InputError(
            "DIBSConfig.pool chooses among all rows of train_dataset, which has no length; give a "
            "datasets.Dataset, or leave pool out"
        )
    require_text(rows[0])
    names = own_names(rows, dibs.prompt_id_column)
    return Pool(dibs, names, args.generation_batch_size, args.seed)


def repeated(items: Sequence[_Item], counts: Sequence[int]) -> list[_Item]:
    """Repeat item i ``counts[i]`` times."""
    return [item for item, count in zip(items, counts, strict=True) for _ in range(count)]


def own_copies(rows: Sequence[Row]) -> list[Row]:
    """Return a copy of each row: those of a group are one object, and reward functions may write."""
    return [deepcopy(row) for row in rows]


def dealt(items: Sequence[_Item], processes: Processes) -> list[_Item]:
    """Return this process's slice. If the list does not divide evenly, its last item is repeated."""
    share = -(-len(items) // processes.size)
    start = processes.rank * share
    slots = range(start, start + share)
    return [items[min(i, len(items) - 1)] for i in slots]


def split(values: np.ndarray, counts: Sequence[int], kept: np.ndarray) -> list[list[Any]]:
    """Split numbers of all completions [N] by group, without those that are not kept.

    Args:
        values, kept: [N]; ``kept`` is bool.
        counts: completions of each group; their sum is N.
    """
    ends = np.cumsum(counts)[:-1]
    return [
        part[keep].tolist()
        for part, keep in zip(np.split(values, ends), np.split(kept, ends), strict=True)
    ]


def prompt_id(row: Row, column: str | None) -> str:
    """Return a name that is the same whenever the prompt comes back.

    Args:
        row: of the data set.
        column: that holds the name, or None for a hash of all columns.

    Raises InputError for a row without that column, or with values that cannot be hashed.
    """
    if column is not None:
        if row.get(column) is None:
            raise InputError(
                f"DIBSConfig.prompt_id_column: a row has no {column!r}; its columns are "
                + ", ".join(row)
            )
        return str(row[column])
    try:
        text = json.dumps(row, sort_keys=True)
    except TypeError as error:
        raise InputError(
            f"a row cannot name its prompt ({error}); set DIBSConfig.prompt_id_column to a column "
            "that does"
        ) from None
    return blake2b(text.encode(), digest_size=8).hexdigest()
