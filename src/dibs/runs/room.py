"""Whether the memory of this machine can hold what a command draws."""

from __future__ import annotations

from collections.abc import Iterator

from dibs.allocation.room import check_fits
from dibs.config import Config
from dibs.types import InputError


def check_room(config: Config) -> None:
    """Raise InputError where completions cannot be held even if all of them have a single token."""
    for what, completions in _drawn_at_once(config):
        check_fits(what, completions)


def check_measuring(config: Config) -> None:
    """The same for what ``dibs variance`` draws."""
    each = config.variance.num_generations
    prompts = config.variance.prompts or config.train.prompts_per_step
    check_fits(f"variance.num_generations {each:,} x {prompts:,} prompts", each * prompts)


def check_samples(k: int, samples: int) -> None:
    """Raise InputError unless 1 <= k <= samples, and that many completions of a prompt can be held."""
    if not 1 <= k <= samples:
        raise InputError(f"k is {k} and there are {samples} samples; 1 <= k <= samples")
    check_fits(f"k {k:,} and samples {samples:,}", samples)


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
