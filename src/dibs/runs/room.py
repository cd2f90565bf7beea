"""Whether the memory of this machine can hold what a step draws."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dibs.config import Config
from dibs.types import InputError

_LEAST = 500
"""Bytes that a completion of a single token takes, at least, from its row to its verdict."""


def check_room(config: Config) -> None:
    """Raise InputError where completions cannot be held even if all of them have a single token."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for what, completions in _drawn_at_once(config):
        if completions * _LEAST > memory:
            raise InputError(
                f"{what} = {completions:,} completions at once do not fit in the "
                f"{memory / 2**30:,.0f} GiB of this machine; lower one of them"
            )


def _drawn_at_once(config: Config) -> Iterator[tuple[str, int]]:
    """How many completions are held together, by the keys that decide it."""
    prompts = config.train.prompts_per_step
    if config.budget is not None:
        given = config.allocate.budget
        each = f"allocate.num_generations {config.allocate.num_generations:,} x {prompts:,} prompts"
        yield (each if given is None else f"allocate.budget {given:,}", config.budget)
    if config.estimate.mode == "pilot":
        pilots = config.estimate.num_pilots
        yield f"estimate.num_pilots {pilots:,} x {prompts:,} prompts", pilots * prompts
    yield (
        f"evaluate.num_generations {config.evaluate.num_generations:,}",
        (config.evaluate.num_generations),
    )
