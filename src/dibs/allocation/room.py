"""Whether the memory of this machine can hold the completions of a step."""

from __future__ import annotations

import os

from dibs.types import InputError

_LEAST = 500
"""Bytes that a completion of a single token takes, at least, from its row to its verdict."""


def check_fits(what: str, completions: float) -> None:
    """Raise InputError where completions cannot be held even if all of them have a single token."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if completions * _LEAST > memory:
        raise InputError(
            f"{what} = {completions:,.0f} completions at once do not fit in the "
            f"{memory / 2**30:,.0f} GiB of this machine; lower one of them"
        )
