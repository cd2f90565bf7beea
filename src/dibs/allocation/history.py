"""Statistics of each prompt from the completions of earlier steps. Knows no budget.

Completions that were trained on are kept as sums by prompt id and decide the counts of later steps. No
pilots are drawn. The gradient stays unbiased, because counts never depend on the samples that they are
spent on. The policy moves, so old completions count less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np

from dibs.allocation.statistics import (
    SQUARED_WEIGHTS,
    SUMS,
    all_measured,
    group_sums,
    statistics,
)
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
            taken: ``none``, ``constant`` or ``sequence``, as ``algorithm.length_normalization`` has it,
            or another name. Norms of different names are never mixed.
    """

    def __init__(self, half_life: float, length_normalization: str = "none") -> None:
        self.half_life = half_life
        self.length_normalization = length_normalization
        # Ordered by the step of the last visit: what is to be forgotten comes first.
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._seen = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((0, SUMS))
        self._streak = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        """Prompts that are kept; see :meth:`known` for those that still decide something."""
        return len(self._rows)

    def add(self, groups: Sequence[Group], grad_norms: Sequence[np.ndarray], step: int) -> None:
        """Take in the completions of a step, with ``||grad log pi(y|x)||`` of each, [n_i] a group."""
        for group, norms in zip(groups, grad_norms, strict=True):
            self.take_in(group.prompt.prompt_id, group_sums(group, norms), step)
        self.forget(step)

    def take_in(self, name: str, sums: np.ndarray, step: int) -> None:
        """Add the sums over a prompt's new completions; see :func:`.completion_sums`."""
        row = self._rows.pop(name, None)
        new, alike = row is None, sums[1] in (0, sums[0])
        previous = 0 if row is None else self._streak[row]
        if row is None:
            row = self._new_row()
        # A group of one, or of none that was judged, cannot differ.
        self._streak[row] = alike * (previous + 1) if sums[0] > 1 else previous
        self._rows[name] = row
        self._sums[row] = sums if new else sums + self._at(np.array([row]), step)[0]
        self._seen[row] = step

    def forget(self, step: int) -> int:
        """Drop the prompts whose completions no longer count at a step; return their number."""
        gone = 0
        while self._rows:
            name, row = next(iter(self._rows.items()))
            if self._weights(self._seen[row], step) > 0:
                break
            del self._rows[name]
            self._free.append(row)
            gone += 1
        return gone

    def known(self, step: int) -> int:
        """Prompts whose completions still count for at least half a one."""
        rows = np.fromiter(self._rows.values(), np.int64, len(self._rows))
        left = self._weights(self._seen[rows], step) * self._sums[rows, 0]
        return int(np.sum(left >= _EVIDENCE))

    def returning(self, prompt_ids: Sequence[str], step: int) -> np.ndarray:
        """Discounted number of completions of each prompt that had some, float64 [at most m]."""
        rows = self._find(prompt_ids)
        rows = rows[rows >= 0]
        return self._at(rows[self._sums[rows, 0] > 0], step)[:, 0]

    def statistics(self, prompt_ids: Sequence[str], step: int) -> PromptStats:
        """Statistics of the prompts at a step; zero trials for a prompt never seen."""
        rows = self._find(prompt_ids)
        streak = np.zeros(len(rows), dtype=np.int64)
        streak[rows >= 0] = self._streak[rows[rows >= 0]]
        return replace(statistics(prompt_ids, self._sums_of(rows, step)), streak=streak)

    def sums(self, prompt_ids: Sequence[str], step: int) -> np.ndarray:
        """The discounted sums of each prompt, float64 [m, 29]; zeros for a prompt never seen."""
        return self._sums_of(self._find(prompt_ids), step)

    def _sums_of(self, rows: np.ndarray, step: int) -> np.ndarray:
        """The same of rows, [m]; zeros for -1."""
        found = np.zeros((len(rows), SUMS))
        found[rows >= 0] = self._at(rows[rows >= 0], step)
        return found

    def pool_statistics(
        self, prompt_ids: Sequence[str], step: int
    ) -> tuple[PromptStats, np.ndarray]:
        """Statistics in which all prompts that were never seen share one row, and the row of each.

        Returns:
            Statistics of k rows, and int64 [N] for N prompts. A pool may have a million prompts of which
            a few thousand are known. Rows are in the order of the prompts, so that sums over them are
            rounded alike in a run that was resumed.
        """
        kept = self._find(prompt_ids) + 1  # 0 for those never seen
        first = np.full(len(self._seen) + 1, len(kept))
        # Of places that are written twice the last value stays: that of the first prompt.
        first[kept[::-1]] = np.arange(len(kept))[::-1]
        seen = np.flatnonzero(first < len(kept))
        seen = seen[np.argsort(first[seen])]
        place = np.empty(len(first), dtype=np.int64)
        place[seen] = np.arange(len(seen))
        found = np.zeros((len(seen), SUMS))
        found[seen > 0] = self._at(seen[seen > 0] - 1, step)
        streak = np.append(0, self._streak)[seen]
        numbers = range(len(seen))  # in place of names, which nobody reads
        return replace(statistics(numbers, found), streak=streak), place[kept]

    def _find(self, names: Sequence[str]) -> np.ndarray:
        """The row of each prompt, int64 [m]; -1 for one that is not kept."""
        return np.fromiter(map(self._rows.get, names, repeat(-1)), np.int64, len(names))

    def _new_row(self) -> int:
        if not self._free:
            size = len(self._seen)
            more = max(size, 64)
            self._seen = np.concatenate([self._seen, np.zeros(more, dtype=np.int64)])
            self._sums = np.concatenate([self._sums, np.zeros((more, SUMS))])
            self._streak = np.concatenate([self._streak, np.zeros(more, dtype=np.int64)])
            self._free = list(range(size + more - 1, size - 1, -1))
        return self._free.pop()

    def _at(self, rows: np.ndarray, step: int) -> np.ndarray:
        """The sums of kept prompts as they count at a step, [m, 29]."""
        weights = np.repeat(self._weights(self._seen[rows], step)[:, None], SUMS, axis=1)
        weights[:, SQUARED_WEIGHTS] **= 2
        return self._sums[rows] * weights

    def _weights(self, seen: np.ndarray, step: int) -> np.ndarray:
        """What a completion of each step counts at a later one; 0 where it is forgotten."""
        weights = 0.5 ** ((step - seen) / self.half_life)
        return np.where(weights < _FORGOTTEN, 0.0, weights)

    def state_dict(self) -> dict[str, Any]:
        """What is known of each prompt, as JSON takes it: the step of its last visit, and its sums.

        Beside them the streaks of equal rewards that are above 0.
        """
        prompts = {
            name: [int(self._seen[row]), *self._sums[row].tolist()]
            for name, row in self._rows.items()
        }
        return {
            "half_life": self.half_life,
            "length_normalization": self.length_normalization,
            "prompts": prompts,
            "streaks": {
                name: int(self._streak[row])
                for name, row in self._rows.items()
                if self._streak[row]
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> int:
        """Take over what :meth:`state_dict` gave; the half-life stays as it was set.

        Norms of gradients that were divided by something else cannot be compared with those to come, so
        their prompts are left out. Return how many were. A state that names no division has none.
        """
        prompts = sorted(state["prompts"].items(), key=lambda item: item[1][0])
        self._rows, self._free = {}, []
        self._seen, self._sums = np.zeros(0, dtype=np.int64), np.zeros((0, SUMS))
        self._streak = np.zeros(0, dtype=np.int64)
        if state.get("length_normalization", "none") != self.length_normalization:
            return len(prompts)
        for name, (step, *sums) in prompts:
            row = self._new_row()
            self._rows[name] = row
            self._seen[row] = step
            self._sums[row] = sums if len(sums) == SUMS else all_measured(sums)
            self._streak[row] = state.get("streaks", {}).get(name, 0)
        return 0
