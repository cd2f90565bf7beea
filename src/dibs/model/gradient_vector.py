"""A model's gradient as one vector of limited size, for inner products between gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

LARGEST = 2**22
"""Most entries of a vector: a longer gradient is folded onto so many."""
_SPREAD = 2**22
"""Entries of rows that are added at once, each with a place of its own."""


class Projection:
    """Turns gradients of the parameters into float32 vectors.

    A gradient of at most ``largest`` entries is the vector itself. A longer one is cut into pieces of
    ``largest`` entries. Each piece is multiplied by the same row of random signs,
    turned round by a random number of places, multiplied by a sign of its own, and added up. Inner
    products of such vectors ``u`` and ``v`` are unbiased, since the pieces' own signs are independent.
    Their standard error is about ``|u| |v| / sqrt(largest)``, since two entries of different pieces meet
    with probability ``1 / largest``.

    One row of signs serves all pieces, so a projection reads a gradient once and draws nothing.
    """

    def __init__(self, parameters: Sequence[Tensor], seed: int = 0, largest: int = LARGEST) -> None:
        self.parameters = parameters
        self.seed = seed
        self.entries = sum(p.numel() for p in parameters)
        self.size = min(self.entries, largest)

    def __call__(self) -> Tensor:
        """The vector of the present ``.grad``, float32 [size]; a missing one counts as 0."""
        (vector,) = self.zeros(1)
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.add(vector, index, 0, parameter.grad.detach().flatten())
        return vector

    def zeros(self, *shape: int) -> Tensor:
        """Vectors of no gradient, float32 [*shape, size]."""
        return torch.zeros(*shape, self.size, device=self.parameters[0].device)

    def add(self, vector: Tensor, parameter: int, start: int, entries: Tensor) -> None:
        """Add some of a parameter's gradient to a vector.

        Args:
            vector: float32 [size].
            parameter: its place among the parameters.
            start: the first entry's place in the flattened parameter.
            entries: the entries, [k].
        """
        start += self._starts[parameter]
        while len(entries):
            piece, inside = divmod(start, self.size)
            some = entries[: self.size - inside]
            self._add_to_piece(vector, piece, inside, some)
            start, entries = start + len(some), entries[len(some) :]

    def _add_to_piece(self, vector: Tensor, piece: int, inside: int, entries: Tensor) -> None:
        if self.is_whole:
            vector[inside : inside + len(entries)] += entries
            return
        turns, signs = self._pieces
        place = (inside + int(turns[piece])) % self.size
        first = min(self.size - place, len(entries))
        # What goes past the vector's end goes on at its start.
        for part, at in ((slice(0, first), place), (slice(first, len(entries)), 0)):
            values = entries[part].float()
            own = self._signs[inside + part.start : inside + part.stop]
            vector[at : at + len(values)].addcmul_(values, own, value=float(signs[piece]))

    def add_rows(self, vector: Tensor, parameter: int, rows: Tensor, values: Tensor) -> None:
        """Add rows of a matrix's gradient to a vector.

        Args:
            vector: float32 [size].
            parameter: the matrix's place among the parameters.
            rows: numbers of its rows, int64 [k]; one may occur more than once.
            values: their entries, [k, d].
        """
        width = values.shape[1]
        columns = torch.arange(width, device=values.device) + self._starts[parameter]
        turns, own = self._pieces_on_device
        at_once = max(1, _SPREAD // width)
        for some, entries in zip(rows.split(at_once), values.split(at_once), strict=True):
            place, signed = some.unsqueeze(1) * width + columns, entries.float()
            if not self.is_whole:
                piece, inside = place // self.size, place % self.size
                place = (inside + turns[piece]) % self.size
                signed = signed * self._signs[inside] * own[piece]
            vector.index_add_(0, place.flatten(), signed.flatten())

    @property
    def is_whole(self) -> bool:
        """Whether a vector is the gradient itself, in the parameters' order."""
        return self.size == self.entries

    @cached_property
    def _signs(self) -> Tensor:
        drawn = torch.randint(
            0, 2, (self.size,), generator=torch.Generator().manual_seed(self.seed)
        )
        return (2.0 * drawn - 1).to(self.parameters[0].device)

    @cached_property
    def _starts(self) -> list[int]:
        """Where each parameter starts in the whole gradient."""
        return list(accumulate((p.numel() for p in self.parameters), initial=0))

    @cached_property
    def _pieces_on_device(self) -> tuple[Tensor, Tensor]:
        """``_pieces`` as tensors beside the parameters."""
        turns, signs = (torch.from_numpy(each) for each in self._pieces)
        device = self.parameters[0].device
        return turns.to(device), signs.to(device)

    @cached_property
    def _pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """The turn, int64, and the sign, float32, of each piece."""
        rng = np.random.default_rng(self.seed)
        count = -(-self.entries // self.size)
        signs = 2 * rng.integers(0, 2, count) - 1
        return rng.integers(0, self.size, count), signs.astype(np.float32)
