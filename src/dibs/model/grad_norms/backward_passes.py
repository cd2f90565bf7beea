"""Functions whose backward passes hand per-sample gradients to a recorder, in place of ``.grad``.

Where the recorder has ``learned`` samples, ``.grad`` gets the sum of their gradients besides.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function


class LinearMap(Function):
    """A linear map, whose matrix gets no gradient but that of learned samples."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, recorder: Any, name: str) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.recorder, ctx.name = recorder, name
        return F.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        own = ctx.recorder.add_matrix(ctx.name, inputs, gradient)
        own = None if own is None else own.to(weight.dtype)
        return gradient @ weight if ctx.needs_input_grad[0] else None, own, None, None


class EmbeddingMap(Function):
    """A look-up of rows, whose matrix gets no gradient but that of learned samples."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        weight: Tensor,
        slots: Tensor,
        size: int,
        real: Tensor | None,
        recorder: Any,
        name: str,
    ) -> Tensor:
        ctx.slots, ctx.size, ctx.real, ctx.recorder, ctx.name = slots, size, real, recorder, name
        ctx.ids, ctx.rows = ids, len(weight)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.reshape(*ctx.slots.shape, -1)
        if ctx.real is not None:
            gradient = gradient * ctx.real.unsqueeze(2)
        ctx.recorder.add_embedding(ctx.name, ctx.slots, ctx.size, gradient)
        if ctx.recorder.sums is not None:
            ctx.recorder.sums.add_rows(ctx.name, ctx.ids.flatten(1), gradient)
        own, learned = None, ctx.recorder.learned
        if learned is not None:
            own = gradient.new_zeros(ctx.rows, gradient.shape[2])
            own.index_add_(0, ctx.ids[:learned].flatten(), gradient[:learned].flatten(0, 1))
        return None, own, *(None,) * 5


class VectorCopies(Function):
    """A copy of a vector for each sample; the vector gets no gradient but that of learned samples."""

    @staticmethod
    def forward(
        ctx: Any, vector: Tensor, shape: tuple[int, ...], recorder: Any, name: str
    ) -> Tensor:
        ctx.recorder, ctx.name = recorder, name
        return vector.expand(shape).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.recorder.add_vector(ctx.name, gradient)
        own, learned = None, ctx.recorder.learned
        if learned is not None:
            own = gradient[:learned].flatten(0, -2).sum(0)
        return own, None, None, None
