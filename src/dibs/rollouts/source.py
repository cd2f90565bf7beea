"""Completions with their rewards: drawn by the sampler, judged while others are drawn, put together.

Every process draws and judges its share; all get all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dibs.config import Config
from dibs.processes import ALONE, Processes
from dibs.rollouts.sampling import Sampled, Sampler, SampleRequest
from dibs.rollouts.verify.verifiers import Verifier, verified
from dibs.types import Group, Prompt

PILOT, TRAINING, EVALUATION, METER = range(4)
"""Random streams: the same prompt at the same step draws different completions in each."""


@dataclass
class DrawCost:
    """Completions drawn, their tokens, those of the busiest process, and completions that never came."""

    rollouts: int = 0
    tokens: int = 0
    busiest: int = 0
    missing: int = 0

    def add(self, other: DrawCost) -> None:
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
    ) -> tuple[list[Group], DrawCost]:
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
                share = share_of_requests(requests, self.processes, costs)
            for sampled in self.sampler.sample(share, temperature):
                lengths.append(len(sampled.completion.token_ids))
                yield sampled
            when_drawn()

        options = self.config.verify
        keep = (failures or options.failures) == "reject"
        mine = verified(self.verifier, prompts, drawn(), options.accept_threshold, keep)
        shares = self.processes.all_gather((mine, lengths))
        loads = [sum(each) for _, each in shares]
        arrived = sum(len(each) for _, each in shares)
        spent = DrawCost(arrived, sum(loads), max(loads), sum(counts) - arrived)
        return [
            Group.merged(parts) for parts in zip(*(own for own, _ in shares), strict=True)
        ], spent


def share_of_requests(
    requests: Sequence[SampleRequest], processes: Processes, costs: np.ndarray | None = None
) -> list[SampleRequest]:
    """This process's completions of each prompt; a request a prompt, its count maybe 0.

    The shares of all processes make up the whole, number by number. They cost the same, as nearly as
    whole completions can. Completions of a prompt stay together, except at a border of two shares.

    Args:
        costs: tokens of one completion of each prompt, [m]; None: all alike.
    """
    if processes.size == 1:
        return list(requests)
    counts = np.array([request.count for request in requests])
    each = np.ones(len(requests)) if costs is None else np.asarray(costs, dtype=np.float64)
    cost = np.repeat(each, counts)
    middle = cost.cumsum() - cost / 2
    owner = (middle / cost.sum() * processes.size).astype(int).clip(max=processes.size - 1)
    starts = counts.cumsum() - counts
    mine = []
    for request, start in zip(requests, starts.tolist(), strict=True):
        owners = owner[start : start + request.count]
        before = int((owners < processes.rank).sum())
        count = int((owners == processes.rank).sum())
        mine.append(replace(request, count=count, first=request.first + before))
    return mine
