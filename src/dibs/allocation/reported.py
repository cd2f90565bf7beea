"""Checks the numbers that a trainer reports of its completions. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dibs.allocation.statistics import completion_sums
from dibs.types import InputError

Numbers = Sequence[Sequence[float] | np.ndarray]
"""One number a completion, one sequence or array [n_i] a prompt."""
_UNKNOWN = {"lengths": 0.0, "logprobs": 0.0, "grad_norms": 1.0}
"""The value of numbers that were not reported."""


def is_accepted(rewards: np.ndarray, threshold: float) -> np.ndarray:
    """Which completions are accepted, bool, shape of ``rewards``.

    The comparison is in float32, in which trainers hold rewards. A reward of 0.9 then reaches a
    threshold of 0.9.
    """
    accepted: np.ndarray = rewards.astype(np.float32) >= np.float32(threshold)
    return accepted


def checked_rewards(names: Sequence[str], rewards: Numbers) -> list[np.ndarray]:
    """Rewards of each prompt's completions, float64 [n_i].

    Raises InputError for another number of prompts, a group that is no sequence, or a reward that is not
    finite.
    """
    if len(rewards) != len(names):
        raise InputError(f"rewards of {len(rewards)} prompts, but {len(names)} prompt ids")
    return [_checked("reward", name, group) for name, group in zip(names, rewards, strict=True)]


def checked_sums(
    names: Sequence[str],
    rewards: Numbers,
    reported: Mapping[str, Numbers | None],
    threshold: float,
) -> list[np.ndarray]:
    """The sums over each prompt's completions, [29] a prompt; see :func:`.completion_sums`.

    Args:
        reported: ``lengths``, ``logprobs`` and ``grad_norms``, each as ``rewards``, or None.

    Raises InputError, which names the prompt, for numbers that are impossible.
    """
    groups = checked_rewards(names, rewards)
    for what, numbers in reported.items():
        if numbers is not None and len(numbers) != len(names):
            raise InputError(f"{what} of {len(numbers)} prompts, but {len(names)} prompt ids")
    sums = []
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        given = [
            np.full(len(group), _UNKNOWN[what])
            if numbers is None
            else _measured(what, name, numbers[i], len(group))
            for what, numbers in reported.items()
        ]
        sums.append(completion_sums(is_accepted(group, threshold), group, *given))
    return sums


def _measured(
    what: str, name: str, numbers: Sequence[float] | np.ndarray, expected: int
) -> np.ndarray:
    one = what.removesuffix("s")
    found = _checked(one, name, numbers)
    if len(found) != expected:
        raise InputError(f"prompt {name!r}: {len(found)} {what} for {expected} completions")
    if what != "logprobs" and (found < 0).any():
        raise InputError(f"prompt {name!r}: a {one} is {found.min()}; it must be at least 0")
    return found


def _checked(what: str, name: str, numbers: Sequence[float] | np.ndarray) -> np.ndarray:
    try:
        found = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"prompt {name!r}: a {what} is no number; give one a completion") from None
    if found.ndim != 1:
        raise InputError(
            f"prompt {name!r}: {what}s have shape {found.shape}; give a sequence, one a completion"
        )
    bad = ~np.isfinite(found)
    if bad.any():
        raise InputError(
            f"prompt {name!r}: a {what} is {found[bad][0]}; leave out completions without a finite one"
        )
    return found
