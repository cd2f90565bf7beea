"""Weights of a step that trains on some of what was drawn. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dibs.allocation.estimators import weigh_rewards
from dibs.allocation.rounds import Keeper
from dibs.allocation.target import Target


def weigh_kept(
    rewards: Sequence[np.ndarray],
    accepted: Sequence[np.ndarray],
    keeper: Keeper | None,
    count: int,
    target: Target,
    estimator: str,
    **known: Any,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Advantages and weights of all completions, float64 [n_i] a prompt; 0 for those left out.

    Args:
        rewards, accepted: of the completions of each prompt, [n_i].
        keeper: decides which ``count`` of a prompt's completions are trained on; None keeps all.
        known: see :func:`.weigh_rewards`.
    """
    signals = [target.signal(a, r) for a, r in zip(accepted, rewards, strict=True)]
    if keeper is None:
        return weigh_rewards(signals, target, estimator, **known)
    kept = [keeper.keep(r, a, count) for r, a in zip(rewards, accepted, strict=True)]
    rests = None
    if keeper.whole_baseline:
        rests = [np.delete(each, places) for each, places in zip(signals, kept, strict=True)]
    found = weigh_rewards(
        [each[places] for each, places in zip(signals, kept, strict=True)],
        target,
        estimator,
        baseline_only=rests,
        **known,
    )
    advantages, weights = (
        [
            _spread(each, places, len(all_of_it))
            for each, places, all_of_it in zip(of_kept, kept, signals, strict=True)
        ]
        for of_kept in found
    )
    return advantages, weights


def _spread(values: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """The values at their places among ``size``, and 0 elsewhere."""
    spread = np.zeros(size)
    spread[places] = values
    return spread
