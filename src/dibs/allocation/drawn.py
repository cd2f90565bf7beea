"""What a step has drawn so far: all that a rule for drawing in rounds may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Drawn:
    """Completions of N prompts, after some rounds of a step.

    ``rounds``: done so far. ``asked``: completions that were asked for, int64 [N]. ``rewards`` and
    ``accepted``: of those with a verdict, float64 and bool [n_i] a prompt; they may be fewer than asked
    for. ``group``: what ``allocate.num_generations`` says, completions of a prompt if all get the same.
    ``wanted``: what ``train.prompts_per_step`` says, prompts that a step trains on.
    """

    rounds: int
    asked: np.ndarray
    rewards: Sequence[np.ndarray]
    accepted: Sequence[np.ndarray]
    group: int
    wanted: int

    def __len__(self) -> int:
        return len(self.asked)

    @property
    def trials(self) -> np.ndarray:
        """Completions with a verdict, int64 [N]."""
        return np.array([len(each) for each in self.accepted], dtype=np.int64)

    @property
    def successes(self) -> np.ndarray:
        """Accepted completions, int64 [N]."""
        return np.array([int(each.sum()) for each in self.accepted], dtype=np.int64)

    @property
    def accept_rate(self) -> np.ndarray:
        """Accepted share, float64 [N]; NaN where there is no verdict."""
        rate = np.full(len(self), np.nan)
        np.divide(self.successes, self.trials, out=rate, where=self.trials > 0)
        return rate

    @property
    def spread(self) -> np.ndarray:
        """Whether the rewards of a prompt differ, bool [N]."""
        return np.array([len(each) > 1 and np.ptp(each) > 0 for each in self.rewards], dtype=bool)

    @property
    def few(self) -> int:
        """Completions that show roughly how a prompt stands: a quarter of a group, two if it has two."""
        return max(self.group // 4, min(2, self.group))

    def first(self, prompts: np.ndarray, limit: int) -> np.ndarray:
        """The first ``limit`` of the prompts marked in a bool [N], as a bool [N]."""
        chosen: np.ndarray = prompts & (np.cumsum(prompts) <= limit)
        return chosen
