"""Pilot-Commit: pilots of all, then what is left of the budget for accept rates near 1/2 (2605.26606).

Needs a pool of candidates. Pilots are a quarter of a group, and half of the budget at most, but those of
one candidate at least. Candidates of which a quarter to three quarters are accepted get the rest of a
group each, as long as the budget of the step lasts, and are trained on, pilots included.

Biased: which prompts are trained on depends on rewards that they are trained with.

Departures: the paper puts off prompts that are too hard, and never draws again those that are too easy.
Here all come back, since both change.
"""

from __future__ import annotations

import numpy as np

from dibs.allocation.drawn import Drawn

LEAST_GROUP = 2
_RATES = 0.25, 0.75
_PILOT_SHARE = 0.5
"""Of the budget of a step, at most."""


def more(drawn: Drawn) -> np.ndarray:
    """The pilots of all, then the rest of a group for those that are committed to; int64 [N]."""
    budget = drawn.wanted * drawn.group
    if drawn.rounds == 0:
        affordable = max(int(_PILOT_SHARE * budget) // drawn.few, 1)
        return np.where(np.arange(len(drawn)) < affordable, drawn.few, 0)
    rest = drawn.group - drawn.few
    if drawn.rounds > 1 or rest == 0:
        return np.zeros(len(drawn), dtype=np.int64)
    left = budget - int(drawn.asked.sum())
    return np.where(drawn.first(_informative(drawn), max(left, 0) // rest), rest, 0)


def trained(drawn: Drawn) -> np.ndarray:
    """Those that got the rest of a group; where pilots are whole groups, the informative; bool [N]."""
    return drawn.asked > drawn.few if drawn.group > drawn.few else _informative(drawn)


def _informative(drawn: Drawn) -> np.ndarray:
    rate = np.nan_to_num(drawn.accept_rate, nan=-1.0)
    return (rate >= _RATES[0]) & (rate <= _RATES[1])
