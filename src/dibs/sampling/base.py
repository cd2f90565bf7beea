"""What a sampling engine takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dibs.types import Completion, Prompt


@dataclass(frozen=True)
class SampleRequest:
    """``count`` completions of one prompt (0 is legal).

    ``seed`` fixes all of them: completion k of a request depends on the policy, the prompt and
    ``(seed, k)`` only, not on what else is sampled beside it (up to rounding of the logits).
    """

    prompt: Prompt
    count: int
    seed: tuple[int, ...]


class Sampler(Protocol):
    """An engine that draws completions from the policy as it is at the time of the call.

    ``batch_tokens``: decoded together; it shrinks where memory does not suffice.
    """

    batch_tokens: int

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> list[list[Completion]]:
        """One list of ``count`` completions a request, in request order.

        Pure sampling: the policy's own distribution at the temperature, with no top-k, top-p or
        penalty. ``temperature`` defaults to the policy's.
        """
        ...
