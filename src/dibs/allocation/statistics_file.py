"""Prompt statistics as JSON Lines: the input and output of ``dibs allocate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dibs.config.wording import worded
from dibs.types import Allocation, InputError, PromptStats

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class _Row(BaseModel):
    """One line; keys beyond these are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt_id: str | int
    trials: _Count
    successes: _Count
    grad_norm: _Number | None
    grad_norm_rejected: _Number | None = None
    mean_tokens: _Number | None = None


def read_statistics(source: str) -> PromptStats:
    """Statistics from a JSON Lines file, or from standard input for ``-``.

    Raises InputError with file and line number for a line that is not what it should be.
    """
    name = "standard input" if source == "-" else source
    try:
        if source == "-":
            rows = list(_parse(sys.stdin, name))
        else:
            with Path(source).open(encoding="utf-8") as lines:
                rows = list(_parse(lines, name))
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8 text") from None
    if not rows:
        raise InputError(f"{name} holds no prompts; give one JSON object a line")
    return PromptStats(
        prompt_ids=[row.prompt_id for row in rows],
        trials=np.array([row.trials for row in rows], dtype=np.int64),
        successes=np.array([row.successes for row in rows], dtype=np.int64),
        grad_norm=_column(rows, "grad_norm"),
        grad_norm_rejected=_optional_column(rows, "grad_norm_rejected"),
        mean_tokens=_optional_column(rows, "mean_tokens"),
    )


def count_lines(allocation: Allocation) -> Iterator[str]:
    """``{"prompt_id", "count"}`` lines in prompt order."""
    for prompt_id, count in zip(allocation.prompt_ids, allocation.counts.tolist(), strict=True):
        yield json.dumps({"prompt_id": prompt_id, "count": count}, ensure_ascii=False)


def _parse(lines: Iterable[str], name: str) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ": ".join([f"{name}, line {number}", *map(str, first["loc"][:1])])
            raise InputError(f"{where}: {worded(first)}") from None


def _column(rows: list[_Row], key: str) -> np.ndarray:
    return np.array(
        [np.nan if getattr(row, key) is None else getattr(row, key) for row in rows], dtype=float
    )


def _optional_column(rows: list[_Row], key: str) -> np.ndarray | None:
    column = _column(rows, key)
    return None if np.isnan(column).all() else column
