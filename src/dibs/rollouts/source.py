"""Completions with their rewards: the sampler draws them, the verifier judges them meanwhile.

Every process draws and judges a share of them, and then has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from dibs.config import Config
from dibs.processes import ALONE, Processes
from dibs.rollouts.sampling import Sampled, Sampler, SampleRequest
from dibs.rollouts.verify.verifier import Verifier
from dibs.rollouts.verify.verifiers import verified
from dibs.types import Group, Prompt


class Purpose(IntEnum):
    """What completions are drawn for.

    It is part of the seed: at one step, one prompt draws different completions for each purpose.
    """

    PILOT = 0
    TRAINING = 1
    EVALUATION = 2
    METER = 3


@dataclass
class DrawCost:
    """What a draw took: completions and tokens of all processes.

    ``busiest``: tokens of the process that drew most. ``missing``: completions that were asked for and
    did not arrive. ``fault``: why no completion at all got a verdict; None where one did.
    """

    rollouts: int = 0
    tokens: int = 0
    busiest: int = 0
    missing: int = 0
    fault: str | None = None

    def add(self, other: DrawCost) -> None:
        """Count another draw as well."""
        self.rollouts += other.rollouts
        self.tokens += other.tokens
        self.busiest += other.busiest
        self.missing += other.missing

    def imbalance(self, processes: int) -> float:
        """Tokens of the busiest process over those of an even share; 1 where shares are even."""
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

    def state_dict(self) -> dict[str, Any]:
        """The number of tokens decoded together that fits into memory."""
        return {"batch_tokens": self.sampler.batch_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that number."""
        self.sampler.batch_tokens = int(state["batch_tokens"])

    def draw(
        self,
        prompts: Sequence[Prompt],
        counts: Sequence[int],
        purpose: Purpose,
        step: int,
        *,
        first: Sequence[int] | np.ndarray | None = None,
        failures: str | None = None,
        costs: np.ndarray | None = None,
        when_drawn: Callable[[], None] = lambda: None,
    ) -> tuple[list[Group], DrawCost]:
        """Draw and judge ``counts[i]`` completions of each prompt.

        Returns a group a prompt, in order, and what the draw took.

        Args:
            purpose: part of the seed; evaluation also has a temperature of its own.
            first: how many completions of each prompt were drawn for this purpose in this step before,
                [m]; None: none.
            failures: ``exclude`` or ``reject``, in place of ``verify.failures``.
            costs: tokens that one completion of each prompt is expected to take, [m], so that the shares
                of processes are even; None: all alike.
            when_drawn: called once the last completion is drawn and only verdicts are missing.
        """
        seed = (self.config.seed, int(purpose), step)
        starts = [0] * len(prompts) if first is None else first
        requests = [
            SampleRequest(prompt, count, (*seed, int(prompt.prompt_id, 16)), int(start))
            for prompt, count, start in zip(prompts, counts, starts, strict=True)
        ]
        evaluating = purpose is Purpose.EVALUATION
        temperature = self.config.evaluate.temperature if evaluating else None
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

        def judged() -> tuple[list[Group], list[int], list[str]]:
            reasons: list[str] = []
            own = verified(
                self.verifier,
                prompts,
                drawn(),
                options.accept_threshold,
                keep,
                reasons=reasons,
                require_end=options.require_end,
            )
            return own, lengths, reasons

        shares = self.processes.all_gather_results(judged)
        groups = [Group.merged(parts) for parts in zip(*(own for own, *_ in shares), strict=True)]
        tokens = [sum(each) for _, each, _ in shares]
        arrived = sum(len(each) for _, each, _ in shares)
        fault = no_verdict_at_all([reason for *_, reasons in shares for reason in reasons], arrived)
        return groups, DrawCost(arrived, sum(tokens), max(tokens), sum(counts) - arrived, fault)


def no_verdict_at_all(reasons: Sequence[str], completions: int) -> str | None:
    """Why no completion of several has a verdict, from the reasons of those without; None if one has."""
    if completions == 0 or len(reasons) < completions:
        return None
    first = reasons[0].rstrip(".")
    return f"the verifier gave no verdict on any of {completions:,} completions; the first: {first}"


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
