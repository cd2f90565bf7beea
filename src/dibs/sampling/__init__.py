"""Writing completions: what an engine takes and returns. Knows no rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dibs.config import SamplingConfig
from dibs.policy import Policy
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
    """An engine that draws completions from the policy as it is at the time of the call."""

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> list[list[Completion]]:
        """One list of ``count`` completions a request, in request order.

        Pure sampling: the policy's own distribution at the temperature, with no top-k, top-p or
        penalty. ``temperature`` defaults to the policy's.
        """
        ...


def build_sampler(config: SamplingConfig, policy: Policy) -> Sampler:
    """The engine named in the configuration."""
    from dibs.sampling.transformers import TransformersSampler

    return TransformersSampler(policy, config.max_completion_length, config.batch_tokens)
