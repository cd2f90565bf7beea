"""What a configuration names and asks of this machine, checked before anything is loaded. No torch."""

from __future__ import annotations

from dibs.allocation import rules
from dibs.allocation.allocators import check_allocator
from dibs.allocation.rounds import named_rules
from dibs.allocation.target import Target
from dibs.config import AllocateConfig, Config, SelectConfig
from dibs.runs.room import check_room
from dibs.runs.trackers import check_trackers
from dibs.types import InputError


def check_config(config: Config) -> None:
    """InputError for what can be checked without loading anything."""
    check_allocator(config.allocate.allocator)
    rules.check_place(config.allocate.allocator, pool=config.chooses)
    rules.check_mode(config.allocate.allocator, config.estimate.mode, "estimate.mode")
    _check_rounds(config.allocate, config.select)
    if config.data.columns and not any(":" in name for name in config.verify.verifiers):
        raise InputError(
            f"data.columns {', '.join(config.data.columns)} are for a verifier of your own "
            "(verify.verifier module:function); leave them out"
        )
    Target.of(config.algorithm)
    check_trackers(config.tracking.trackers)
    check_room(config)


def _check_rounds(options: AllocateConfig, select: SelectConfig) -> None:
    """InputError for rules that do not exist, or that have no use for a setting."""
    rule, _ = named_rules(options, "allocate.")
    if rule is not None and select.pool is not None and not rule.chooses:
        raise InputError(
            f"allocate.rounds {options.rounds} trains on all prompts of a batch, so select.pool "
            f"{select.pool} has no use; leave it out"
        )
