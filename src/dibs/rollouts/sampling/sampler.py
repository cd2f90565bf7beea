"""What a sampling engine takes and returns."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from dibs.model.policy import Policy
from dibs.model.turn_end import decoded
from dibs.types import Completion, NonFiniteError, Prompt


@dataclass(frozen=True)
class SampleRequest:
    """Completions ``first`` to ``first + count - 1`` of one prompt (a count of 0 is legal).

    ``seed`` determines all of them. Completion k of a prompt depends only on the policy, the prompt and
    ``(seed, k)``, up to rounding of the logits, and not on what is sampled beside it.
    """

    prompt: Prompt
    count: int
    seed: tuple[int, ...]
    first: int = 0


class Sampled(NamedTuple):
    """A finished completion, with the index of its request and its number k."""

    request: int
    number: int
    completion: Completion


class Sampler(Protocol):
    """An engine that draws completions from the policy.

    ``batch_tokens``: tokens that are decoded together; it shrinks where memory does not suffice.
    ``context``: most tokens of a prompt and its completion; None where only the policy's own limit
    holds. ``shared``: whether the engine serves all processes of a run, so that only the first process
    uses it. ``description``: a phrase for the user about the engine.
    """

    batch_tokens: int
    context: int | None
    shared: bool

    @property
    def description(self) -> str: ...

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> Iterator[Sampled]:
        """Yield completions as they are finished, in any order.

        They are drawn from the policy's own distribution at ``temperature`` (None: the policy's),
        without top-k, top-p or penalties. Completions on which the engine fails are missing.
        """
        ...

    def update_weights(self) -> None:
        """Bring the engine's copy of the weights, if it has one, up to date with the policy."""
        ...

    def close(self) -> None:
        """Stop what the engine started."""
        ...


@dataclass
class IdleSampler:
    """The sampler of a process that leaves all sampling to the first process of the run."""

    batch_tokens: int
    context: int | None = None
    shared: bool = True
    description: str = "another process"

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> Iterator[Sampled]:
        """Yield nothing."""
        return iter(())

    def update_weights(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to stop."""


def collected(
    requests: Sequence[SampleRequest], stream: Iterable[Sampled]
) -> list[list[Completion]]:
    """The completions of each request, sorted by number."""
    groups: list[list[Sampled]] = [[] for _ in requests]
    for sampled in stream:
        groups[sampled.request].append(sampled)
    return [
        [each.completion for each in sorted(group, key=lambda each: each.number)]
        for group in groups
    ]


def engine_seed(request: SampleRequest, part: int = 0) -> int:
    """The seed, below 2**63, with which vLLM draws completion ``first + part`` of a request.

    Completions of a prompt have consecutive seeds. vLLM itself gives such seeds to the ``n``
    completions of one of its requests, so the split into requests does not matter.
    """
    (state,) = np.random.SeedSequence(request.seed).generate_state(1, np.uint64)
    return (int(state) >> 2) + request.first + part


def as_completion(
    policy: Policy,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    ends: Collection[int] | None = None,
) -> Completion:
    """Tokens as a completion, which ends with the first of the policy's ends.

    ``ends``: the policy's ``eos_ids``, so that they are not looked up for every completion; None: they
    are.

    Raises NonFiniteError where a log-probability is NaN or infinite.
    """
    if not all(map(math.isfinite, logprobs)):
        raise NonFiniteError("the policy gives NaN or infinite log-probabilities")
    finished = tokens[-1] in (policy.eos_ids if ends is None else ends)
    written = tokens[:-1] if finished else tokens
    cut = policy.stops.cut(policy.tokenizer, written)
    if cut is not None:
        length, text = cut
        return Completion(tuple(tokens[:length]), text, tuple(logprobs[:length]), True)
    text = decoded(policy.tokenizer, written)
    return Completion(tuple(tokens), text, tuple(logprobs), finished)
