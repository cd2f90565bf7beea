"""What earlier steps have shown of each prompt: the online estimate. Knows no budget.

Completions that were trained on also tell about their prompts. Kept by prompt id, they decide the counts
of later steps: no pilots are drawn, and since counts never depend on the samples they are spent on, the
gradient stays unbiased. The policy moves, so old completions count less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dibs.estimate import SQUARED_WEIGHTS, SUMS, group_sums, statistics
from dibs.types import Group, PromptStats

_FORGOTTEN = 1e-4
"""Completions discounted below this no longer count."""


class History:
    """Discounted sums over the completions of every prompt seen so far.

    Args:
        half_life: steps after which a completion counts half; above 0.
    """

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life
        self._sums: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, groups: Sequence[Group], grad_norms: Sequence[np.ndarray], step: int) -> None:
        """Take in the completions of a step, with ``||grad log pi(y|x)||`` of each, [n_i] a group."""
        for group, norms in zip(groups, grad_norms, strict=True):
            self.take_in(group.prompt.prompt_id, group_sums(group, norms), step)

    def take_in(self, name: str, sums: np.ndarray, step: int) -> None:
        """Add completions of one prompt as :func:`dibs.estimate.completion_sums` has them."""
        self._sums[name] = (step, self._at(name, step) + sums)

    def statistics(self, prompt_ids: Sequence[str], step: int) -> PromptStats:
        """What is known of the prompts at a step; zero trials for one never seen."""
        return statistics(prompt_ids, self.sums(prompt_ids, step))

    def sums(self, prompt_ids: Sequence[str], step: int) -> np.ndarray:
        """The discounted sums of each prompt, float64 [m, 25]; zeros for one never seen."""
        return np.reshape([self._at(name, step) for name in prompt_ids], (-1, SUMS))

    def _at(self, name: str, step: int) -> np.ndarray:
        seen, sums = self._sums.get(name, (step, np.zeros(SUMS)))
        weight = 0.5 ** ((step - seen) / self.half_life)
        if weight < _FORGOTTEN:
            return np.zeros(SUMS)
        weights = np.full(SUMS, weight)
        weights[SQUARED_WEIGHTS] = weight**2
        return sums * weights

    def state(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        prompts = {name: [step, *sums.tolist()] for name, (step, sums) in self._sums.items()}
        return {"half_life": self.half_life, "prompts": prompts}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> History:
        """The history whose :meth:`state` this is."""
        history = cls(state["half_life"])
        for name, (step, *sums) in state["prompts"].items():
            history._sums[name] = (int(step), np.array(sums))
        return history
