"""Per-sample squared gradient norms, recorded while one backward pass of a batch runs.

Every function of torch that reads a trainable parameter is intercepted, whatever module calls it. In its
place runs one with another backward pass: the gradient goes on to the function's input as usual, but
each sample's share of the squared norm is recorded in place of the parameter's gradient. No ``.grad``
is written. So a parameter that has one afterwards was used in a way that is not covered here, and the
caller can raise an error.

For a matrix ``W`` [out, in] with inputs ``x_t`` and output gradients ``g_t``, t over a sample's tokens,
the sample's gradient is ``sum_t g_t x_t^T``. Its squared norm comes from T x T Gram matrices,
``sum_{t,u} (g_t . g_u)(x_t . x_u)`` (Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv
2110.05679), or from the gradient itself, a few rows at a time, whichever costs less for the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from dibs.types import InputError

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

    def add(self, gradients: Tensor, sign: float = 1.0, rows: slice = slice(None)) -> None:
        """Add gradients [B, ...] of some parameter entries, times ``sign``, for the samples ``rows``."""
        flat = gradients.flatten(1).float()
        if self.pairs:
            self.total[rows, rows] += sign * (flat @ flat.T).double()
        else:
            self.total[rows] += sign * _squares(flat)

    def add_outer(self, left: Tensor, right: Tensor, rows: slice = slice(None)) -> None:
        """Add gradients ``sum_t left_t right_t^T`` of ``left`` [B, T, o] and ``right`` [B, T, i]."""
        samples, length, outputs = left.shape
        inputs = right.shape[2]
        if not self.pairs and gram_is_cheaper(length, outputs, inputs):
            squares = product(left, left.mT).mul_(product(right, right.mT)).sum((1, 2))
            self.total[rows] += squares.clamp(min=0).double()
            return
        block = _BLOCK_ON_DEVICE if left.is_cuda else _BLOCK
        if not self.pairs and samples * outputs * inputs > block:
            for i in range(samples):
                self._add_blocks(left[i : i + 1], right[i : i + 1], block, _one(rows, i))
        else:
            self._add_blocks(left, right, block, rows)

    def _add_blocks(self, left: Tensor, right: Tensor, block: int, rows: slice) -> None:
        width = max(1, block // (left.shape[0] * right.shape[2]))
        for some in left.split(width, dim=2):
            self.add(product(some.mT, right), rows=rows)


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


class Recorder(TorchFunctionMode):
    """While entered, backward passes add per-sample products of the ``tracked`` parameters' gradients.

    Args:
        tracked: parameters by name.
        products: where shares are added. The first axis of every activation must be its samples, which
            is checked by shape alone.

    Raises InputError, with the parameter's name, where one is used in a way that is not covered.
    """

    def __init__(self, tracked: Mapping[str, Tensor], products: Products) -> None:
        super().__init__()
        self.products = products
        self.samples = len(products.total)
        self.names = {id(parameter): name for name, parameter in tracked.items()}
        self.handlers: dict[Any, Callable[..., Tensor]] = {
            F.linear: self._linear,
            F.embedding: self._embedding,
            F.layer_norm: self._layer_norm,
            F.rms_norm: self._rms_norm,
            torch.mul: self._mul,
            Tensor.mul: self._mul,
        }
        self.vectors: dict[str, Tensor] = {}
        self.finished: set[str] = set()
        self.used_without_gradient: set[str] = set()
        self.looked_up: dict[str, Tensor] = {}
        self.output_gradients: dict[str, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        handler = self.handlers.get(func)
        if handler and any(id(value) in self.names for value in (*args, *kwargs.values())):
            return handler(*args, **kwargs)
        return func(*args, **kwargs)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with this recorder entered, for code that runs later or in another thread."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return inside

    def close(self) -> None:
        """Add what is complete only at the end of the backward pass.

        Raises InputError for a parameter used without gradients and never again with them.
        """
        for name in self.used_without_gradient - self.finished - self.vectors.keys():
            raise uncovered(
                name,
                "a layer that gradients do not reach (reentrant gradient checkpointing of inputs "
                "without gradient)",
            )
        for gradient in self.vectors.values():
            self.products.add(gradient)
        self.vectors.clear()

    def name_of(self, parameter: Tensor | None) -> str | None:
        """The name of a tracked parameter, None for any other tensor."""
        return self.names.get(id(parameter))

    # These replace functions of torch.

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name = self.name_of(weight)
        bias = self._per_sample(bias, input)
        if name is None:
            output = F.linear(input, weight)
        elif weight.ndim != 2:
            raise uncovered(name, f"a linear map of shape {list(weight.shape)}")
        else:
            self._check_samples(name, input)
            output = _Linear.apply(input, weight, self, name)
        return output if bias is None else output + bias

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        name = self.names[id(weight)]
        self._check_samples(name, input)
        if max_norm is not None or scale_grad_by_freq:
            raise uncovered(name, "an embedding with max_norm or scale_grad_by_freq")
        ids = input.flatten(1)
        slots, rows = distinct_rows(ids, self.products.pairs)
        self.looked_up[name] = rows
        real = None if padding_idx is None else ids != padding_idx % len(weight)
        return _Embedding.apply(input, weight, slots, rows.shape[1], real, self, name)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        output = F.layer_norm(input, normalized_shape, eps=eps)
        scale, shift = self._per_sample(weight, input), self._per_sample(bias, input)
        output = output if scale is None else output * scale
        return output if shift is None else output + shift

    def _rms_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        output = F.rms_norm(input, normalized_shape, eps=eps)
        scale = self._per_sample(weight, input)
        return output if scale is None else output * scale

    def _mul(self, input: Any, other: Any) -> Tensor:
        left, right = self._per_sample(input, other), self._per_sample(other, input)
        return torch.mul(left, right)

    def _per_sample(self, vector: Any, activations: Any) -> Any:
        """A tracked vector, copied for each sample so that each copy has its own gradient."""
        name = self.name_of(vector)
        if name is None:
            return vector
        if not isinstance(activations, Tensor) or vector.ndim != 1:
            raise uncovered(name, f"a factor of shape {list(vector.shape)}")
        self._check_samples(name, activations)
        shape = (self.samples, *[1] * (activations.ndim - 2), len(vector))
        return _Vector.apply(vector, shape, self, name)

    def _check_samples(self, name: str, activations: Tensor) -> None:
        if not torch.is_grad_enabled():
            self.used_without_gradient.add(name)
        if activations.ndim < 2 or activations.shape[0] != self.samples:
            raise uncovered(
                name,
                f"its use on activations of shape {list(activations.shape)}, whose first axis is not "
                f"the batch of {self.samples},",
            )

    # The backward passes call these.

    def add_matrix(self, name: str, inputs: Tensor, gradient: Tensor) -> None:
        """Add a matrix's share from its inputs [B, ..., in] and output gradients [B, ..., out]."""
        inputs = inputs.reshape(self.samples, -1, inputs.shape[-1])
        gradient = gradient.reshape(self.samples, -1, gradient.shape[-1])
        self.finish(name)
        if name in self.looked_up:
            rows = self.looked_up[name]
            picked = rows.clamp(min=0).unsqueeze(1)
            picked = picked.expand(*gradient.shape[:2], -1)
            self.keep_for_embedding(name, gradient.gather(2, picked), inputs)
        self.products.add_outer(gradient, inputs)

    def keep_for_embedding(self, name: str, gradient: Tensor, inputs: Tensor) -> None:
        """Keep logit gradients [B, T, U] at the rows that an embedding of the same weight looked up."""
        self.output_gradients[name] = (gradient, inputs)

    def add_embedding(self, name: str, slots: Tensor, size: int, gradient: Tensor) -> None:
        """Add an embedding's share from its output gradients [B, S, d], also where it is tied.

        A tied matrix has the gradient ``L + E``, where L is the output layer's and E the embedding's. E
        is zero but for the looked-up rows. So ``||L + E||^2`` differs from ``||L||^2``, which was added
        before, in those rows only.
        """
        width = gradient.shape[2]
        embedding = gradient.new_zeros(self.samples, size, width, dtype=torch.float32)
        index = slots.unsqueeze(2).expand(-1, -1, width)
        embedding.scatter_add_(1, index, gradient.float())
        if name in self.output_gradients:
            logits, inputs = self.output_gradients.pop(name)
            output = product(logits.mT, inputs)
            output *= (self.looked_up[name] >= 0).unsqueeze(2)
            self.products.add(output, sign=-1.0)
            embedding += output
        else:
            self.finish(name)
        self.products.add(embedding)

    def add_vector(self, name: str, gradient: Tensor) -> None:
        """Add per-sample gradients [B, ..., d] of one use of a vector to those of its other uses."""
        flat = gradient.reshape(self.samples, -1).float()
        self.vectors[name] = self.vectors[name] + flat if name in self.vectors else flat

    def finish(self, name: str) -> None:
        """Note that a matrix's share was added. Raises InputError the second time."""
        if name in self.finished:
            raise uncovered(name, "a matrix used more than once in a forward pass")
        self.finished.add(name)


def distinct_rows(ids: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """Number the distinct values in each row of ``ids`` [B, S], or in all rows together if ``shared``.

    Returns:
        ``slots`` [B, S], the number of each id, and ``rows`` [B, U], the id of each number. ``rows`` is
        -1 where a row has fewer than U distinct ids.
    """
    if shared:
        values, slots = ids.unique(return_inverse=True)
        return slots, values.expand(len(ids), -1)
    ordered, order = ids.sort(dim=1)
    new = torch.ones_like(ordered)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    numbers = new.cumsum(1) - 1
    slots = torch.empty_like(ids).scatter_(1, order, numbers)
    rows = ids.new_full((len(ids), int(numbers.max()) + 1), -1).scatter_(1, numbers, ordered)
    return slots, rows


def uncovered(name: str, what: str) -> InputError:
    """The error for a parameter that has no closed form here."""
    return InputError(
        f"grad_norm exact: parameter {name}: {what} is not covered; set grad_norm to "
        "exact_slow (one sample at a time) or last_layer"
    )


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, recorder: Recorder, name: str) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.recorder, ctx.name = recorder, name
        return F.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        ctx.recorder.add_matrix(ctx.name, inputs, gradient)
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _Embedding(Function):
    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        weight: Tensor,
        slots: Tensor,
        size: int,
        real: Tensor | None,
        recorder: Recorder,
        name: str,
    ) -> Tensor:
        ctx.slots, ctx.size, ctx.real, ctx.recorder, ctx.name = slots, size, real, recorder, name
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        gradient = gradient.reshape(*ctx.slots.shape, -1)
        if ctx.real is not None:
            gradient = gradient * ctx.real.unsqueeze(2)
        ctx.recorder.add_embedding(ctx.name, ctx.slots, ctx.size, gradient)
        return (None,) * 7


class _Vector(Function):
    @staticmethod
    def forward(
        ctx: Any, vector: Tensor, shape: tuple[int, ...], recorder: Recorder, name: str
    ) -> Tensor:
        ctx.recorder, ctx.name = recorder, name
        return vector.expand(shape).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.recorder.add_vector(ctx.name, gradient)
        return (None,) * 4
