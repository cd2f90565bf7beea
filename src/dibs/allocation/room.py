"""Whether the memory of this machine can hold what is asked for."""

from __future__ import annotations

import os

from dibs.types import InputError

_LEAST = 500
"""Bytes that a prompt takes, or a completion of a single token from its row to its verdict, at least."""


def check_fits(what: str, number: float, of: str = "completions at once") -> None:
    """Raise InputError where so many cannot be held even if all of them have a single token."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if number * _LEAST > memory:
        raise InputError(
            f"{what} = {round(number):,} {of} do not fit in the "
            f"{memory / 2**30:,.0f} GiB of this machine; lower one of them"
        )
