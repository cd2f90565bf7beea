"""The gradient at the output layer in closed form, without a backward pass, chunk by chunk.

With logits ``z_t = W h_t / tau`` the gradient of one completion's log-probability is

    ``dW = sum_t e_t h_t^T``,   ``dh_t = W^T e_t``,   ``e_t = (onehot(y_t) - softmax(z_t)) / tau``

The vocabulary is walked in chunks, so no [batch, tokens, vocabulary] tensor is held. Different chunks
are different rows of ``dW``, so their squares add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dibs.model.batching import TokenBatch
from dibs.model.grad_norms.products import Products, product

_CHUNK = 2**22
"""Logits held at once on a CPU (16 MiB), more where one token's logits need it."""
_CHUNK_ON_DEVICE = 2**28
"""The same on an accelerator (1 GiB)."""


class Sketch:
    """A random projection of the vocabulary axis to ``size`` sums with random signs (a count sketch).

    Inner products of projected vectors are unbiased. The squared norm has a relative standard error of
    at most about sqrt(2 / size), and the norm about half of that. Places are drawn chunk by chunk, so
    the bound is not exact. (Charikar et al. 2002; Weinberger et al. 2009, arXiv 0902.2206.)
    """

    def __init__(self, size: int, vocabulary: int, seed: int, device: torch.device) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(seed)  # the global random state is left alone
        bits = torch.randint(0, 2, (vocabulary,), generator=generator)
        self.signs = (2 * bits - 1).float().to(device)
        self.keys = torch.rand(vocabulary, generator=generator).to(device)

    def fold(self, errors: Tensor, chunk: slice) -> Tensor:
        """Project errors [B, T, chunk] to [B, T, size]: entries are signed, shuffled and added up."""
        shuffled = (errors * self.signs[chunk])[:, :, self.keys[chunk].argsort()]
        padded = nn.functional.pad(shuffled, (0, -shuffled.shape[2] % self.size))
        return padded.unflatten(2, (-1, self.size)).sum(2)


@torch.no_grad()
def output_layer(
    layer: nn.Linear,
    hidden: Tensor,
    batch: TokenBatch,
    temperature: float,
    products: Products | None = None,
    *,
    sketch: Sketch | None = None,
    backward: bool = False,
    looked_up: Tensor | None = None,
    slopes: Tensor | None = None,
    learned: int | None = None,
    add_rows: Callable[[Tensor, Tensor, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the completions' log-probabilities at and below the output layer.

    Args:
        layer: the output layer.
        hidden: the layer's input, [B, T, d]: one vector for each completion token.
        products: the share of the layer's matrix, and of its bias where it has one, is added here.
        sketch: projects the vocabulary axis before products are taken.
        backward: whether the gradient at ``hidden`` is returned.
        looked_up: rows of the matrix, [B, U], whose logit gradients are returned; the value at a row -1
            has no meaning.
        slopes: what each token's log-probability counts, [B, T]; None: 1.
        learned: the matrix's ``.grad`` gets the gradients of so many samples, the first ones.
        add_rows: called with the logit gradients [B, T, o] of some rows of the matrix, ``hidden`` and
            the first row's number.

    Returns:
        The gradient at ``hidden``, float32 [B, T, d], and the logit gradients, [B, T, U]. What was not
        asked for is an empty tensor.
    """
    below = torch.zeros_like(hidden, dtype=torch.float32) if backward else hidden.new_zeros(0)
    picked = []
    together = add_rows is not None or (products is not None and products.pairs)
    for rows in _blocks(layer, hidden, together):
        errors = _Errors(layer, hidden[rows], batch, rows, temperature, slopes)
        features = _with_ones(errors.hidden) if layer.bias is not None else errors.hidden
        folded = None
        for chunk, error in errors.chunks():
            rounded = error.to(hidden.dtype)  # bfloat16 models multiply in bfloat16
            if backward:
                flat = product(rounded.flatten(0, 1), layer.weight[chunk])
                below[rows] += flat.view_as(below[rows])
            if sketch is not None:
                folded = sketch.fold(error, chunk) + (0.0 if folded is None else folded)
            elif products is not None:
                count = None if learned is None else max(learned - rows.start, 0)
                own = products.add_outer(rounded, features, rows, count)
                if own is not None:
                    _add_gradient(layer.weight, chunk, own)
            if add_rows is not None:
                add_rows(rounded, errors.hidden, chunk.start)
        if folded is not None and products is not None:
            products.add_outer(folded.to(hidden.dtype), features, rows)
        if looked_up is not None:
            picked.append(errors.at(looked_up[rows]))
    return below, torch.cat(picked) if picked else hidden.new_zeros(0)


def _add_gradient(weight: Tensor, rows: slice, gradient: Tensor) -> None:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad[rows] += gradient


def _blocks(layer: nn.Linear, hidden: Tensor, together: bool) -> Iterator[slice]:
    """Slices of samples: as many as fit into a chunk, at least one; all where they stay together."""
    samples, length, _ = hidden.shape
    count = max(1, _chunk(hidden) // (length * len(layer.weight)))
    if together:
        count = samples
    for start in range(0, samples, count):
        yield slice(start, min(start + count, samples))


def _chunk(hidden: Tensor) -> int:
    return _CHUNK_ON_DEVICE if hidden.is_cuda else _CHUNK


def _with_ones(hidden: Tensor) -> Tensor:
    return torch.cat([hidden, hidden.new_ones(*hidden.shape[:2], 1)], dim=2)


class _Errors:
    """The errors ``e_t`` of a block of samples, chunk by chunk over the vocabulary.

    A first walk over the vocabulary finds the softmax's normalizer, and a second gives the errors.
    Where the vocabulary is one chunk, its exponentials are kept, and the logits are computed once. The
    chosen token's error is the sum over the other tokens, so that it is precise also for a probability
    near 1.
    """

    def __init__(
        self,
        layer: nn.Linear,
        hidden: Tensor,
        batch: TokenBatch,
        rows: slice,
        temperature: float,
        slopes: Tensor | None,
    ) -> None:
        self.layer, self.hidden, self.temperature = layer, hidden, temperature
        self.chosen = batch.completion_ids[rows].unsqueeze(2)
        self.mask = batch.completion_mask[rows].unsqueeze(2)
        if slopes is not None:
            self.mask = self.mask * slopes[rows].unsqueeze(2)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the vocabulary, each with its errors [b, T, slice]."""
        samples, length, _ = self.hidden.shape
        vocabulary = len(self.layer.weight)
        width = max(1, _chunk(self.hidden) // (samples * length))
        slices = [
            slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)
        ]
        powers = self._normalize(slices)
        for chunk in slices:
            if len(slices) > 1:
                powers = self._logits(chunk).sub_(self.maximum).exp_()
            error = powers.mul_(-self.scale)
            self._at_chosen(error, chunk, self.chosen_error)
            yield chunk, error

    def at(self, rows: Tensor) -> Tensor:
        """Errors at the entries [b, U] of the vocabulary, [b, T, U]. Call it after :meth:`chunks`."""
        entries = rows.clamp(min=0)
        logits = product(self.hidden, self.layer.weight[entries].mT.to(self.hidden.dtype))
        if self.layer.bias is not None:
            logits += self.layer.bias[entries].unsqueeze(1)
        error = (logits / self.temperature - self.maximum).exp_().mul_(-self.scale)
        return torch.where(rows.unsqueeze(1) == self.chosen, self.chosen_error, error)

    def _normalize(self, slices: list[slice]) -> Tensor:
        maximum = torch.full_like(self.chosen, -torch.inf, dtype=torch.float32)
        others, own = torch.zeros_like(maximum), torch.zeros_like(maximum)
        for chunk in slices:
            powers = self._logits(chunk)
            higher = torch.maximum(maximum, powers.amax(2, keepdim=True))
            powers.sub_(higher).exp_()
            shrink = (maximum - higher).exp_()
            inside, index = self._index(chunk)
            own = own * shrink + powers.gather(2, index) * inside
            powers.scatter_(2, index, powers.gather(2, index) * ~inside)
            others = others * shrink + powers.sum(2, keepdim=True)
            maximum = higher
        self.maximum = maximum
        self.scale = self.mask / ((others + own) * self.temperature)
        self.chosen_error = others * self.scale
        return powers

    def _logits(self, chunk: slice) -> Tensor:
        bias = None if self.layer.bias is None else self.layer.bias[chunk]
        logits = nn.functional.linear(self.hidden, self.layer.weight[chunk], bias).float()
        return logits if self.temperature == 1 else logits.div_(self.temperature)

    def _index(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Which tokens chose an entry of the chunk, and the entry's index; else an arbitrary index."""
        inside = (self.chosen >= chunk.start) & (self.chosen < chunk.stop)
        return inside, (self.chosen - chunk.start).clamp(0, chunk.stop - chunk.start - 1)

    def _at_chosen(self, error: Tensor, chunk: slice, value: Tensor) -> None:
        inside, index = self._index(chunk)
        error.scatter_(2, index, torch.where(inside, value, error.gather(2, index)))
