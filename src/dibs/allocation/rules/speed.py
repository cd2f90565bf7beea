"""SPEED: a few completions of many prompts, the rest of those of intermediate accept rate (2506.09016).

Needs a pool of candidates. A quarter of a group screens every candidate. The first of those whose
rewards differ get the rest of their group, and are trained on, screening included.

Biased: which prompts are trained on depends on rewards that they are trained with.

Departures: the paper keeps prompts that qualify beyond a batch for later steps, with completions of an
older policy. They are left out here.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.drawn import Drawn

LEAST_GROUP = 2


def more(drawn: Drawn) -> np.ndarray:
    """The screening of all, then the rest of a group for the first that qualify; int64 [N]."""
    if drawn.rounds == 0:
        return np.full(len(drawn), drawn.few)
    if drawn.rounds > 1:
        return np.zeros(len(drawn), dtype=np.int64)
    return np.where(drawn.first(drawn.spread, drawn.wanted), drawn.group - drawn.few, 0)


def trained(drawn: Drawn) -> np.ndarray:
    """The first that qualify, bool [N]."""
    return drawn.first(drawn.spread, drawn.wanted)
