"""Completions with their rewards: drawn by the sampler, judged while others are drawn, put together.

Every process draws and judges its share; all get all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dibs.config import Config
from dibs.processes import ALONE, Processes
from dibs.sampling import Sampled, Sampler, SampleRequest
from dibs.types import Group, Prompt
from dibs.verify import Verifier, verified

PILOT, TRAINING, EVALUATION, METER = range(4)
"""Random streams: the same prompt at the same step draws different completions in each."""


@dataclass
class Spent:
    """Completions drawn, their tokens, those of the busiest process, and completions that never came."""

    rollouts: int = 0
    tokens: int = 0
    busiest: int = 0
    missing: int = 0

    def add(self, other: Spent) -> None:
        """Count another's as well."""
        self.rollouts += other.rollouts
        self.tokens += other.tokens
        self.busiest += other.busiest
        self.missing += other.missing

    def imbalance(self, processes: int) -> float:
        """Tokens of the busiest process over those of an even share."""
        return self.busiest * processes / max(self.tokens, 1)


@dataclass
class RolloutSource:
    """Draws and judges completions as the configuration says."""

    config: Config
    sampler: Sampler
    verifier: Verifier
    processes: Processes = ALONE

    def close(self) -> None:
        """Stop the sampler's engine and the verifier's workers."""
        self.sampler.close()
        self.verifier.close()

    def draw(
        self,
        prompts: Sequence[Prompt],
        counts: Sequence[int],
        stream: int,
        step: int,
        *,
        failures: str | None = None,
        costs: np.ndarray | None = None,
        when_drawn: Callable[[], None] = lambda: None,
    ) -> tuple[list[Group], Spent]:
        """``counts[i]`` completions of each prompt in groups, and what they took.

        Args:
            stream: of random numbers; completions for evaluation have a temperature of their own.
            failures: ``exclude`` or ``reject``, instead of the configuration's.
            costs: tokens that one completion of each prompt will take, for even shares of processes.
            when_drawn: called when the last completion is drawn and only verdicts are missing.
        """
        requests = [
            SampleRequest(
                prompt, count, (self.config.seed, stream, step, int(prompt.prompt_id, 16))
            )
            for prompt, count in zip(prompts, counts, strict=True)
        ]
        temperature = self.config.evaluate.temperature if stream == EVALUATION else None
        lengths: list[int] = []

        def drawn() -> Iterator[Sampled]:
            share = requests
            if not self.sampler.shared:
                share = self.processes.share_of_requests(requests, costs)
            for sampled in self.sampler.stream(share, temperature):
                lengths.append(len(sampled.completion.token_ids))
                yield sampled
            when_drawn()

        options = self.config.verify
        keep = (failures or options.failures) == "reject"
        mine = verified(self.verifier, prompts, drawn(), options.accept_threshold, keep)
        shares = self.processes.gathered((mine, lengths))
        loads = [sum(each) for _, each in shares]
        arrived = sum(len(each) for _, each in shares)
        spent = Spent(arrived, sum(loads), max(loads), sum(counts) - arrived)
        return [
            Group.merged(parts) for parts in zip(*(own for own, _ in shares), strict=True)
        ], spent
