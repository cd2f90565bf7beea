"""What a sampling engine takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from dibs.model.policy import Policy
from dibs.types import Completion, NonFiniteError, Prompt


@dataclass(frozen=True)
class SampleRequest:
    """Completions ``first`` to ``first + count - 1`` of one prompt (a count of 0 is legal).

    ``seed`` fixes all of them: completion k of a prompt depends on the policy, the prompt and
    ``(seed, k)`` only, not on what else is sampled beside it (up to rounding of the logits).
    """

    prompt: Prompt
    count: int
    seed: tuple[int, ...]
    first: int = 0


class Sampled(NamedTuple):
    """A finished completion: the index of its request, its number k, and what was written."""

    request: int
    number: int
    completion: Completion


class Sampler(Protocol):
    """An engine that draws completions from the policy.

    ``batch_tokens``: decoded together; it shrinks where memory does not suffice. ``context``: tokens of
    a prompt and its completion at most; None where only the policy's own limit counts. ``shared``: it
    serves all processes of a run, and the first alone asks it. ``description``: the engine and what was
    found out about it, for the user.
    """

    batch_tokens: int
    context: int | None
    shared: bool

    @property
    def description(self) -> str: ...

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> Iterator[Sampled]:
        """Completions as they are finished, in any order; an engine that fails on some leaves them out.

        Pure sampling: the policy's own distribution at the temperature, with no top-k, top-p or
        penalty. ``temperature`` defaults to the policy's.
        """
        ...

    def update_weights(self) -> None:
        """Sample from the policy as it is now; for engines that hold a copy of its weights."""
        ...

    def close(self) -> None:
        """Stop what the engine started."""
        ...


@dataclass
class IdleSampler:
    """In a process that leaves all sampling to another."""

    batch_tokens: int
    context: int | None = None
    shared: bool = True
    description: str = "another process"

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> Iterator[Sampled]:
        """Nothing."""
        return iter(())

    def update_weights(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to stop."""


def collected(
    requests: Sequence[SampleRequest], stream: Iterable[Sampled]
) -> list[list[Completion]]:
    """The completions of each request, by number."""
    groups: list[list[Sampled]] = [[] for _ in requests]
    for sampled in stream:
        groups[sampled.request].append(sampled)
    return [
        [each.completion for each in sorted(group, key=lambda each: each.number)]
        for group in groups
    ]


def engine_seed(request: SampleRequest, part: int = 0) -> int:
    """vLLM's seed of the request's completion ``first + part``, below 2**63.

    Completions of a prompt have consecutive seeds, as vLLM itself gives them to the ``n`` completions of
    one request: so it does not matter how they are parted into requests.
    """
    (state,) = np.random.SeedSequence(request.seed).generate_state(1, np.uint64)
    return (int(state) >> 2) + request.first + part


def as_completion(policy: Policy, tokens: Sequence[int], logprobs: Sequence[float]) -> Completion:
    """What was drawn, with its text; NonFiniteError where a log-probability is NaN or infinite."""
    if not np.isfinite(logprobs).all():
        raise NonFiniteError("the policy gives NaN or infinite log-probabilities")
    finished = tokens[-1] in policy.eos_ids
    text = policy.tokenizer.decode(
        list(tokens[:-1] if finished else tokens), skip_special_tokens=True
    )
    return Completion(tuple(tokens), text, tuple(logprobs), finished)
