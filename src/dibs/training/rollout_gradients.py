"""Gradients of rollouts, by their norms: for the estimates, and to see what a step's counts achieved."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from scipy.linalg import block_diag
from torch import Tensor

from dibs.allocation.allocators import solve
from dibs.allocation.problem import AllocationProblem
from dibs.allocation.target import Target
from dibs.allocation.variance import pooled_gain, variance_shares
from dibs.config import Config, GradNormMethod
from dibs.model.grad_norms import gradient_norms, gradient_sums
from dibs.model.gradient_vector import Projection
from dibs.model.memory import with_smaller_batches
from dibs.model.policy import Policy
from dibs.processes import ALONE, Processes
from dibs.training.examples import length_divisor
from dibs.training.judging_advantages import judging_advantages
from dibs.training.norm_sample import NormSample
from dibs.types import Allocation, Group


@dataclass
class RolloutGradients:
    """Measures gradients of the policy's rollouts as the configuration says.

    The gradient of a rollout is the one that is trained, but for its advantage and weight: ``s /
    divisor`` with ``s = grad log pi(y|x)`` and the divisor of :func:`.length_divisor`. All norms here,
    and so all statistics and measured variances, are of that gradient.

    ``micro_batch_tokens`` shrinks where memory does not suffice. ``window``: variances of the latest
    measured steps, under uniform and under their own counts.
    """

    policy: Policy
    config: Config
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self.micro_batch_tokens = self.config.update.micro_batch_tokens
        self.target = Target.of(self.config.algorithm)
        self.window = deque[tuple[float, float]](maxlen=self.config.variance.window)

    def state_dict(self) -> dict[str, Any]:
        """The size of micro-batches that fits into memory, and the window."""
        return {"micro_batch_tokens": self.micro_batch_tokens, "window": list(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that size and that window; checkpoints of before have no window."""
        self.micro_batch_tokens = int(state["micro_batch_tokens"])
        self.window.clear()
        self.window.extend(state.get("window", ()))

    def norms(self, groups: Sequence[Group], step: int) -> list[np.ndarray]:
        """Norm of each rollout's gradient, one array [n_i] a group.

        With ``estimate.grad_norm`` none it is taken as 1, whatever a rollout's length. With update it
        is measured by a pass of its own all the same: that of method ``exact``.
        """
        options = self.config.estimate
        if options.grad_norm == "none":
            return [np.ones(len(group.rollouts)) for group in groups]
        return self._norms(
            groups,
            "exact" if options.grad_norm == "update" else options.grad_norm,
            parameters=options.grad_norm_parameters,
            sketch=options.grad_norm_sketch,
            seed=self.config.seed + step,
        )

    def sample_of_updates(self, groups: Sequence[Group]) -> NormSample:
        """Which norms the updates measure: of accepted and of rejected rollouts, group by group."""
        accepted = [rollout.accepted for group in groups for rollout in group.rollouts]
        return NormSample.of(accepted, self.config.estimate.grad_norm_share)

    def norms_of_updates(self, groups: Sequence[Group], sample: NormSample) -> list[np.ndarray]:
        """The same from what :meth:`.Updater.step` measured; NaN where nothing finite was."""
        norms = np.full(len(sample.squares), np.nan)
        for own in self.processes.all_gather(sample.squares):
            known = np.isfinite(own)
            norms[known] = np.sqrt(own[known])
        return self._divided(groups, norms)

    def exact_norms(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """The same over all trainable parameters, however the allocator's are measured."""
        slow = self.config.estimate.grad_norm == "exact_slow"
        return self._norms(groups, "exact_slow" if slow else "exact")

    def sums(
        self, groups: Sequence[Group], factors: Sequence[np.ndarray], projection: Projection
    ) -> tuple[list[np.ndarray], Tensor]:
        """:meth:`exact_norms`, and weighted sums of each group's gradients by the same passes.

        Every process measures all groups.

        Args:
            factors: of each rollout in each sum of its group, [n_i, F].
            projection: of the trainable parameters, in the model's order.

        Returns:
            The norms, one array [n_i] a group, and ``sum_j factors_jf s_j / divisor_j`` of each group as
            projected vectors, float32 [m, F, D].
        """
        examples = [rollout.example() for group in groups for rollout in group.rollouts]
        divisors = [length_divisor(r, self.config) for group in groups for r in group.rollouts]
        apart = block_diag(*factors) / np.array(divisors)[:, None]
        (measured, vectors), self.micro_batch_tokens = with_smaller_batches(
            lambda most: gradient_sums(
                self.policy,
                examples,
                apart,
                projection,
                slow=self.config.estimate.grad_norm == "exact_slow",
                max_tokens=most,
            ),
            self.micro_batch_tokens,
            max(len(e.context_ids) + len(e.completion_ids) for e in examples),
        )
        return self._divided(groups, measured.norms), vectors.unflatten(0, (len(groups), -1))

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
        return self._divided(groups, norms)

    def _divided(self, groups: Sequence[Group], norms: np.ndarray) -> list[np.ndarray]:
        """Norms of ``s`` as those of the gradient that is trained, one array [n_i] a group."""
        norms = norms / [length_divisor(r, self.config) for group in groups for r in group.rollouts]
        ends = np.cumsum([len(group.rollouts) for group in groups])
        return np.split(norms, ends[:-1])

    def gain(
        self,
        groups_of_parts: Sequence[Sequence[Group]],
        problems: Sequence[AllocationProblem],
        allocations: Sequence[Allocation],
    ) -> dict[str, float | None]:
        """What the counts gained over uniform ones: the step's variances, and the window's gain.

        The completions of a part are independent of the part's counts, so they may judge them. The
        step's variances are None where a prompt that uniform counts would sample was left out; so is
        the gain of every window with such a step (:func:`.pooled_gain`).
        """
        measured = self._step_variances(groups_of_parts, problems, allocations)
        self.window.append(measured)
        found = pooled_gain(*np.array(self.window).T)
        uniform, chosen = (None if np.isnan(each) else each for each in measured)
        return {
            "measured_gain": found.value,
            "measured_gain_low": found.low,
            "measured_gain_high": found.high,
            "measured_variance": chosen,
            "measured_variance_uniform": uniform,
        }

    def _step_variances(
        self,
        groups_of_parts: Sequence[Sequence[Group]],
        problems: Sequence[AllocationProblem],
        allocations: Sequence[Allocation],
    ) -> tuple[float, float]:
        """Variance of a step's gradient under uniform and under the step's counts, by second moments.

        A prompt none of whose completions got a verdict counts in neither. Both are NaN where a prompt
        was left out of one of them.
        """
        known = [
            self.target.rewards(Group.merged(each)) for each in zip(*groups_of_parts, strict=True)
        ]
        of_step = np.concatenate(known)
        uniform, chosen = np.zeros((2, len(known)))
        for groups, problem, allocation in zip(groups_of_parts, problems, allocations, strict=True):
            advantages = [
                judging_advantages(self.target, self.target.rewards(group), own, of_step)
                for group, own in zip(groups, known, strict=True)
            ]
            squares = self._second_moments(groups, advantages)
            squares[np.isnan(squares) & (allocation.counts > 0)] = 0.0
            uniform += variance_shares(squares, [solve(problem, "uniform").counts])
            chosen += variance_shares(squares, [allocation.counts])
        scale = (len(problems) * len(known)) ** 2
        found = float(uniform.sum()) / scale, float(chosen.sum()) / scale
        return found if np.isfinite(found).all() else (np.nan, np.nan)

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
