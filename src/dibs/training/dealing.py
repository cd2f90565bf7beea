"""Which of a step's optimizer updates a completion enters. numpy only."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def deal(prompts: Sequence[Hashable], updates: int, seed: Sequence[int] = (0,)) -> list[list[int]]:
    """Deal completions to updates, so that each update holds the same share of every prompt.

    The completions are lined up prompt by prompt, the prompts in random order, and dealt in turn from a
    random update on. Hence:

    - An update holds ``n // updates`` or one more of a prompt's n completions.
    - The sizes of two updates differ by at most 1.
    - A completion enters each update with probability ``1 / updates``. So the gradient of every update,
      times ``updates``, has the step's gradient as its mean over ``seed``, whatever the counts are. This
      is systematic sampling (Madow and Madow, 1944) at equal probabilities.

    Without the random order, the only completions of several prompts could meet in one update every
    time. One update takes all completions in the order in which they came.

    Args:
        prompts: of each completion, [N]; equal for completions of one prompt.
        updates: number of updates U, at least 1.
        seed: decides the order of the prompts and the first update.

    Returns:
        Indices of the completions of each update, ascending.
    """
    groups = _groups(range(len(prompts)), prompts)
    random = np.random.default_rng(seed)
    line = [index for g in random.permutation(len(groups)) for index in groups[g]]
    first = int(random.integers(updates))
    return [sorted(line[(u - first) % updates :: updates]) for u in range(updates)]


def prompt_by_prompt(part: Sequence[int], prompts: Sequence[Hashable]) -> dict[int, int]:
    """Indices of completions, those of a prompt side by side, with how many of the part it has."""
    groups = _groups(part, prompts)
    return {index: len(members) for members in groups for index in members}


def _groups(indices: Iterable[int], prompts: Sequence[Hashable]) -> list[list[int]]:
    """Indices of completions, those of a prompt together, prompts in the order of their first."""
    places: dict[Hashable, list[int]] = {}
    for index in indices:
        places.setdefault(prompts[index], []).append(index)
    return list(places.values())
