"""Which completions of a step have their norms measured in its updates, where not all are.

A measured completion cannot share its prompt with others, so measuring all of them can double an update.
Which are measured depends on nothing of a completion but its class and whether it has an advantage. So
the measured ones of a class are a random choice, and every mean over a class stays unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dibs.training.dealing import groups_of
from dibs.types import TrainingExample

WITHOUT_ADVANTAGE = 1 / 16
"""Share of the completions without an advantage that may be measured: they enter no update otherwise."""
_MORE = 0.125
"""What measuring may add to the tokens of a step's updates where no share is given."""
_MEASURED_COST = 1.3
"""What a measured completion costs, in passes over its tokens and its prompt's."""


@dataclass(frozen=True)
class NormSample:
    """The norms that the updates of a step are to measure, and those that they did.

    ``classes``: of each of n completions; a prompt's completions of one class are alike. ``share``: of
    the completions with an advantage that are measured; None: as many as add an eighth to the tokens of
    the updates. ``squares``: squared norms of ``grad log pi(y|x)``, float64 [n], NaN where none was
    measured.
    """

    classes: np.ndarray
    share: float | None
    squares: np.ndarray

    @classmethod
    def of(cls, classes: Sequence[bool], share: float | None) -> NormSample:
        """One of which nothing is measured yet."""
        return cls(np.array(classes), share, np.full(len(classes), np.nan))


def choose_measured(
    examples: Sequence[TrainingExample],
    parts: Sequence[Sequence[int]],
    sample: NormSample,
    *,
    shared: bool,
    seed: Sequence[int],
) -> np.ndarray:
    """Which completions are measured, bool [n].

    Those of the first update come first, since it starts from the weights that wrote them. In an update
    every prompt gets one after the other, of its classes in turn.

    Args:
        parts: the completions of each update, by index.
        shared: whether updates compute a prompt once for its completions.
    """
    random = np.random.default_rng(seed)
    learned = np.array([example.advantage != 0 for example in examples], dtype=bool)
    eligible = learned | (random.random(len(examples)) < WITHOUT_ADVANTAGE)
    places = np.full(len(examples), np.inf)
    contexts = [example.context_ids for example in examples]
    for u, part in enumerate(parts):
        for members in groups_of([i for i in part if eligible[i]], contexts):
            places[members] = u + _lots(sample.classes[members], random)
    wanted = sample.share
    if wanted is None:
        wanted = _affordable(examples, parts, learned, eligible, shared=shared)
    chosen = np.zeros(len(examples), dtype=bool)
    order = np.argsort(places, kind="stable")[: round(wanted * int(eligible.sum()))]
    chosen[order] = True
    return chosen


def _lots(classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Places of one prompt's completions in [0, 1), float64 [n]: evenly spaced, classes in turn."""
    line = random.permutation(len(classes))
    turns = np.zeros(len(classes))
    # The classes count alike: advantages of the rarer one are larger.
    kinds = random.permutation(np.unique(classes))
    for k, kind in enumerate(kinds):
        members = line[classes[line] == kind]
        turns[members] = np.arange(len(members)) * len(kinds) + k
    lots = np.empty(len(classes))
    lots[np.argsort(turns)] = (np.arange(len(classes)) + random.random()) / len(classes)
    return lots


def _affordable(
    examples: Sequence[TrainingExample],
    parts: Sequence[Sequence[int]],
    learned: np.ndarray,
    eligible: np.ndarray,
    *,
    shared: bool,
) -> float:
    """The share of eligible completions whose measuring adds an eighth to the tokens of the updates.

    It depends on sums over all of them alone, so that no completion's length decides about itself.
    """
    contexts = np.array([len(example.context_ids) for example in examples])
    own = np.array([len(example.completion_ids) for example in examples])
    usual = own if shared else contexts + own
    tokens = float(usual[learned].sum())
    if shared:
        prompts = [example.context_ids for example in examples]
        tokens += sum(
            contexts[members[0]]
            for part in parts
            for members in groups_of([i for i in part if learned[i]], prompts)
        )
    more = _MEASURED_COST * (contexts + own)[eligible] - (usual * learned)[eligible]
    return min(_MORE * tokens / max(float(more.sum()), 1.0), 1.0)
