"""Rows of a verl batch as groups of prompts. numpy only.

verl names a row ``{uid}_{session}_{index}``: the prompt of this step, the number of the completion, and
that of an output of it (an agent may write several; the last one holds the reward).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Groups:
    """Which rows belong to which completion of which prompt.

    Args:
        uids: of the m prompts of the step, in order.
        keys: of the rows; those of prompts that are not among ``uids`` are padding.

    ``rows``: how many there are; ``known``: without padding. Completions of a prompt are in the order of
    their session numbers, whichever was ready first.
    """

    def __init__(self, uids: Sequence[str], keys: Sequence[str]) -> None:
        sessions: list[dict[int, dict[int, int]]] = [{} for _ in uids]
        place = {uid: i for i, uid in enumerate(uids)}
        for row, key in enumerate(keys):
            uid, session, index = key.rsplit("_", 2)
            if uid in place:
                sessions[place[uid]].setdefault(int(session), {})[int(index)] = row
        self.rows = len(keys)
        self.known = sum(len(outputs) for each in sessions for outputs in each.values())
        self._completions = [
            [[outputs[i] for i in sorted(outputs)] for _, outputs in sorted(each.items())]
            for each in sessions
        ]

    @property
    def sizes(self) -> np.ndarray:
        """Completions of each prompt, int64 [m]."""
        return np.array([len(each) for each in self._completions], dtype=np.int64)

    def last(self, values: np.ndarray) -> list[list[float]]:
        """Numbers of rows [rows] as numbers of completions, [n_i] a prompt: of the last output each."""
        return [[float(values[outputs[-1]]) for outputs in each] for each in self._completions]

    def total(self, values: np.ndarray) -> list[list[float]]:
        """The same, added up over the outputs of each completion."""
        return [[float(values[outputs].sum()) for outputs in each] for each in self._completions]

    def spread(self, values: Sequence[np.ndarray], padding: float = 0.0) -> np.ndarray:
        """A number of each completion, [n_i] a prompt, to all its rows: float64 [rows]."""
        rows = np.full(self.rows, padding)
        for each, numbers in zip(self._completions, values, strict=True):
            for outputs, number in zip(each, numbers, strict=True):
                rows[outputs] = number
        return rows
