"""The rows of a verl batch, grouped by prompt. numpy only.

verl names a row ``{uid}_{session}_{index}``. ``uid`` is a prompt of this step, ``session`` numbers its
completions, and ``index`` numbers the outputs of a completion. An agent may write several outputs; the
last one holds the reward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dibs.training.dealing import deal


def dealt_rows(
    keys: Sequence[str], devices: int, mini_batches: int, seed: Sequence[int]
) -> list[int]:
    """Order rows so that the mini-batches of each device hold even shares of every prompt.

    verl gives each device a run of neighboring rows, and makes each mini-batch of neighbors among them.
    Neighbors are rows of one prompt, as completions of a prompt come together, and those of short
    completions come first. With ragged counts the mini-batches would hold different numbers of prompts,
    and the expected gradient of the first one would not be the step's. No row changes its device.

    Args:
        keys: names of the rows, [rows]; their number is divisible by ``devices * mini_batches``.
        seed: decides the order.

    Returns:
        Indices of all rows.
    """
    own = len(keys) // devices
    order: list[int] = []
    for device in range(devices):
        start = device * own
        prompts = [key.rsplit("_", 2)[0] for key in keys[start : start + own]]
        dealt = deal(prompts, mini_batches, (*seed, device))
        order += [start + i for part in dealt for i in part]
    return order


class Groups:
    """Maps rows to completions and prompts.

    Args:
        uids: of the m prompts of the step, in order.
        keys: names of the rows. Rows of prompts that are not in ``uids`` are padding.

    ``rows``: number of rows. ``known``: number of rows without padding. The completions of a prompt are
    in the order of their session numbers.
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
        """Return the value of each completion's last output, [n_i] for each prompt, from [rows]."""
        return [[float(values[outputs[-1]]) for outputs in each] for each in self._completions]

    def total(self, values: np.ndarray) -> list[list[float]]:
        """Return the sum over each completion's outputs, [n_i] for each prompt, from [rows]."""
        return [[float(values[outputs].sum()) for outputs in each] for each in self._completions]

    def spread(self, values: Sequence[np.ndarray], padding: float = 0.0) -> np.ndarray:
        """Write the value of each completion, [n_i] for each prompt, to all its rows: float64 [rows]."""
        rows = np.full(self.rows, padding)
        for each, numbers in zip(self._completions, values, strict=True):
            for outputs, number in zip(each, numbers, strict=True):
                rows[outputs] = number
        return rows
