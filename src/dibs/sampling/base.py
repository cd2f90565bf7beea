"""What a sampling engine takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dibs.types import Completion, Prompt


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

    ``batch_tokens``: decoded together; it shrinks where memory does not suffice.
    """

    batch_tokens: int

    def stream(
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
