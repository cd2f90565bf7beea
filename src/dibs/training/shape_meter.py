"""Which shape a step should have: measured for the configured estimator at equal rollouts.

Of the completions of every measured prompt one half decides, as earlier steps would, and the other half
judges, over several splits. Three ways to make a step are compared: uniform shapes, counts of the
allocator inside each shape, and prompts and counts together (``select.pool``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dibs.allocation.allocators import solve
from dibs.allocation.deviations import expected_deviations
from dibs.allocation.group_variance import GroupGradient, PromptGradients, coefficients
from dibs.allocation.intervals import Interval
from dibs.allocation.pool import expected_of_rows
from dibs.allocation.posterior import expected_tokens
from dibs.allocation.problem import AllocationProblem, Bounds, Penalty, Tokens, pose
from dibs.allocation.shapes import ShapeNoise, noise_ratio, shape_noise
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.allocation.variance import fewer_steps
from dibs.config import Config, least_group
from dibs.training.measured_gradients import MeasuredGradients
from dibs.training.shape_advice import advice, completions_of, recommended
from dibs.types import Group, InputError, PromptStats

_SPLITS = 4


def check_shapes(config: Config) -> None:
    """Raise InputError where shapes cannot be compared, before anything is measured."""
    for key in ("rounds", "keep"):
        name = getattr(config.allocate, key)
        if name is not None:
            raise InputError(
                f"--shapes compares steps that draw once and keep all; leave allocate.{key} {name} "
                "out, or leave --shapes out to see what its own steps are worth"
            )
    if config.algorithm.estimator == "flat":
        raise InputError("shapes cannot be compared with algorithm.estimator flat; choose another")
    if config.budget is None and config.allocate.budget is not None:
        raise InputError(
            "shapes need the completions of the configured one; set allocate.num_generations in place "
            "of allocate.budget"
        )
    n, measured = completions_of(config), config.variance.num_generations
    if 4 * n > measured:
        raise InputError(
            f"a prompt of the configured shape has {n} completions; --shapes takes four times as many "
            f"to measure it, so set variance.num_generations to {4 * n} or more"
        )


def shape_report(
    config: Config,
    measured: MeasuredGradients,
    available: int,
    noise_over_square: float | None = None,
) -> dict[str, Any]:
    """The noise of shapes at the cost of a step, relative to the configured one; intervals are 95%.

    The cost is in completions or, with ``allocate.budget_unit`` tokens, in tokens; then prompts that are
    read count too, as ``allocate.prompt_cost`` says.

    Args:
        available: training prompts; no shape has more.
        noise_over_square: variance of an update's gradient over the square of its mean, for the
            configured shape; infinite where noise drowns the gradient, None where it is not known.
    """
    m, n = config.train.prompts_per_step, completions_of(config)
    meter = _ShapeMeter(config, measured)
    reference = meter.uniform(n)
    most = min(len(measured.prompts[0].rewards) // 4, m * n)  # a group is drawn from half of them
    sizes = [size for size in _sizes(config, most) if meter.prompts(size) <= available]
    rows = [
        _row("uniform", meter.prompts(size), size, meter.uniform(size), reference) for size in sizes
    ]
    if config.uses_statistics or config.algorithm.estimator == "order_k":
        rows += [
            _row("counts", meter.prompts(size), size, meter.counts(size), reference)
            for size in sizes
            if size > 1
        ]
    group = config.group
    rows += [
        _row("pool", meter.prompts(size), size, meter.pool(size), reference)
        for size in dict.fromkeys((group, 2 * group))
        if size <= most
    ]
    best = recommended(rows)
    return {
        "rollouts": m * n,
        "unit": config.allocate.budget_unit,
        "configured": {"prompts": m, "completions": n},
        "estimator": config.algorithm.estimator,
        "objective": config.algorithm.objective,
        "baseline": config.algorithm.baseline,
        "measured_prompts": len(measured.groups),
        "shapes": rows,
        "recommended": best,
        "fewer_steps": None
        if best is None or noise_over_square is None
        else fewer_steps(best["gain"]["value"] or 0.0, noise_over_square),
        "advice": advice(best, config, noise_over_square),
    }


def _row(
    rule: str, prompts: float, completions: int, noise: ShapeNoise, reference: ShapeNoise
) -> dict[str, Any]:
    share = noise.within[0] / noise.variance[0] if noise.variance[0] > 0 else np.nan
    return {
        "rule": rule,
        "prompts": round(prompts),
        "completions": completions,
        "gain": asdict(
            Interval(1.0, 1.0, 1.0) if noise is reference else noise_ratio(reference, noise)
        ),
        "completion_share": float(np.clip(share, 0, 1)) if np.isfinite(share) else None,
    }


def _sizes(config: Config, most: int) -> Iterator[int]:
    """Completions of each prompt that shapes have: powers of two, and those of the configuration."""
    own = completions_of(config)
    for size in sorted({2**k for k in range(12)} | {own}):
        whole = config.budget is None or config.budget % size == 0 or size == own
        if whole and least_group(config.algorithm) <= size <= most:
            yield size


def _costs(config: Config, measured: MeasuredGradients) -> tuple[np.ndarray, np.ndarray]:
    """What writing a completion of each measured prompt costs, and reading the prompt once; [m] each."""
    if config.budget is not None:
        return np.ones(len(measured.groups)), np.zeros(len(measured.groups))
    lengths = np.array([len(group.prompt.token_ids) for group in measured.groups])
    return measured.tokens, config.allocate.prompt_cost * lengths


class _ShapeMeter:
    """Means over splits of what the judging halves say."""

    def __init__(self, config: Config, measured: MeasuredGradients) -> None:
        self.config, self.measured = config, measured
        self.target = Target.of(config.algorithm)
        self.gradient = GroupGradient(
            self.target, coefficients(self.target, config.algorithm.estimator)
        )
        rng, per_prompt = np.random.default_rng(0), len(measured.prompts[0].rewards)
        self.splits = []
        for _ in range(_SPLITS):
            order = rng.permuted(np.tile(np.arange(per_prompt), (len(measured.groups), 1)), axis=1)
            deciding, judging = np.split(order, [per_prompt // 2], axis=1)
            judges = [p.of(row) for p, row in zip(measured.prompts, judging, strict=True)]
            self.splits.append((self._statistics(deciding), judges))
        self._uniform: dict[int, ShapeNoise] = {}
        self.writing, self.reading = _costs(config, measured)

    def prompts(self, size: int, rates: np.ndarray | None = None) -> float:
        """Of a step that costs what the configured one does, with groups of ``size``.

        ``rates``: how often each measured prompt is drawn, on any scale, [m]; None: all alike.
        """
        own = self.reading + completions_of(self.config) * self.writing
        each = self.reading + size * self.writing
        drawn = each.mean() if rates is None else (rates @ each) / rates.sum()
        return float(self.config.train.prompts_per_step * own.mean() / drawn)

    def uniform(self, size: int) -> ShapeNoise:
        """Groups of one size."""
        if size not in self._uniform:
            every = np.full(len(self.measured.groups), size)
            self._uniform[size] = self._noise([every] * _SPLITS, size)
        return self._uniform[size]

    def counts(self, size: int) -> ShapeNoise:
        """Counts of ``min_variance`` that are one size on average."""
        lower = self.target.least_count
        counts = [
            solve(self._problem(stats, size, Bounds(lower)), "min_variance").counts
            for stats, _ in self.splits
        ]
        return self._noise(counts, size)

    def pool(self, size: int) -> ShapeNoise:
        """Prompts drawn in groups of one size, as ``select.pool`` draws them."""
        every, once = np.full(len(self.measured.groups), size), np.ones(len(self.measured.groups))
        share = self.config.select.uniform_share
        rates = [
            expected_of_rows(
                self._problem(stats, 1, Bounds(every_prompt=False), size),
                once,
                "min_variance",
                share,
            )[0]
            for stats, _ in self.splits
        ]
        return self._noise([every] * _SPLITS, size, rates)

    def _problem(
        self, stats: PromptStats, each: int, bounds: Bounds, group: int = 0
    ) -> AllocationProblem:
        """``each`` completions a prompt on average. ``group``: of those that a prompt is read for."""
        options = self.config.allocate
        budget: float | Tokens = each * len(stats)
        if self.config.budget is None:
            cost = expected_tokens(stats, self.config.sampling.max_completion_length)
            cost = cost + (self.reading / group if group else 0.0)
            budget = Tokens(each * float(cost.sum()), cost)
        return pose(
            stats,
            budget,
            self.target.of_groups(group) if group else self.target,
            bounds=bounds,
            penalty=Penalty(options.accept_rate_penalty, options.accept_rate_power),
        )

    def _statistics(self, deciding: np.ndarray) -> PromptStats:
        groups = [
            Group(group.prompt, tuple(group.rollouts[j] for j in row))
            for group, row in zip(self.measured.groups, deciding, strict=True)
        ]
        norms = [own[row] for own, row in zip(self.measured.norms, deciding, strict=True)]
        return pilot_statistics(groups, norms)

    def _noise(
        self,
        counts: Sequence[np.ndarray],
        size: int,
        rates: Sequence[np.ndarray] | None = None,
    ) -> ShapeNoise:
        found = [
            self._of_split(judges, stats, own, size, None if rates is None else rates[i])
            for i, ((stats, judges), own) in enumerate(zip(self.splits, counts, strict=True))
        ]
        return ShapeNoise(
            np.mean([each.variance for each in found], axis=0),
            np.mean([each.within for each in found], axis=0),
            np.mean([each.length for each in found], axis=0),
        )

    def _of_split(
        self,
        judges: Sequence[PromptGradients],
        stats: PromptStats,
        counts: np.ndarray,
        size: int,
        rates: np.ndarray | None,
    ) -> ShapeNoise:
        scale = self._scale(stats)
        pairs = [
            self.gradient.variance_and_kept(judge, int(count))
            for judge, count in zip(judges, counts, strict=True)
        ]
        within, kept = np.array(pairs).T * np.array([scale**2, scale])
        wanted = self.measured.wanted
        share = np.divide(kept, wanted, out=np.zeros(len(kept)), where=wanted > 0)
        return shape_noise(
            within,
            self.measured.own * share**2,
            self.measured.products * np.outer(share, share),
            kept,
            self.prompts(size, rates),
            rates,
        )

    def _scale(self, stats: PromptStats) -> np.ndarray:
        """What the estimator multiplies each prompt's coefficients by, as the deciding half has it."""
        own = self.config.algorithm
        if self.target.known_deviation or (
            self.target.fits_accepted and own.estimator == "prompt_mean"
        ):
            known = self._problem(stats, 1, Bounds(every_prompt=False)).posterior
            if self.target.known_deviation:
                return 1 / expected_deviations(known, self.target)
            return 1 / known.accept_rate
        return np.ones(len(stats))
