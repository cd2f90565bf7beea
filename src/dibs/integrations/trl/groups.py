"""Rows of a generation batch: which prompts they are of, and how ragged groups are dealt to processes.

TRL deals every process a slice of equally many rows of one flat list, in which the rows of a group stand
together; a group may lie on two processes. Ragged groups are dealt in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from dibs.processes import Processes
from dibs.types import InputError

Row = dict[str, Any]
_Item = TypeVar("_Item")


def distinct_rows(mine: Sequence[Row], group_size: int, processes: Processes) -> list[Row]:
    """The row of each prompt of a batch in which every prompt has ``group_size`` of them.

    Args:
        mine: this process's slice of the batch.
    """
    start = processes.rank * len(mine)
    first = [row for i, row in enumerate(mine, start) if i % group_size == 0]
    return [row for rows in processes.all_gather(first) for row in rows]


def require_own_names(rows: Sequence[Row], names: Sequence[str], column: str | None) -> None:
    """InputError where two prompts of a batch go by one name."""
    prompts: dict[str, Any] = {}
    for row, name in zip(rows, names, strict=True):
        if prompts.setdefault(name, row["prompt"]) != row["prompt"]:
            raise InputError(
                f"DIBSConfig.prompt_id_column {column}: two prompts of a batch have the value {name!r}; "
                "give each prompt its own, or leave prompt_id_column out"
            )


def repeated(items: Sequence[_Item], counts: Sequence[int]) -> list[_Item]:
    """Item i ``counts[i]`` times."""
    return [item for item, count in zip(items, counts, strict=True) for _ in range(count)]


def dealt(items: Sequence[_Item], processes: Processes) -> list[_Item]:
    """This process's slice; the last item fills up what does not divide evenly."""
    share = -(-len(items) // processes.size)
    start = processes.rank * share
    slots = range(start, start + share)
    return [items[min(i, len(items) - 1)] for i in slots]


def split(values: np.ndarray, counts: Sequence[int], kept: np.ndarray) -> list[list[Any]]:
    """Numbers of all completions [N] by group, without those that are not kept; counts add up to N."""
    ends = np.cumsum(counts)[:-1]
    return [
        part[keep].tolist()
        for part, keep in zip(np.split(values, ends), np.split(kept, ends), strict=True)
    ]


def prompt_id(row: Row, column: str | None) -> str:
    """What names a prompt again when it comes back.

    Raises InputError for a row whose columns do not say it.
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
