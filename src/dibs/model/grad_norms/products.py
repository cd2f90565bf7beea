"""Inner products of per-sample gradients, summed parameter by parameter."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2**20
"""Entries of per-sample gradients held at once, which fit the cache of a CPU core."""
_BLOCK_ON_DEVICE = 2**27
"""The same on an accelerator, where larger products run faster (512 MiB)."""


class Products:
    """Inner products of the samples' gradients, summed over the parameters added so far.

    ``total``: float64, [B] squared norms or, with ``pairs``, [B, B] inner products.
    """

    def __init__(self, samples: int, pairs: bool, device: torch.device) -> None:
        self.pairs = pairs
        shape = (samples, samples) if pairs else (samples,)
        self.total = torch.zeros(shape, dtype=torch.float64, device=device)
        self._last: tuple[Tensor, Tensor] | None = None

    def add(self, gradients: Tensor, sign: float = 1.0, rows: slice = slice(None)) -> None:
        """Add gradients [B, ...] of some parameter entries, times ``sign``, for the samples ``rows``."""
        flat = gradients.flatten(1).float()
        if self.pairs:
            self.total[rows, rows] += sign * (flat @ flat.T).double()
        else:
            self.total[rows] += sign * _squares(flat)

    def add_outer(
        self,
        left: Tensor,
        right: Tensor,
        rows: slice = slice(None),
        learned: int | None = None,
    ) -> Tensor | None:
        """Add gradients ``sum_t left_t right_t^T`` of ``left`` [B, T, o] and ``right`` [B, T, i].

        Returns the sum of the gradients of the first ``learned`` samples, [o, i]; None for None.
        """
        samples, length, outputs = left.shape
        inputs = right.shape[2]
        if not self.pairs and gram_is_cheaper(length, outputs, inputs):
            squares = torch.linalg.vecdot(
                product(left, left.mT).flatten(1), self._gram_of_inputs(right).flatten(1)
            )
            self.total[rows] += squares.clamp(min=0).double()
            if learned is None:
                return None
            return product(left[:learned].flatten(0, 1).mT, right[:learned].flatten(0, 1))
        block = _BLOCK_ON_DEVICE if left.is_cuda else _BLOCK
        total = None if learned is None else left.new_zeros(outputs, inputs, dtype=torch.float32)
        if not self.pairs and samples * outputs * inputs > block:
            for i in range(samples):
                one = slice(i, i + 1)
                part = total if learned is not None and i < learned else None
                self._add_blocks(left[one], right[one], block, _one(rows, i), part, 1)
        else:
            self._add_blocks(left, right, block, rows, total, learned)
        return total

    def forget(self) -> None:
        """Let go of what is kept for the next call, once there is none.

        The inputs belong to the graph of the forward pass, which holds the recorder of these products.
        Kept here, none of them would ever be freed: Python does not see a cycle that goes through torch.
        """
        self._last = None

    def _gram_of_inputs(self, inputs: Tensor) -> Tensor:
        """``inputs inputs^T``, kept for the next call: projections of attention share their inputs.

        The inputs are kept with it, so no other tensor can have come to lie in their place.
        """
        if self._last is not None and _same_memory(self._last[0], inputs):
            return self._last[1]
        made = product(inputs, inputs.mT)
        self._last = inputs, made
        return made

    def _add_blocks(
        self,
        left: Tensor,
        right: Tensor,
        block: int,
        rows: slice,
        total: Tensor | None,
        learned: int | None,
    ) -> None:
        """Add gradients a few rows at a time, those of ``learned`` samples to ``total`` too."""
        width = max(1, block // (left.shape[0] * right.shape[2]))
        for start in range(0, left.shape[2], width):
            some = slice(start, start + width)
            gradients = product(left[:, :, some].mT, right)
            self.add(gradients, rows=rows)
            if total is not None:
                for each in gradients[:learned]:
                    total[some] += each


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return (one.data_ptr(), one.shape, one.stride(), one.dtype) == (
        other.data_ptr(),
        other.shape,
        other.stride(),
        other.dtype,
    )


def _squares(flat: Tensor) -> Tensor:
    """Squared norms, float64 [B]. A float32 norm of millions of entries would be off by 1e-5."""
    samples, size = flat.shape
    whole = size - size % 1024
    pieces = torch.linalg.vector_norm(flat[:, :whole].reshape(samples, whole // 1024, 1024), dim=2)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1)
    return pieces.double().square().sum(1) + rest.double().square()


def _one(rows: slice, i: int) -> slice:
    start = (rows.start or 0) + i
    return slice(start, start + 1)


def gram_is_cheaper(length: int, outputs: int, inputs: int) -> bool:
    """Whether two T x T Gram matrices take fewer multiplications than the gradient itself."""
    return length * (outputs + inputs) < outputs * inputs


def product(left: Tensor, right: Tensor) -> Tensor:
    """The float32 product of two matrices or batches of matrices, also where these are bfloat16."""
    if left.is_cuda and left.dtype == right.dtype != torch.float32:
        multiply = torch.mm if left.ndim == 2 else torch.bmm
        return multiply(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
