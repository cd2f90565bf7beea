"""Many completions of each of some prompts, and what their gradients are.

Gradients are over all trainable parameters, whole or, for large models, as random projections. They are
those that are trained on: ``algorithm.length_normalization`` is part of ``s`` here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dibs.allocation.group_variance import (
    PromptGradients,
    features,
    mean_products,
    own_advantages,
    wanted,
)
from dibs.allocation.target import Target
from dibs.config import Config
from dibs.model.gradient_vector import LARGEST, Projection
from dibs.model.policy import Policy
from dibs.rollouts.source import Purpose, RolloutSource
from dibs.training.rollout_gradients import RolloutGradients
from dibs.types import Group, NoVerdictError, Prompt

_NUMBERS_HELD = 2**28
"""Of gradient sums, all prompts together: 1 GiB."""
_PARTS = 20
"""Parts, at least, in which prompts are sampled and measured, so that progress is seen."""


@dataclass(frozen=True)
class MeasuredGradients:
    """K completions of each of m prompts and what their gradients are.

    ``norms``: ``||s||`` as the allocator's estimates have it, [K] a prompt. ``prompts``: rewards,
    squares and mean gradients, one entry a prompt. ``products``: inner products of the target's
    gradients ``E[a s]`` of the prompts, [m, m], where a is the objective's factor at the prompt's
    own moments; the diagonal has noise in common. ``own``: ``||E[a s]||^2`` without that noise,
    [m]. ``wanted``: see :func:`.wanted`, [m]. ``tokens``: mean length, [m]. ``between``: inner
    products of the features' gradients B of the prompts, ``E[s | r] = B' b(r)``, [m, F, m, F]; those of
    a prompt with itself are without noise.
    """

    groups: Sequence[Group]
    norms: Sequence[np.ndarray]
    prompts: Sequence[PromptGradients]
    products: np.ndarray
    own: np.ndarray
    wanted: np.ndarray
    tokens: np.ndarray
    between: np.ndarray

    @property
    def is_binary(self) -> bool:
        """Whether all rewards are 0 or 1."""
        return all(prompt.is_binary for prompt in self.prompts)

    @property
    def accepted(self) -> np.ndarray:
        """Whether each completion was accepted, bool [m, K]."""
        return np.array([group.accepted for group in self.groups])

    @property
    def squares(self) -> np.ndarray:
        """``||s||^2`` of each completion, [m, K]."""
        return np.array([prompt.squares for prompt in self.prompts])

    def second_moments(self, target: Target) -> np.ndarray:
        """``E[a^2 ||s||^2]`` of each prompt, [m]."""
        return np.array(
            [np.mean(own_advantages(p.rewards, target) ** 2 * p.squares) for p in self.prompts]
        )

    def signal(self, target: Target) -> np.ndarray:
        """``||E[a s]||^2 / E[a^2 ||s||^2]`` of each prompt, [m]; 0 where nothing is learned."""
        moments = self.second_moments(target)
        share = np.divide(self.own, moments, out=np.zeros(len(moments)), where=moments > 0)
        return share.clip(0, 0.9)


def measured_gradients(
    target: Target,
    groups: Sequence[Group],
    norms: Sequence[np.ndarray],
    squares: Sequence[np.ndarray],
    sums: Tensor,
) -> MeasuredGradients:
    """What :class:`MeasuredGradients` holds, from sums of gradients.

    Args:
        groups: K completions of each of m prompts.
        norms: see :class:`MeasuredGradients`.
        squares: ``||s||^2`` of the gradients that are trained on, [K] a prompt.
        sums: ``sum_j b_j s_j`` of each prompt, [m, F, D]; see :func:`.features`.
    """
    prompts, steepness, own, known = [], [], [], []
    gram = _inner_products(sums)
    for i, (group, square) in enumerate(zip(groups, squares, strict=True)):
        rewards = target.rewards(group)
        basis = features(rewards, target)
        inner = mean_products(gram[i, :, i], basis, square)
        prompts.append(PromptGradients(rewards, square, inner))
        known.append(np.linalg.pinv(basis.T @ basis, rcond=1e-9))
        factors = target.expected_advantages(
            np.array([0.0, 1.0]), float(rewards.mean()), float(rewards.std())
        )
        affine = np.array([factors[0], factors[1] - factors[0]])
        steepness.append((affine if target.has_baseline else affine[1:]) / len(rewards))
        mean = own_advantages(rewards, target) @ basis / len(rewards)
        own.append(mean @ prompts[-1].products @ mean)
    lengths = np.array([[len(r.completion.token_ids) for r in g.rollouts] for g in groups])
    steep, inverse = np.array(steepness), np.array(known)
    between = np.einsum("ief,ifjg,jgh->iejh", inverse, gram, inverse, optimize=True)
    for i, prompt in enumerate(prompts):
        between[i, :, i] = prompt.products
    return MeasuredGradients(
        groups,
        norms,
        prompts,
        np.einsum("if,ifjg,jg->ij", steep, gram, steep, optimize=True),
        np.array(own),
        np.array([wanted(prompt.rewards, target) for prompt in prompts]),
        lengths.mean(1),
        between,
    )


def _inner_products(sums: Tensor) -> np.ndarray:
    """Of the sums [m, F, D] of all prompts with each other, float64 [m, F, m, F]."""
    m, width, _ = sums.shape
    total = torch.zeros(m * width, m * width, dtype=torch.float64, device=sums.device)
    for part in sums.flatten(0, 1).split(2**16, dim=1):
        exact = part.double()
        total += exact @ exact.T
    return total.view(m, width, m, width).cpu().numpy()


@dataclass(frozen=True)
class GradientSource:
    """The parts of a run that draw completions and measure their gradients.

    ``on_progress`` is called with what is done, how many prompts of it, and how many there are.
    """

    config: Config
    policy: Policy
    source: RolloutSource
    gradients: RolloutGradients
    on_progress: Callable[[str, int, int], None] = lambda *_: None

    def measure(self, prompts: Sequence[Prompt]) -> MeasuredGradients:
        """Draw ``variance.num_generations`` completions of each prompt and measure their gradients."""
        return self.measured(self._drawn(prompts))

    def measured(self, groups: Sequence[Group]) -> MeasuredGradients:
        """Measure the gradients of completions that were drawn; one forward and one backward pass."""
        m, target = len(groups), self.gradients.target
        width = 1 + target.has_baseline
        parameters = [p for p in self.policy.model.parameters() if p.requires_grad]
        held = _NUMBERS_HELD // (width * m)
        whole_fits = sum(p.numel() for p in parameters) <= held
        project = Projection(
            parameters, self.config.seed, held if whole_fits else min(held, LARGEST)
        )
        options = self.config.estimate
        exact = options.grad_norm == "update" or options.grad_norm.startswith("exact")
        whole = exact and options.grad_norm_parameters == "all"
        norms, squares, sums = [], [], project.zeros(m, width)
        for start, part in self._parts(groups):
            self.on_progress("gradients", start, m)
            factors = [_disjoint_features(target.rewards(group), target) for group in part]
            full, vectors = self.gradients.sums(part, factors, project)
            norms += full if whole else self.gradients.norms(part, 0)
            squares += [each**2 for each in full]
            sums[start : start + len(part)] = vectors
        self.on_progress("gradients", m, m)
        if target.has_baseline:
            sums[:, 0] += sums[:, 1]
        return measured_gradients(target, groups, norms, squares, sums)

    def _parts(self, groups: Sequence[Group]) -> Iterator[tuple[int, Sequence[Group]]]:
        """Consecutive groups that fit into a forward pass, from their number on; few for progress."""
        most = -(-len(groups) // _PARTS)
        start = 0
        while start < len(groups):
            end = start + 1
            while end < min(start + most, len(groups)) and (
                sum(map(_tokens, groups[start : end + 1])) <= self.gradients.micro_batch_tokens
            ):
                end += 1
            yield start, groups[start:end]
            start = end

    def _drawn(self, prompts: Sequence[Prompt]) -> list[Group]:
        per_prompt, m = self.config.variance.num_generations, len(prompts)
        groups: list[Group] = []
        at_once = -(-m // _PARTS)
        faults: list[str | None] = []
        for start in range(0, m, at_once):
            self.on_progress("sampling", start, m)
            part = prompts[start : start + at_once]
            drawn, cost = self.source.draw(
                part, [per_prompt] * len(part), Purpose.METER, 0, failures="reject"
            )
            faults.append(cost.fault)
            groups += drawn
        self.on_progress("sampling", m, m)
        if faults and None not in faults:
            raise NoVerdictError(faults[0])
        return groups


def _disjoint_features(rewards: np.ndarray, target: Target) -> np.ndarray:
    """:func:`.features` with ``1 - r`` in place of 1, [K, F]; of a reward of 0 or 1 one is 0.

    So a sum of gradients for each of them costs no more than one sum.
    """
    basis = features(rewards, target)
    return np.stack([1 - rewards, rewards], axis=-1) if target.has_baseline else basis


def _tokens(group: Group) -> int:
    """Tokens of a group's sequences."""
    return sum(len(r.prompt.token_ids) + len(r.completion.token_ids) for r in group.rollouts)
