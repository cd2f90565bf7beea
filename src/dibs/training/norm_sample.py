"""Which completions of a step have their norms measured in its updates, where not all are.

A measured completion cannot share its prompt with others, so measuring all of them can double an update.
Which are measured depends on nothing of a completion but its prompt and its class, accepted or rejected,
and on whether any completion of both has an advantage. So the measured ones of a prompt's class are a
random choice of it, and their mean is an unbiased estimate of the mean over all of it.

Several visits of a prompt count by what was measured in each. With rewards of 0 and 1 their mean is
unbiased too. With other rewards it leans a little toward rewards of classes that were learned from.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from dibs.training.dealing import groups_of
from dibs.types import TrainingExample

WITHOUT_ADVANTAGE = 1 / 16
"""Share of the completions that may be measured where none of their prompt and class has an advantage.

Such completions enter no update otherwise.
"""
_MORE = 0.1
"""What measuring may add to the tokens of a step's updates where no share is given."""
_MEASURED_COST = 1.3
"""What a measured completion costs, in passes over its tokens and its prompt's."""


@dataclass(frozen=True)
class NormSample:
    """The norms that the updates of a step are to measure, and those that they did.

    ``classes``: of each of n completions; a prompt's completions of one class are alike. ``share``: of
    the completions that may be measured, those that are; None: as many as add a tenth to the tokens of
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
    every prompt gets one after the other, of its classes in turn. Where the share makes less than one,
    one is measured in that share of the steps.

    Args:
        parts: the completions of each update, by index.
        shared: whether updates compute a prompt once for its completions.
    """
    random = np.random.default_rng(seed)
    learned = np.array([example.advantage != 0 for example in examples], dtype=bool)
    contexts = [example.context_ids for example in examples]
    eligible = _eligible(learned, contexts, sample.classes, random)
    places = np.full(len(examples), np.inf)
    for u, part in enumerate(parts):
        for members in groups_of([i for i in part if eligible[i]], contexts):
            places[members] = u + _lots(sample.classes[members], random)
    wanted = sample.share
    if wanted is None:
        wanted = _affordable(examples, parts, learned, eligible, shared=shared)
    number = int(wanted * int(eligible.sum()) + random.random())
    chosen = np.zeros(len(examples), dtype=bool)
    chosen[np.argsort(places, kind="stable")[:number]] = True
    return chosen


def _eligible(
    learned: np.ndarray,
    contexts: Sequence[Hashable],
    classes: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """Which completions may be measured, bool [n].

    A completion whose graded reward is the mean of its group has no advantage. It may be measured all
    the same where others of its class have one: else the class would be known by the others alone.
    """
    eligible = random.random(len(learned)) < WITHOUT_ADVANTAGE
    kinds = list(zip(contexts, classes.tolist(), strict=True))
    for members in groups_of(range(len(learned)), kinds):
        eligible[members] |= learned[members].any()
    return eligible


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
    """The share of eligible completions whose measuring adds a tenth to the tokens of the updates.

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
