"""Values of files that anyone may have written, as pages, figures and terminals hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_DEEPEST = 32
_MOST = 100_000
_BITS = 900
"""Of whole numbers: a float holds a little more than that."""


def as_json_types(value: Any) -> Any:
    """A copy of what a YAML file holds, of the kinds that JSON knows; keys are text.

    Dates, sets and numbers that are none become text. Raises ValueError, one clause, for what no
    configuration is: a value inside itself, more levels or values than anyone writes (aliases that
    multiply each other), and numbers no float can hold.
    """
    room = _MOST

    def copied(inner: Any, level: int) -> Any:
        nonlocal room
        room -= 1
        if level > _DEEPEST:
            raise ValueError(f"it is deeper than {_DEEPEST} levels, or contains itself")
        if room < 0:
            raise ValueError(f"its aliases make more than {_MOST:,} values")
        if isinstance(inner, Mapping):
            return {
                str(copied(key, level + 1)): copied(each, level + 1) for key, each in inner.items()
            }
        if isinstance(inner, list):
            return [copied(each, level + 1) for each in inner]
        if isinstance(inner, int) and inner.bit_length() > _BITS:
            raise ValueError(f"it holds a whole number of {inner.bit_length():,} bits")
        if isinstance(inner, float) and not math.isfinite(inner):
            return str(inner)
        return inner if isinstance(inner, str | int | float | None) else str(inner)

    return copied(value, 0)
