"""Statistics of each prompt from the completions of earlier steps. Knows no budget.

Completions that were trained on are kept as sums by prompt id and decide the counts of later steps. No
pilots are drawn. The gradient stays unbiased, because counts never depend on the samples that they are
spent on. The policy moves, so old completions count less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dibs.allocation.statistics import SQUARED_WEIGHTS, SUMS, group_sums, statistics
from dibs.types import Group, PromptStats

_FORGOTTEN = 1e-4
"""Completions discounted below this no longer count."""
_EVIDENCE = 0.5
"""A prompt is known while its completions count for at least so many."""


class History:
    """Discounted sums over the completions of every prompt seen so far.

    Args:
        half_life: steps after which a completion counts half; above 0.
        length_normalization: what the gradients of completions were divided by before their norms were
            taken: ``none``, ``constant`` or ``sequence``, as ``algorithm.length_normalization`` has it.
    """

    def __init__(self, half_life: float, length_normalization: str = "none") -> None:
        self.half_life = half_life
        self.length_normalization = length_normalization
        # Ordered by the step of the last visit: what is to be forgotten comes first.
        self._sums: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        """Prompts that are kept; see :meth:`known` for those that still decide something."""
        return len(self._sums)

    def add(self, groups: Sequence[Group], grad_norms: Sequence[np.ndarray], step: int) -> None:
        """Take in the completions of a step, with ``||grad log pi(y|x)||`` of each, [n_i] a group."""
        for group, norms in zip(groups, grad_norms, strict=True):
            self.take_in(group.prompt.prompt_id, group_sums(group, norms), step)
        self.forget(step)

    def take_in(self, name: str, sums: np.ndarray, step: int) -> None:
        """Add the sums over a prompt's new completions; see :func:`.completion_sums`."""
        total = self._at(name, step) + sums
        self._sums.pop(name, None)
        self._sums[name] = (step, total)

    def forget(self, step: int) -> int:
        """Drop the prompts whose completions no longer count at a step; return their number."""
        gone = 0
        while self._sums:
            name, (seen, _) = next(iter(self._sums.items()))
            if self._weight(seen, step) >= _FORGOTTEN:
                break
            del self._sums[name]
            gone += 1
        return gone

    def known(self, step: int) -> int:
        """Prompts whose completions still count for at least half a one."""
        left = [self._weight(seen, step) * sums[0] for seen, sums in self._sums.values()]
        return int(np.sum(np.array(left) >= _EVIDENCE))

    def returning(self, prompt_ids: Sequence[str], step: int) -> np.ndarray:
        """Discounted number of completions of each prompt that had some, float64 [at most m]."""
        seen = [name for name in prompt_ids if name in self._sums and self._sums[name][1][0] > 0]
        return self.sums(seen, step)[:, 0]

    def statistics(self, prompt_ids: Sequence[str], step: int) -> PromptStats:
        """Statistics of the prompts at a step; zero trials for a prompt never seen."""
        return statistics(prompt_ids, self.sums(prompt_ids, step))

    def sums(self, prompt_ids: Sequence[str], step: int) -> np.ndarray:
        """The discounted sums of each prompt, float64 [m, 25]; zeros for a prompt never seen."""
        return np.reshape([self._at(name, step) for name in prompt_ids], (-1, SUMS))

    def _at(self, name: str, step: int) -> np.ndarray:
        seen, sums = self._sums.get(name, (step, np.zeros(SUMS)))
        weight = self._weight(seen, step)
        if weight < _FORGOTTEN:
            return np.zeros(SUMS)
        weights = np.full(SUMS, weight)
        weights[SQUARED_WEIGHTS] = weight**2
        return sums * weights

    def _weight(self, seen: int, step: int) -> float:
        return float(0.5 ** ((step - seen) / self.half_life))

    def state_dict(self) -> dict[str, Any]:
        """What is known of each prompt, as JSON takes it: the step of its last visit, and its sums."""
        prompts = {name: [step, *sums.tolist()] for name, (step, sums) in self._sums.items()}
        return {
            "half_life": self.half_life,
            "length_normalization": self.length_normalization,
            "prompts": prompts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> int:
        """Take over what :meth:`state_dict` gave; the half-life stays as it was set.

        Norms of gradients that were divided by something else cannot be compared with those to come, so
        their prompts are left out. Return how many were. A state that names no division has none.
        """
        prompts = sorted(state["prompts"].items(), key=lambda item: item[1][0])
        if state.get("length_normalization", "none") != self.length_normalization:
            self._sums = {}
            return len(prompts)
        self._sums = {name: (int(step), np.array(sums)) for name, (step, *sums) in prompts}
        return 0
