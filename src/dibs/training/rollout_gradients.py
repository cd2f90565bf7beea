"""Gradients of rollouts, by their norms: for the estimates, and to see what a step's counts achieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from dibs.allocation.allocators import solve
from dibs.allocation.problem import AllocationProblem
from dibs.allocation.target import Target
from dibs.allocation.variance import ratio_of_sums, variance_shares
from dibs.config import Config, GradNormMethod
from dibs.model.grad_norms import gradient_norms
from dibs.model.memory import with_smaller_batches
from dibs.model.policy import Policy
from dibs.processes import ALONE, Processes
from dibs.training.examples import length_divisor
from dibs.types import Group


@dataclass
class RolloutGradients:
    """Measures gradients of the policy's rollouts as the configuration says.

    The gradient of a rollout is the one that is trained, but for its advantage and weight: ``s /
    divisor`` with ``s = grad log pi(y|x)`` and the divisor of :func:`.length_divisor`. All norms here,
    and so all statistics and measured variances, are of that gradient.

    ``micro_batch_tokens`` shrinks where memory does not suffice.
    """

    policy: Policy
    config: Config
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self.micro_batch_tokens = self.config.update.micro_batch_tokens
        self.target = Target.of(self.config.algorithm)

    def state_dict(self) -> dict[str, Any]:
        """The size of micro-batches that fits into memory."""
        return {"micro_batch_tokens": self.micro_batch_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that size."""
        self.micro_batch_tokens = int(state["micro_batch_tokens"])

    def norms(self, groups: Sequence[Group], step: int) -> list[np.ndarray]:
        """Norm of each rollout's gradient, one array [n_i] a group.

        With ``estimate.grad_norm`` none it is taken as 1, whatever a rollout's length.
        """
        options = self.config.estimate
        if options.grad_norm == "none":
            return [np.ones(len(group.rollouts)) for group in groups]
        return self._norms(
            groups,
            options.grad_norm,
            parameters=options.grad_norm_parameters,
            sketch=options.grad_norm_sketch,
            seed=self.config.seed + step,
        )

    def exact_norms(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """The same over all trainable parameters, however the allocator's are measured."""
        slow = self.config.estimate.grad_norm == "exact_slow"
        return self._norms(groups, "exact_slow" if slow else "exact")

    def _norms(
        self, groups: Sequence[Group], method: GradNormMethod, **options: Any
    ) -> list[np.ndarray]:
        examples = [rollout.example() for group in groups for rollout in group.rollouts]
        lengths = [len(e.context_ids) + len(e.completion_ids) for e in examples]
        mine = self.processes.own_share(range(len(examples)), lengths)
        measured, self.micro_batch_tokens = with_smaller_batches(
            lambda most: gradient_norms(
                self.policy, [examples[i] for i in mine], method, max_tokens=most, **options
            ),
            self.micro_batch_tokens,
            max(lengths, default=self.micro_batch_tokens),
        )
        norms = np.zeros(len(examples))
        for indices, values in self.processes.all_gather((mine, measured.norms)):
            norms[indices] = values
        norms /= [length_divisor(r, self.config) for group in groups for r in group.rollouts]
        ends = np.cumsum([len(group.rollouts) for group in groups])
        return np.split(norms, ends[:-1])

    def gain(
        self, groups_of_parts: Sequence[Sequence[Group]], problems: Sequence[AllocationProblem]
    ) -> dict[str, float | None]:
        """What the counts of a step achieved: the gain over uniform counts, by the step's completions.

        The completions of a part are independent of the part's counts, so they may judge them. None
        where a prompt that uniform counts would sample was left out.
        """
        chosen, even = np.zeros((2, len(groups_of_parts[0])))
        for groups, problem in zip(groups_of_parts, problems, strict=True):
            moments = zip(*problem.posterior.reward_moments(self.target), strict=True)
            advantages = [
                self.advantages(g, *each) for g, each in zip(groups, moments, strict=True)
            ]
            squares = self._second_moments(groups, advantages)
            chosen += variance_shares(
                squares, [np.array([len(group.rollouts) for group in groups])]
            )
            even += variance_shares(squares, [solve(problem, "uniform").counts])
        found = ratio_of_sums(even, chosen)
        return {
            "measured_gain": found.value,
            "measured_gain_low": found.low,
            "measured_gain_high": found.high,
        }

    def _second_moments(
        self, groups: Sequence[Group], advantages: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Mean over each group of ``a^2`` times the squared norm, [m]; NaN where it is empty."""
        # Where a is 0 the norm does not matter.
        felt = [
            Group(group.prompt, tuple(compress(group.rollouts, each != 0)))
            for group, each in zip(groups, advantages, strict=True)
        ]
        return np.array(
            [
                ((each[each != 0] * norms) ** 2).sum() / len(each) if len(each) else np.nan
                for norms, each in zip(self.exact_norms(felt), advantages, strict=True)
            ]
        )

    def advantages(self, group: Group, mean: float, deviation: float) -> np.ndarray:
        """``a(r)`` of each rollout, at moments of its prompt's reward; float64 [n_i]."""
        return self.target.expected_advantages(self.target.rewards(group), mean, deviation)
