"""Which of a step's optimizer updates a completion enters, and which process computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from dibs.processes import Processes
from dibs.training.example_rows import lengths
from dibs.types import TrainingExample


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
    groups = groups_of(range(len(prompts)), prompts)
    random = np.random.default_rng(seed)
    line = [index for g in random.permutation(len(groups)) for index in groups[g]]
    first = int(random.integers(updates))
    return [sorted(line[(u - first) % updates :: updates]) for u in range(updates)]


def own_share(
    part: Sequence[int],
    examples: Sequence[TrainingExample],
    processes: Processes,
    alone: np.ndarray | None,
) -> list[int]:
    """What this process computes of an update's completions, by index.

    Where prompts are computed once for their completions, those of a prompt stay together.

    Args:
        alone: which completions do not share their prompt, bool [n]; None: none does.
    """
    if alone is None:
        return processes.own_share(part, lengths([examples[i] for i in part]))
    line = [i for each in groups_of(part, [e.context_ids for e in examples]) for i in each]
    prompts = Counter(examples[i].context_ids for i in part)
    costs = [
        len(e.completion_ids) + len(e.context_ids) / (1 if apart else prompts[e.context_ids])
        for e, apart in ((examples[i], alone[i]) for i in line)
    ]
    return sorted(processes.own_stretch(line, costs))


def groups_of(indices: Iterable[int], prompts: Sequence[Hashable]) -> list[list[int]]:
    """Indices of completions, those of a prompt together, prompts in the order of their first."""
    places: dict[Hashable, list[int]] = {}
    for index in indices:
        places.setdefault(prompts[index], []).append(index)
    return list(places.values())
