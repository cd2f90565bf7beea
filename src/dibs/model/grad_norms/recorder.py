"""Per-sample squared gradient norms, recorded while one backward pass of a batch runs.

Every function of torch that reads a trainable parameter is intercepted, whatever module calls it. In its
place runs one with another backward pass: the gradient goes on to the function's input as usual, but
each sample's share of the squared norm is recorded in place of the parameter's gradient. No ``.grad``
is written. So a parameter that has one afterwards was used in a way that is not covered here, and the
caller can raise an error. An update, which needs ``.grad`` as well, has it from the samples that are
``learned``.

For a matrix ``W`` [out, in] with inputs ``x_t`` and output gradients ``g_t``, t over a sample's tokens,
the sample's gradient is ``sum_t g_t x_t^T``. Its squared norm comes from T x T Gram matrices,
``sum_{t,u} (g_t . g_u)(x_t . x_u)`` (Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv
2110.05679), or from the gradient itself, a few rows at a time, whichever costs less for the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dibs.model.grad_norms.backward_passes import EmbeddingMap, LinearMap, VectorCopies
from dibs.model.grad_norms.products import Products, product
from dibs.model.grad_norms.weighted_sums import WeightedSums
from dibs.types import InputError


class Recorder(TorchFunctionMode):
    """While entered, backward passes add per-sample products of the ``tracked`` parameters' gradients.

    Args:
        tracked: parameters by name.
        products: where shares are added. The first axis of every activation must be its samples, which
            is checked by shape alone; or all tokens, sample by sample, as some models write it. That
            is followed from the call that made it on.
        length: tokens of a sample, padding included.
        sums: weighted sums of the samples' gradients, which are added here too.

    ``learned``: ``.grad`` gets the sum over so many samples, the first ones; None: it is not written.

    Raises UncoveredError, with the parameter's name, where one is used in a way that is not covered.
    """

    def __init__(
        self,
        tracked: Mapping[str, Tensor],
        products: Products,
        length: int,
        sums: WeightedSums | None = None,
    ) -> None:
        super().__init__()
        self.products, self.sums = products, sums
        self.samples = len(products.total)
        self.learned: int | None = None
        self.length = length
        self.names = {id(parameter): name for name, parameter in tracked.items()}
        self.derived: dict[int, _Derived] = {}
        self.handlers: dict[Any, Callable[..., Tensor]] = {
            F.linear: self._linear,
            F.embedding: self._embedding,
            F.layer_norm: self._layer_norm,
            F.rms_norm: self._rms_norm,
            torch.mul: self._mul,
            Tensor.mul: self._mul,
            torch.addmm: self._addmm,
            **{function: partial(self._derive, function) for function in _OF_ONE_VECTOR},
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
        if handler is None and func not in _FLATTEN and func not in _ROW_BY_ROW:
            return func(*args, **kwargs)
        given = (*args, *kwargs.values())
        made: Any
        if handler and any(id(each) in self.names or id(each) in self.derived for each in given):
            made = handler(*args, **kwargs)
        else:
            made = func(*args, **kwargs)
        if self._makes_all_tokens(func, given, made):
            made.all_tokens = True
        return made

    def _makes_all_tokens(self, func: Any, given: tuple[Any, ...], made: Any) -> bool:
        """Whether the first axis of a result is that of all tokens, sample by sample."""
        if not isinstance(made, Tensor) or made.shape[:-1] != (self.samples * self.length,):
            return False
        if func in _FLATTEN and isinstance(given[0], Tensor):
            rows = given[0].shape[:2] == (self.samples, self.length)
            return rows or hasattr(given[0], "all_tokens")
        return func in _ROW_BY_ROW and any(hasattr(each, "all_tokens") for each in given)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with this recorder entered, for code that runs later or in another thread."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return inside

    def close(self) -> None:
        """Add what is complete only at the end of the backward pass.

        Raises UncoveredError for a parameter used without gradients and never again with them.
        """
        for name in self.used_without_gradient - self.finished - self.vectors.keys():
            raise uncovered(
                name,
                "a layer that gradients do not reach (reentrant gradient checkpointing of inputs "
                "without gradient)",
            )
        for name, gradient in self.vectors.items():
            self.products.add(gradient)
            if self.sums is not None:
                self.sums.add(name, gradient)
        self.vectors.clear()
        self.products.forget()

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
            output = LinearMap.apply(input, weight, self, name)
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
        return EmbeddingMap.apply(input, weight, slots, rows.shape[1], real, self, name)

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

    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor, **scales: Any) -> Tensor:
        """A linear map whose matrix is stored transposed, as GPT-2's are."""
        name = self.name_of(weight)
        if scales or name is None:
            raise uncovered(name or str(self.name_of(bias)), "its use in torch.addmm")
        self._check_samples(name, input)
        return LinearMap.apply(input, weight.t(), self, name) + self._per_sample(bias, input)

    def _derive(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """A vector made of a tracked one and numbers, such as Gemma's ``1 + weight.float()``.

        It is made as usual, and remembered. Where it is multiplied with activations, it is made again
        of the copies of each sample. Any other use leaves a ``.grad``, and so is noticed.
        """
        made = function(*args, **kwargs)
        vectors = [each for each in args if isinstance(each, Tensor)]
        if len(vectors) != 1 or made is vectors[0] or made.shape != vectors[0].shape:
            return made
        (vector,) = vectors

        def again(copies: Tensor) -> Tensor:
            return function(*[copies if each is vector else each for each in args], **kwargs)

        before = self.derived.get(id(vector))
        if before is None:
            self.derived[id(made)] = _Derived(made, vector, again)
        else:
            self.derived[id(made)] = _Derived(
                made, before.parameter, lambda copies: again(before.again(copies))
            )
        return made

    def _per_sample(self, vector: Any, activations: Any) -> Any:
        """A tracked vector, copied for each sample so that each copy has its own gradient."""
        derived = self.derived.get(id(vector))
        if derived is not None:
            vector = derived.parameter
        name = self.name_of(vector)
        if name is None:
            return vector
        if not isinstance(activations, Tensor) or vector.ndim != 1:
            raise uncovered(name, f"a factor of shape {list(vector.shape)}")
        self._check_samples(name, activations)
        flat = hasattr(activations, "all_tokens")
        shape = (self.samples, *[1] * (1 if flat else activations.ndim - 2), len(vector))
        copies = VectorCopies.apply(vector, shape, self, name)
        if derived is not None:
            copies = derived.again(copies)
        if flat:
            copies = copies.expand(-1, self.length, -1).flatten(0, 1)
        return copies

    def _check_samples(self, name: str, activations: Tensor) -> None:
        if not torch.is_grad_enabled():
            self.used_without_gradient.add(name)
        if hasattr(activations, "all_tokens"):
            return
        if activations.ndim < 2 or activations.shape[0] != self.samples:
            raise uncovered(
                name,
                f"its use on activations of shape {list(activations.shape)}, whose first axis is not "
                f"the batch of {self.samples},",
            )

    # The backward passes call these.

    def add_matrix(self, name: str, inputs: Tensor, gradient: Tensor) -> Tensor | None:
        """Add a matrix's share from its inputs [B, ..., in] and output gradients [B, ..., out].

        Returns the gradient [out, in] of the samples that are learned, if any are.
        """
        inputs = inputs.reshape(self.samples, -1, inputs.shape[-1])
        gradient = gradient.reshape(self.samples, -1, gradient.shape[-1])
        self.finish(name)
        if name in self.looked_up:
            rows = self.looked_up[name]
            picked = rows.clamp(min=0).unsqueeze(1)
            picked = picked.expand(*gradient.shape[:2], -1)
            self.keep_for_embedding(name, gradient.gather(2, picked), inputs)
        if self.sums is not None:
            self.sums.add_outer(name, gradient, inputs)
        return self.products.add_outer(gradient, inputs, learned=self.learned)

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
        """Note that a matrix's share was added. Raises UncoveredError the second time."""
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


class UncoveredError(InputError):
    """A method cannot measure the gradients of a model; another may. The message holds the reason."""


def uncovered(name: str, what: str) -> UncoveredError:
    """The error for a parameter that has no closed form here."""
    return UncoveredError(f"grad_norm exact: parameter {name}: {what} is not covered")


_OF_ONE_VECTOR = (
    Tensor.float,
    Tensor.to,
    Tensor.type,
    Tensor.add,
    torch.add,
    Tensor.__add__,
    Tensor.__radd__,
)
"""Functions of torch that make a vector of a parameter before it meets activations."""
_FLATTEN = {Tensor.view, Tensor.reshape, Tensor.flatten, torch.reshape, torch.flatten}
_ROW_BY_ROW = {
    *_OF_ONE_VECTOR,
    *(torch.mul, Tensor.mul, torch.addmm, torch.pow, Tensor.pow, torch.tanh, torch.sigmoid),
    *(F.linear, F.layer_norm, F.rms_norm, F.dropout, F.relu, F.gelu, F.silu, Tensor.contiguous),
}
"""Functions of torch that keep the rows of their input in their order."""


@dataclass(frozen=True)
class _Derived:
    """A vector made of a parameter: itself, the parameter, and how to make it of copies of it."""

    made: Tensor
    parameter: Tensor
    again: Callable[[Tensor], Tensor]
