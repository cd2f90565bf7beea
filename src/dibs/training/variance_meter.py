"""Measures, on a policy and its prompts, how noisy the gradient is and what counts can do about it.

Many completions of each prompt give its moments; some of them, drawn anew several times, play the pilots
that an allocator would see, and the others tell what its counts are worth. Gradients are over all
trainable parameters, whole or, for large models, as random projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dibs.allocation.allocators import solve
from dibs.allocation.cross_fit import (
    StepEstimate,
    allocation_problems,
    cross_fit,
    undivided,
)
from dibs.allocation.intervals import bootstrap
from dibs.allocation.least_variance import least_variance
from dibs.allocation.problem import AllocationProblem, Bounds, Tokens, pose
from dibs.allocation.statistics import no_statistics, pilot_statistics
from dibs.allocation.target import Target
from dibs.allocation.variance import (
    achievable_gain,
    captured_gain,
    noise_scale,
    ratio_of_sums,
    variance_shares,
)
from dibs.config import Config
from dibs.data.prompts import batches
from dibs.model.gradient_vector import Projection
from dibs.model.policy import Policy
from dibs.rollouts.source import Purpose, RolloutSource
from dibs.training.examples import normalized_example
from dibs.training.losses import PolicyLoss
from dibs.training.rollout_gradients import RolloutGradients
from dibs.training.updater import Updater
from dibs.types import Group, InputError, Prompt

DRAWS = 20
"""Times that pilots are drawn from the completions of every prompt."""
_NUMBERS_HELD = 2**28
"""Of mean gradients, all prompts together: 1 GiB."""


@dataclass(frozen=True)
class MeasuredGradients:
    """K completions of each of m prompts and what their gradients are.

    Below ``s`` is a completion's gradient as it is trained, divided as
    ``algorithm.length_normalization`` says (:class:`.RolloutGradients`). ``norms``: ``||s||`` as the
    allocator's estimates have it, [K] a prompt. ``squares``: ``a^2 ||s||^2`` over all trainable
    parameters, [m, K], where a is the objective's factor at the prompt's own moments. ``products``:
    inner products of the prompts' mean gradients, [m, m]; ``own``: ``||E[a s]||^2``, nearly without
    bias where two completions or more were accepted, [m]. ``tokens``: mean length, [m].
    """

    groups: Sequence[Group]
    norms: Sequence[np.ndarray]
    squares: np.ndarray
    products: np.ndarray
    own: np.ndarray
    tokens: np.ndarray

    def sigma_squared(self, chosen: np.ndarray) -> np.ndarray:
        """Variance of one completion's share from the chosen completions, bool [m, K]; [m]."""
        moment = np.where(chosen, self.squares, 0).sum(1) / chosen.sum(1)
        return (moment - self.own).clip(min=0)


@dataclass(frozen=True)
class AllocationOutcome:
    """An allocation over the draws: shares of the variance, completions and tokens, [m] each.

    ``uniform``: shares of uniform counts for the same draws. ``extra``: completions that decided the
    counts and were thrown away.
    """

    shares: np.ndarray
    uniform: np.ndarray
    counts: np.ndarray
    extra: np.ndarray


@dataclass(frozen=True)
class VarianceMeter:
    """The parts of a run that the measurement uses; ``prompts`` are those of the training set.

    ``on_progress`` is called with what is done, how many prompts of it, and how many there are.
    """

    config: Config
    policy: Policy
    source: RolloutSource
    gradients: RolloutGradients
    prompts: Sequence[Prompt]
    on_progress: Callable[[str, int, int], None] = lambda *_: None


def measure_variance(meter: VarianceMeter) -> dict[str, Any]:
    """Everything that ``dibs variance`` prints, as one object; intervals are 95%.

    Raises InputError where there are too few completions to draw pilots from.
    """
    config = _scaled(meter.config)
    spare = config.variance.num_generations - _deciding_completions(config)
    if spare < 2:
        raise InputError(
            f"variance.num_generations {config.variance.num_generations} leaves {max(spare, 0)} "
            f"completions beside the {_deciding_completions(config)} that play the pilots; raise it"
        )
    prompts = next(batches(meter.prompts, config.train.prompts_per_step, config.seed))
    measured = _measure(meter, config, prompts)
    even = _reference(config, prompts, measured)
    allocations = {"uniform": _fixed_counts(measured, even, solve(even, "uniform").counts)}
    if config.allocate.allocator != "uniform":
        allocations[config.allocate.allocator] = _allocators_counts(measured, config, prompts, even)
    everything = measured.sigma_squared(np.ones(measured.squares.shape, dtype=bool))
    best = least_variance(np.sqrt(everything), even.budget, even.lower, even.upper, even.cost)
    allocations["oracle"] = _fixed_counts(measured, even, best)
    allocations["oracle_held_out"] = _held_out(measured, even)
    return _report(meter.config, measured, allocations, everything, even.cost)


def _scaled(config: Config) -> Config:
    """The configuration for the measured number of prompts, its budget in proportion."""
    wanted = config.variance.prompts or config.train.prompts_per_step
    allocate = config.allocate
    if allocate.budget is not None:
        budget = round(allocate.budget * wanted / config.train.prompts_per_step)
        allocate = allocate.model_copy(update={"budget": budget})
    train = config.train.model_copy(update={"prompts_per_step": wanted})
    return config.model_copy(update={"train": train, "allocate": allocate})


def _deciding_completions(config: Config) -> int:
    """Completions of a prompt that its counts are decided by; online, those of one earlier step."""
    if config.allocate.allocator == "uniform":
        return 0
    online = config.estimate.mode == "online"
    return config.allocate.num_generations if online else config.estimate.num_pilots


def _measure(meter: VarianceMeter, config: Config, prompts: Sequence[Prompt]) -> MeasuredGradients:
    per_prompt, m = config.variance.num_generations, len(prompts)
    groups: list[Group] = []
    at_once = -(-m // 20)
    for start in range(0, m, at_once):
        part = prompts[start : start + at_once]
        drawn, _ = meter.source.draw(
            part, [per_prompt] * len(part), Purpose.METER, 0, failures="reject"
        )
        groups += drawn
        meter.on_progress("sampling", len(groups), m)
    meter.policy.model.eval()
    updater = Updater(meter.policy, PolicyLoss(None, 0.0), config.update, 1)
    project = Projection(updater.parameters, config.seed, _NUMBERS_HELD // (2 * m))
    whole = config.estimate.grad_norm.startswith("exact")
    whole &= config.estimate.grad_norm_parameters == "all"
    norms, squares, halves = [], [], []
    for group in groups:
        (seen,) = meter.gradients.norms([group], 0)
        (full,) = (seen,) if whole else meter.gradients.exact_norms([group])
        norms.append(seen)
        squares.append((_advantages(meter, group) * full) ** 2)
        halves.append(_half_gradients(meter, updater, project, group))
        meter.on_progress("gradients", len(norms), m)
    products, own = _products(torch.stack(halves))
    lengths = np.array([[len(r.completion.token_ids) for r in g.rollouts] for g in groups])
    return MeasuredGradients(groups, norms, np.array(squares), products, own, lengths.mean(1))


def _products(halves: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of the prompts' half gradients [m, 2, D]: inner products of their means, and across halves."""
    m = len(halves)
    products = torch.zeros(m, m, dtype=torch.float64, device=halves.device)
    own = torch.zeros(m, dtype=torch.float64, device=halves.device)
    for part in halves.split(2**16, dim=2):
        exact = part.double()
        means = exact.mean(1)
        products += means @ means.T
        own += (exact[:, 0] * exact[:, 1]).sum(1)
    return products.cpu().numpy(), own.cpu().numpy()


def _advantages(meter: VarianceMeter, group: Group) -> np.ndarray:
    """a(r) of each completion at the group's own moments, [K]."""
    rewards = meter.gradients.target.rewards(group)
    return meter.gradients.advantages(group, float(rewards.mean()), float(rewards.std()))


def _half_gradients(
    meter: VarianceMeter, updater: Updater, project: Projection, group: Group
) -> Tensor:
    """Mean over each half of a group of a completion's gradient times ``a``, [2, D].

    Halves share neither completions nor moments, so products across them have no noise in common. Where
    advantages are relative to the half's own moments, both have their part of the accepted ones:
    otherwise that many are accepted would be noise in common.
    """
    vectors = []
    order = np.arange(len(group.rollouts))
    if not meter.gradients.target.is_absolute:
        order = np.argsort(group.rewards, kind="stable")
    for picked in (order[::2], order[1::2]):
        half = Group(group.prompt, tuple(group.rollouts[i] for i in picked))
        updater.optimizer.zero_grad(set_to_none=True)
        examples = [
            normalized_example(rollout, advantage, 1 / len(picked), meter.config)
            for rollout, advantage in zip(half.rollouts, _advantages(meter, half), strict=True)
            if advantage != 0
        ]
        if examples:
            updater.gradient(examples)
        vectors.append(project())
    updater.optimizer.zero_grad(set_to_none=True)
    return torch.stack(vectors)


def _reference(
    config: Config, prompts: Sequence[Prompt], measured: MeasuredGradients
) -> AllocationProblem:
    """The step's budget and bounds with the true costs, for uniform and for oracle counts."""
    one_each = float(measured.tokens.sum())
    tokens = max(config.step_budget(one_each), config.lower * one_each)
    return pose(
        no_statistics(prompts),
        Tokens(tokens, measured.tokens) if config.budget is None else config.budget,
        Target.of(config.algorithm),
        bounds=Bounds(config.allocate.lower, config.allocate.upper),
    )


def _fixed_counts(
    measured: MeasuredGradients, even: AllocationProblem, counts: np.ndarray
) -> AllocationOutcome:
    """Counts that do not depend on a draw."""
    sigma_squared = measured.sigma_squared(np.ones(measured.squares.shape, dtype=bool))
    uniform = variance_shares(sigma_squared, [solve(even, "uniform").counts])
    nothing = np.zeros(len(counts))
    return AllocationOutcome(
        variance_shares(sigma_squared, [counts]), uniform, counts.astype(np.float64), nothing
    )


def _allocators_counts(
    measured: MeasuredGradients, config: Config, prompts: Sequence[Prompt], even: AllocationProblem
) -> AllocationOutcome:
    """The configured allocator, seeing pilots only; the other completions say what it achieved."""
    seen, mode = _deciding_completions(config), config.estimate.mode

    def decide(picked: np.ndarray) -> list[np.ndarray]:
        pilots = [
            Group(group.prompt, tuple(group.rollouts[j] for j in row[:seen]))
            for group, row in zip(measured.groups, picked, strict=True)
        ]
        norms = [own[row[:seen]] for own, row in zip(measured.norms, picked, strict=True)]
        estimate: StepEstimate = (
            cross_fit(pilots, norms)
            if mode == "cross_fit"
            else undivided(pilot_statistics(pilots, norms), prompts)
        )
        problems = allocation_problems(estimate.parts, config)
        return [solve(problem, config.allocate.allocator).counts for problem in problems]

    extra = np.full(len(prompts), float(seen if mode == "pilot" else 0))
    return _averaged(measured, even, seen, decide, extra)


def _held_out(measured: MeasuredGradients, even: AllocationProblem) -> AllocationOutcome:
    """Counts from one half of the completions as they are, judged by the other half."""
    half = measured.squares.shape[1] // 2

    def decide(picked: np.ndarray) -> list[np.ndarray]:
        sigma = np.sqrt(measured.sigma_squared(_chosen_mask(picked[:, :half], measured)))
        # What half the completions show no variance of still has some.
        sigma = np.maximum(sigma, 1e-150)
        return [least_variance(sigma, even.budget, even.lower, even.upper, even.cost)]

    return _averaged(measured, even, half, decide, np.zeros(len(measured.own)))


def _averaged(
    measured: MeasuredGradients,
    even: AllocationProblem,
    seen: int,
    decide: Callable[[np.ndarray], list[np.ndarray]],
    extra: np.ndarray,
) -> AllocationOutcome:
    """Means over draws: the first ``seen`` of a random order decide counts, the others judge them."""
    m, per_prompt = measured.squares.shape
    rng = np.random.default_rng(0)
    uniform = solve(even, "uniform").counts
    achieved, even_shares, counted = np.zeros((3, m))
    for _ in range(DRAWS):
        picked = rng.permuted(np.tile(np.arange(per_prompt), (m, 1)), axis=1)
        counts = decide(picked)
        judged = measured.sigma_squared(_chosen_mask(picked[:, seen:], measured))
        achieved += variance_shares(judged, counts)
        even_shares += variance_shares(judged, [uniform])
        counted += np.sum(counts, axis=0)
    return AllocationOutcome(achieved / DRAWS, even_shares / DRAWS, counted / DRAWS, extra)


def _chosen_mask(columns: np.ndarray, measured: MeasuredGradients) -> np.ndarray:
    mask = np.zeros(measured.squares.shape, dtype=bool)
    np.put_along_axis(mask, columns, True, axis=1)
    return mask


def _report(
    config: Config,
    measured: MeasuredGradients,
    allocations: dict[str, AllocationOutcome],
    sigma_squared: np.ndarray,
    cost: np.ndarray,
) -> dict[str, Any]:
    m, per_prompt = measured.squares.shape
    even = allocations["uniform"]
    chosen = allocations.get(config.allocate.allocator, even)
    step_rollouts = float(even.counts.sum()) * config.train.prompts_per_step / m
    found = noise_scale(
        even.shares,
        measured.products,
        measured.own,
        float(even.counts.sum()),
        config.train.prompts_per_step,
    )
    return {
        "policy": config.policy.model,
        "objective": config.algorithm.objective,
        "baseline": config.algorithm.baseline,
        "allocator": config.allocate.allocator,
        "mode": config.estimate.mode,
        "seed": config.seed,
        "prompts": m,
        "completions_per_prompt": per_prompt,
        "draws": DRAWS,
        "accept_rate": float(np.mean([group.accepted.mean() for group in measured.groups])),
        "completion_length": float(measured.tokens.mean()),
        "step_prompts": config.train.prompts_per_step,
        "step_rollouts": step_rollouts,
        "update_rollouts": step_rollouts / config.update.updates_per_step,
        "allocations": {
            name: _describe(each, even, measured.tokens) for name, each in allocations.items()
        },
        "achievable_gain": asdict(achievable_gain(sigma_squared, cost)),
        "captured": asdict(
            captured_gain(chosen.shares, chosen.uniform, allocations["oracle"].shares)
        ),
        "gradient_square": asdict(found.square),
        "noise_scale": asdict(found.rollouts),
        "noise_of_completions": asdict(found.completions),
        "noise_of_prompts": asdict(found.prompts),
        "completion_share": asdict(found.completion_share),
    }


def _describe(
    each: AllocationOutcome, even: AllocationOutcome, tokens: np.ndarray
) -> dict[str, Any]:
    m = len(tokens)
    variance = float(each.shares.sum()) / m**2
    spent = each.counts + each.extra
    known = np.isfinite(variance)
    share = each.shares if known else np.full(m, np.nan)

    def at_equal(cost: np.ndarray) -> dict[str, Any]:
        def gain(w: np.ndarray) -> float:
            uniform = (w @ each.uniform) * (w @ (cost * even.counts))
            return float(uniform / ((w @ share) * (w @ (cost * spent))))

        return asdict(bootstrap(gain, m))

    return {
        "variance": variance if known else None,
        "rollouts": float(each.counts.sum()),
        "pilot_rollouts": float(each.extra.sum()),
        "tokens": float(spent @ tokens),
        "variance_per_rollout": variance * float(spent.sum()) if known else None,
        "variance_per_token": variance * float(spent @ tokens) if known else None,
        "gain": asdict(ratio_of_sums(each.uniform, each.shares)),
        "gain_per_rollout": at_equal(np.ones(m)),
        "gain_per_token": at_equal(tokens),
        "starved_prompts": int((each.counts == 0).sum()),
    }
