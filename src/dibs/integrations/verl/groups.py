"""The rows of a verl batch, grouped by prompt. numpy only.

verl names a row ``{uid}_{session}_{index}``. ``uid`` is a prompt of this step, ``session`` numbers its
completions, and ``index`` numbers the outputs of a completion. An agent may write several outputs; the
last one holds the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dibs.training.dealing import deal


def splits(rows: int, actor: int, critic: int | None) -> list[int]:
    """Into how many mini-batches to deal rows, and each of those again, the coarser ones first.

    The mini-batches of actor and critic both hold even shares of every prompt where one size divides the
    other. Otherwise only the actor's do.

    Args:
        rows: of the step.
        actor, critic: rows of a mini-batch; None without a critic. A size that does not divide the rows
            does not count.
    """
    sizes = sorted({each for each in (actor, critic) if each and rows % each == 0}, reverse=True)
    if len(sizes) == 2 and sizes[0] % sizes[1]:
        sizes = [actor]
    return [whole // part for whole, part in pairwise([rows, *sizes])]


def dealt_rows(
    keys: Sequence[str], devices: int, mini_batches: Sequence[int], seed: Sequence[int]
) -> list[int]:
    """Order rows so that the mini-batches of each device hold even shares of every prompt.

    verl gives each device a run of neighboring rows, and makes each mini-batch of neighbors among them.
    Neighbors are rows of one prompt, as completions of a prompt come together, and those of short
    completions come first. With ragged counts the mini-batches would hold different numbers of prompts,
    and the expected gradient of the first one would not be the step's. No row changes its device.

    Args:
        keys: names of the rows, [rows].
        mini_batches: see :func:`splits`. Their product times ``devices`` divides the number of rows.
        seed: decides the order.

    Returns:
        Indices of all rows.
    """
    own = len(keys) // devices
    order: list[int] = []
    for device in range(devices):
        start = device * own
        prompts = [key.rsplit("_", 2)[0] for key in keys[start : start + own]]
        order += [start + i for i in _dealt(prompts, mini_batches, (*seed, device))]
    return order


def _dealt(prompts: Sequence[str], splits: Sequence[int], seed: Sequence[int]) -> list[int]:
    """Deal completions, then those of each part again."""
    if not splits:
        return list(range(len(prompts)))
    order: list[int] = []
    for number, part in enumerate(deal(prompts, splits[0], seed)):
        within = _dealt([prompts[i] for i in part], splits[1:], (*seed, number))
        order += [part[i] for i in within]
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
