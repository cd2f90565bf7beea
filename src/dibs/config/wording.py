"""What is wrong with a value that was given, in words of our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from dibs.types import InputError

_NUMBER = "must be a number"
_WHOLE = "must be a whole number"
_SWITCH = "must be true or false"
_KEYS = "must hold keys and values"
_WORDS = {
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": "must be a finite number",
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "string_type": "must be text",
    "path_type": "must be a path",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "json_invalid": "not JSON, {error}",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": _KEYS,
    "model_type": _KEYS,
    "model_attributes_type": _KEYS,
}
_WITHOUT_VALUE = ("value_error", "missing", "json_invalid")
"""Faults whose value says no more: our own checks name it, or the place is enough."""


def worded(fault: Mapping[str, Any]) -> str:
    """Return what a value must be, and the value where our own checks did not name it.

    Args:
        fault: an entry of pydantic's ``ValidationError.errors()``.
    """
    reason = fault["msg"].removeprefix("Value error, ")
    words = _WORDS.get(fault["type"])
    if words is not None:
        reason = words.format(**fault.get("ctx", {}))
    return reason if fault["type"] in _WITHOUT_VALUE else f"{reason} (got {fault['input']!r})"


def one_line(error: ValidationError, block: str) -> str:
    """Return the first fault of values that stand in ``block``, and how many more there are."""
    first, *rest = error.errors()
    key = ".".join([block, *(str(part) for part in first["loc"])])
    return f"{key}: {worded(first)}" + (f" (and {len(rest)} more)" if rest else "")


def refuse_unknown(keys: Iterable[object], known: Sequence[str], block: str) -> None:
    """Raise InputError, which names the nearest, for a key of ``block`` that is not among the known."""
    for key in keys:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(f"unknown key {block}.{key}; nearest is {block}.{near}")
