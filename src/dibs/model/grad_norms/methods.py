"""Squared norms and inner products of ``s(y) = grad log pi(y|x)``, one gradient a completion.

``exact`` runs one forward and one backward pass a micro-batch (see ``recorder``; the output layer in
closed form, see ``output_layer``). ``last_layer`` runs the forward pass alone. ``exact_slow`` runs
ordinary autograd for one sample at a time; it is the fallback where ``exact`` does not cover a
parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from dibs.config import GradNormMethod, GradNormParameters
from dibs.model.batching import TokenBatch, TokenSequence
from dibs.model.forward_pass import in_evaluation_mode
from dibs.model.grad_norms.output_layer import Sketch, output_layer
from dibs.model.grad_norms.products import Products
from dibs.model.grad_norms.recorder import Recorder, UncoveredError, uncovered
from dibs.model.grad_norms.tracked import gradients_of, tracked_parameters
from dibs.model.grad_norms.weighted_sums import WeightedSums
from dibs.model.gradient_vector import Projection
from dibs.model.policy import Policy
from dibs.types import InputError, NonFiniteError

_Measure = Callable[[Sequence[TokenSequence], Products, WeightedSums | None], None]
"""Adds the gradients of one micro-batch's sequences to the products, and to sums where there are any."""


@dataclass(frozen=True)
class GradientNorms:
    """Squared norms and inner products of the gradients ``s`` of n completions.

    ``squares``: ``||s||^2``, float64 [n]. ``products``: one float64 [n_g, n_g] for each group, the inner
    products ``s_a . s_b`` of its completions; None when no groups were given. With coefficients ``a``,
    ``a @ products @ a`` is ``||sum_i a_i s_i||^2``.
    """

    squares: np.ndarray
    products: tuple[np.ndarray, ...] | None = None

    @property
    def norms(self) -> np.ndarray:
        """``||s||``, float64 [n]."""
        return np.sqrt(self.squares)


def gradient_norms(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    method: GradNormMethod = "exact",
    *,
    parameters: GradNormParameters = "all",
    sketch: int | None = None,
    group_sizes: Sequence[int] | None = None,
    max_tokens: int = 16384,
    seed: int = 0,
) -> GradientNorms:
    """Measure ``grad log pi(y|x)`` of each sequence's completion, summed over its tokens.

    Meanwhile modules are in evaluation mode, and products are float32 where the policy's are mixed.
    Gradient checkpointing stays on. Afterwards parameters, their ``.grad``, modes and the global random
    state are as before.

    Args:
        policy: a causal language model; ``log pi`` is at its temperature.
        sequences: n contexts and completions; an empty completion has norm 0.
        method: ``exact``: over the chosen trainable parameters, a shared one counted once.
            ``exact_slow``: the same, one sample at a time. ``last_layer``: over the output layer only,
            which may be frozen; of tied embeddings, only their use as output layer.
        parameters: of the exact methods: ``all`` trainable ones, ``embed_tokens``, ``lm_head`` (the same
            where tied) or ``lora``.
        sketch: with ``last_layer``, entries that the vocabulary axis is projected to. Squared norms stay
            unbiased, with a relative standard error of at most about sqrt(2 / sketch).
        group_sizes: sizes of consecutive groups, adding up to n. Inner products are then measured within
            each group, and a group is one micro-batch, whatever ``max_tokens``.
        max_tokens: padded tokens of one forward pass.
        seed: of the sketch; sketches of different steps should differ.

    Raises:
        ValueError: arguments that do not go together, or an empty context.
        InputError: none of ``parameters`` is trainable; ``exact`` does not cover the use of one; the
            policy has no ``output_head``, with ``last_layer``; the model was made in inference mode.
        NonFiniteError: a norm is NaN or infinite.
    """
    _check_arguments(sequences, method, parameters, sketch, group_sizes)
    try:
        measure = _method(policy, method, parameters, sketch, seed)
        limit = 1 if method == "exact_slow" else max_tokens
        return _measured(policy, sequences, measure, group_sizes, limit)
    except UncoveredError as fault:
        raise InputError(
            f"{fault}; set grad_norm to {_advice(policy, method, parameters)}"
        ) from None


def gradient_sums(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    factors: np.ndarray,
    projection: Projection,
    *,
    slow: bool = False,
    max_tokens: int = 16384,
) -> tuple[GradientNorms, Tensor]:
    """Norms as :func:`gradient_norms` has them, and weighted sums of the gradients, by the same passes.

    Args:
        factors: of each sequence in each sum, [n, C]. A sum costs as much as the part of a backward pass
            that makes the weights' gradients, for the sequences whose factor is not 0.
        projection: of the trainable parameters, in the model's order.
        slow: by method ``exact_slow`` in place of ``exact``.

    Returns:
        The norms, and ``sum_i factors_ic s_i`` as projected vectors, float32 [C, D].

    Raises what :func:`gradient_norms` raises with that method.
    """
    method: GradNormMethod = "exact_slow" if slow else "exact"
    _check_arguments(sequences, method, "all", None, None)
    names = list(tracked_parameters(policy))
    sums = WeightedSums(projection, names, torch.from_numpy(factors))
    try:
        measure = _method(policy, method, "all", None, 0)
        limit = 1 if slow else max_tokens
        return _measured(policy, sequences, measure, None, limit, sums), sums.vectors
    except UncoveredError as fault:
        raise InputError(f"{fault}; set grad_norm to {_advice(policy, method, 'all')}") from None


def _measured(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    measure: _Measure,
    group_sizes: Sequence[int] | None,
    limit: int,
    sums: WeightedSums | None = None,
) -> GradientNorms:
    """Measure batch by batch, with the model as it was afterwards."""
    squares = np.zeros(len(sequences))
    products = []
    with torch.inference_mode(False), in_evaluation_mode(policy.model), policy.full_precision():
        for indices in _batches(policy, sequences, group_sizes, limit):
            taken = Products(len(indices), group_sizes is not None, policy.device)
            if indices:
                own = None if sums is None else sums.of(indices)
                measure([sequences[i] for i in indices], taken, own)
            total = taken.total.cpu().numpy()
            squares[indices] = total.diagonal() if taken.pairs else total
            products.append(total)
    if not np.isfinite(squares).all():
        raise NonFiniteError("the gradient norm of a completion is NaN or infinite")
    # Rounding can leave a tiny negative square.
    return GradientNorms(squares.clip(min=0), None if group_sizes is None else tuple(products))


@dataclass(frozen=True)
class _Probe:
    """A context and a completion of one token each, on which methods are tried."""

    context_ids: tuple[int, ...] = (0,)
    completion_ids: tuple[int, ...] = (1,)


def _advice(policy: Policy, refused: str, parameters: GradNormParameters) -> str:
    """What to choose in place of a refused method: only what works for this model."""
    words = {"exact": "exact", "exact_slow": "exact_slow (one sample at a time)"}
    working = []
    for method in get_args(GradNormMethod):
        chosen: GradNormParameters = "all" if method == "last_layer" else parameters
        try:
            probe = _method(policy, method, chosen, None, 0)
            if method != refused:
                _measured(policy, [_Probe(), _Probe()], probe, None, 1)
                working.append(words.get(method, method))
        except (InputError, NonFiniteError):
            continue
    return " or ".join([", ".join(working), "none"] if working else ["none"])


def _check_arguments(
    sequences: Sequence[TokenSequence],
    method: str,
    parameters: str,
    sketch: int | None,
    group_sizes: Sequence[int] | None,
) -> None:
    if method not in get_args(GradNormMethod):
        raise ValueError(f"unknown method {method!r}; known: {get_args(GradNormMethod)}")
    if parameters not in get_args(GradNormParameters):
        raise ValueError(
            f"unknown parameters {parameters!r}; known: {get_args(GradNormParameters)}"
        )
    if parameters != "all" and method == "last_layer":
        raise ValueError("a choice of parameters belongs to the exact methods")
    if sketch is not None and (method != "last_layer" or sketch < 1):
        raise ValueError("a sketch of at least 1 entry belongs to the method last_layer")
    if group_sizes is not None and (
        min(group_sizes, default=0) < 0 or sum(group_sizes) != len(sequences)
    ):
        raise ValueError(f"groups of {sum(group_sizes)} in all, but {len(sequences)} sequences")
    for i, sequence in enumerate(sequences):
        if not sequence.context_ids:
            raise ValueError(
                f"sequence {i} has an empty context; its first token has no prediction"
            )


def _batches(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    group_sizes: Sequence[int] | None,
    max_tokens: int,
) -> Iterator[list[int]]:
    if group_sizes is None:
        yield from policy.micro_batches(sequences, max_tokens)
        return
    ends = np.cumsum(group_sizes).tolist()
    for size, end in zip(group_sizes, ends, strict=True):
        yield list(range(end - size, end))


def _method(
    policy: Policy,
    method: GradNormMethod,
    parameters: GradNormParameters,
    sketch: int | None,
    seed: int,
) -> _Measure:
    """The function that measures a micro-batch; InputError where the model does not allow it."""
    if any(parameter.is_inference() for parameter in policy.model.parameters()):
        raise InputError(
            "grad_norm: the model's parameters were made in torch.inference_mode and can have "
            "no gradients; load the model outside of it"
        )
    if method == "exact_slow":
        return _exact_slow(policy, tracked_parameters(policy, parameters))
    head = policy.output_head
    if method == "exact":
        return _exact(policy, tracked_parameters(policy, parameters), head)
    if head is None:
        raise UncoveredError(
            f"grad_norm last_layer: the logits of {type(policy.model).__name__} are not a "
            "Linear output layer of its last hidden state"
        )
    vocabulary = len(head.weight)
    drawn = None if sketch is None else Sketch(sketch, vocabulary, seed, policy.device)
    return _last_layer(policy, head, drawn)


def _exact(policy: Policy, tracked: dict[str, Tensor], head: nn.Linear | None) -> _Measure:
    """Measure with one forward and one backward pass; ``head`` in closed form, where it has no bias."""
    if getattr(head, "bias", None) is not None:
        head = None

    def measure(
        sequences: Sequence[TokenSequence], products: Products, sums: WeightedSums | None
    ) -> None:
        batch = policy.collate(sequences)
        recorder = Recorder(tracked, products, batch.input_ids.shape[1], sums)
        with gradients_of(tracked, policy.model, recorder.around):
            with recorder:
                start = (
                    policy.logprobs_from_logits(batch)[0]
                    if head is None
                    else policy.hidden_states(batch)
                )
            if head is None:
                gradient = torch.ones_like(start)
            else:
                gradient = through_head(head, start, batch, policy.temperature, recorder)
            if start.requires_grad:
                torch.autograd.backward(start, gradient)
            for name, parameter in tracked.items():
                if parameter.grad is not None:
                    raise uncovered(name, f"its use in {type(policy.model).__name__}")
        recorder.close()

    return measure


def through_head(
    head: nn.Linear,
    hidden: Tensor,
    batch: TokenBatch,
    temperature: float,
    recorder: Recorder,
    slopes: Tensor | None = None,
) -> Tensor:
    """Record the output layer's share and return the gradient at the hidden states.

    ``slopes``: what each token's log-probability counts, [B, T]; None: 1.
    """
    name, hidden = recorder.name_of(head.weight), hidden.detach()
    looked_up = None if name is None else recorder.looked_up.get(name)
    gradient, errors = output_layer(
        head,
        hidden,
        batch,
        temperature,
        None if name is None else recorder.products,
        backward=True,
        looked_up=looked_up,
        slopes=slopes,
        learned=recorder.learned,
        add_rows=(
            None
            if name is None or recorder.sums is None
            else partial(recorder.sums.add_outer, name)
        ),
    )
    if name is not None:
        recorder.finish(name)
        if looked_up is not None:
            recorder.keep_for_embedding(name, errors, hidden)
    return gradient.to(hidden.dtype)


def _exact_slow(policy: Policy, tracked: dict[str, Tensor]) -> _Measure:
    """Measure with ordinary autograd; all gradients of a group are held at once."""

    def gradients(sequence: TokenSequence) -> list[Tensor]:
        with gradients_of(tracked, policy.model):
            logprob = policy.logprobs(policy.collate([sequence])).sum()
            if not logprob.requires_grad:
                raise InputError(
                    "grad_norm exact_slow: the log-probability depends on none of the "
                    f"parameters {', '.join(tracked)}"
                )
            logprob.backward()
            return [_dense_gradient(parameter) for parameter in tracked.values()]

    def measure(
        sequences: Sequence[TokenSequence], products: Products, sums: WeightedSums | None
    ) -> None:
        for name, *parts in zip(tracked, *map(gradients, sequences), strict=True):
            together = torch.stack(parts)
            products.add(together)
            if sums is not None:
                sums.add(name, together)

    return measure


def _dense_gradient(parameter: Tensor) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.to_dense().flatten()


def _last_layer(policy: Policy, head: nn.Linear, sketch: Sketch | None) -> _Measure:
    """Measure with a forward pass and the closed form of the output layer."""

    @torch.no_grad()
    def measure(
        sequences: Sequence[TokenSequence], products: Products, sums: WeightedSums | None
    ) -> None:
        batch = policy.collate(sequences)
        hidden = policy.hidden_states(batch)
        output_layer(head, hidden, batch, policy.temperature, products, sketch=sketch)

    return measure
