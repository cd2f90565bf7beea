"""Weighted sums of the samples' gradients, projected to vectors while one backward pass runs.

A sum of a matrix's gradients, ``sum_b f_b sum_t g_bt x_bt^T``, is one product of two matrices, like the
gradient of an ordinary backward pass. It is projected as soon as it is made, some rows at a time, so no
gradient of the whole model is held.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from dibs.model.grad_norms.products import product
from dibs.model.gradient_vector import Projection

_BLOCK = 2**22
"""Entries of a sum held at once on a CPU (16 MiB)."""
_BLOCK_ON_DEVICE = 2**27
"""The same on an accelerator (512 MiB)."""


class WeightedSums:
    """``sum_b factors_bc s_b`` of the gradients added so far, a projected vector for each c.

    Args:
        projection: of the tracked parameters, in their order.
        names: of the tracked parameters, in their order.
        factors: of each sample in each sum, [n, C]; 0: it is not in it.
    """

    def __init__(self, projection: Projection, names: Sequence[str], factors: Tensor) -> None:
        self.projection = projection
        self.places = {name: place for place, name in enumerate(names)}
        self.vectors = projection.zeros(factors.shape[1])
        self.factors = factors.float().to(self.vectors.device)
        self.members = _members(self.factors)

    def of(self, samples: Sequence[int]) -> WeightedSums:
        """The same sums, to which these samples' gradients are added."""
        own = copy.copy(self)
        own.factors = self.factors[list(samples)]
        own.members = _members(own.factors)
        return own

    def add_outer(self, name: str, left: Tensor, right: Tensor, first_row: int = 0) -> None:
        """Add gradients ``sum_t left_t right_t^T`` of rows ``first_row`` and following ones of a matrix.

        ``left``: [B, T, o]. ``right``: [B, T, i].
        """
        outputs, inputs = left.shape[2], right.shape[2]
        width = max(1, (_BLOCK_ON_DEVICE if left.is_cuda else _BLOCK) // inputs)
        for c, members in self.members:
            weights = self.factors[members, c].view(-1, 1, 1)
            scaled = (left[members] * weights).to(left.dtype).flatten(0, 1)
            own = right[members].flatten(0, 1)
            for start in range(0, outputs, width):
                made = product(scaled[:, start : start + width].mT, own)
                place = (first_row + start) * inputs
                self.projection.add(self.vectors[c], self.places[name], place, made.flatten())

    def add_rows(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        """Add gradients [B, S, d] of the rows ``ids`` [B, S] of a matrix."""
        for c, members in self.members:
            weighted = gradient[members].float() * self.factors[members, c].view(-1, 1, 1)
            self.projection.add_rows(
                self.vectors[c], self.places[name], ids[members].flatten(), weighted.flatten(0, 1)
            )

    def add(self, name: str, gradients: Tensor) -> None:
        """Add gradients [B, k] of all entries of a parameter."""
        for c, members in self.members:
            made = self.factors[members, c] @ gradients[members].float()
            self.projection.add(self.vectors[c], self.places[name], 0, made)


def _members(factors: Tensor) -> list[tuple[int, Tensor]]:
    """The number of each sum that has samples, and which they are."""
    members = [(c, column.nonzero().flatten()) for c, column in enumerate(factors.T)]
    return [(c, each) for c, each in members if len(each)]
