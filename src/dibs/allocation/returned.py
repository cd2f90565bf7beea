"""What allocators and rules return, checked."""

from __future__ import annotations

import numpy as np

from dibs.types import InputError

LARGEST_COUNT = 2**52
"""Sums of counts are exact in float64."""


def numbers_of(given: object, size: int | None, who: str, *, what: str, wanted: str) -> np.ndarray:
    """What was returned, float64 [size], or of any length where ``size`` is None.

    Args:
        who: begins messages, such as ``allocator NAME``. what: should have been returned.
        wanted: ends the message about another shape.

    Raises InputError for anything but a list of numbers of that length.
    """
    try:
        numbers = np.asarray(given)
    except ValueError:  # lists of different lengths
        numbers = np.array(None)
    if numbers.dtype.kind not in "buif":
        raise InputError(f"{who} returned {type(given).__name__}, not {what}")
    if numbers.ndim != 1 or (size is not None and len(numbers) != size):
        raise InputError(f"{who} returned an array of shape {numbers.shape}; it must be {wanted}")
    return numbers.astype(np.float64)


def are_whole(numbers: np.ndarray) -> np.ndarray:
    """Whether each number is whole and at most 2^52 from 0, bool [n]."""
    whole: np.ndarray = (np.abs(numbers) <= LARGEST_COUNT) & (numbers == np.floor(numbers))
    return whole
