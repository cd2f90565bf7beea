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
from dibs.allocation.problem import AllocationProblem, Bounds, Penalty, pose
from dibs.allocation.shapes import ShapeNoise, noise_ratio, shape_noise
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.config import Config, least_group
from dibs.training.measured_gradients import MeasuredGradients
from dibs.types import Group, InputError, PromptStats

_SPLITS = 4
_CLEARLY = 1.1
"""A way is recommended if it is surely so many times less noisy than the configured one."""


def check_shapes(config: Config) -> None:
    """Raise InputError where shapes cannot be compared, before anything is measured."""
    if config.budget is None or config.algorithm.estimator == "flat":
        raise InputError(
            "shapes are compared at equal completions; set allocate.budget_unit to completions, and an "
            "estimator other than flat"
        )
    n, measured = config.budget // config.train.prompts_per_step, config.variance.num_generations
    if 4 * n > measured:
        raise InputError(
            f"a prompt of the configured shape has {n} completions; --shapes takes four times as many "
            f"to measure it, so set variance.num_generations to {4 * n} or more"
        )


def shape_report(config: Config, measured: MeasuredGradients, available: int) -> dict[str, Any]:
    """The noise of shapes at the rollouts of a step, relative to the configured one; intervals are 95%.

    Args:
        available: training prompts; no shape has more.
    """
    assert config.budget is not None
    m, n = config.train.prompts_per_step, config.budget // config.train.prompts_per_step
    most = len(measured.prompts[0].rewards) // 4  # a group is drawn from half of them
    meter = _ShapeMeter(config, measured)
    reference = meter.uniform(n)
    most = len(measured.prompts[0].rewards) // 4  # a group is drawn from half of them
    rows = [
        _row("uniform", config.budget // size, size, meter.uniform(size), reference)
        for size in _sizes(config, n, most, available)
    ]
    if config.uses_statistics or config.algorithm.estimator == "order_k":
        rows += [
            _row("counts", config.budget // size, size, meter.counts(size), reference)
            for size in _sizes(config, n, most, available)
            if size > 1
        ]
    group = config.group
    rows += [
        _row("pool", config.budget // size, size, meter.pool(size), reference)
        for size in dict.fromkeys((group, 2 * group))
        if size <= min(most, config.budget)
    ]
    return {
        "rollouts": config.budget,
        "configured": {"prompts": m, "completions": n},
        "estimator": config.algorithm.estimator,
        "objective": config.algorithm.objective,
        "baseline": config.algorithm.baseline,
        "measured_prompts": len(measured.groups),
        "shapes": rows,
        "advice": advice(rows, m, n),
    }


def advice(rows: Sequence[dict[str, Any]], m: int, n: int) -> str:
    """One sentence: how many prompts, how many completions, which rule, and whether it is worth it."""

    def surely(row: dict[str, Any]) -> float:
        return row["gain"]["low"] or 0.0

    simple = max((row for row in rows if row["rule"] == "uniform"), key=_value)
    best = max(rows, key=_value)
    if surely(best) < _CLEARLY and surely(simple) < _CLEARLY:
        return (
            f"Nothing is clearly less noisy than {m} x {n} at the same rollouts; measure more prompts "
            "(variance.prompts) to be surer."
        )
    # What is simpler is taken where it is nearly as good.
    if surely(simple) >= _CLEARLY and _value(simple) > 0.9 * _value(best):
        best = simple
    gain = best["gain"]
    how = (
        f"{gain['value']:.2g} ({gain['low']:.2g}-{gain['high']:.2g}) times less noisy than {m} x {n} at "
        "the same rollouts"
    )
    if best["rule"] == "uniform":
        keys = (
            f"train.prompts_per_step {best['prompts']} and allocate.num_generations "
            f"{best['completions']}"
        )
        return f"Use {keys}: {how}, with uniform counts."
    if best["rule"] == "counts":
        return (
            f"Use {best['prompts']} prompts with {best['completions']} completions on average and "
            f"allocate.allocator min_variance: {how}."
        )
    return (
        f"Use select.pool all with select.group {best['completions']}, estimate.mode online: {how}."
    )


def _value(row: dict[str, Any]) -> float:
    return row["gain"]["value"] or 0.0


def _row(
    rule: str, prompts: int, completions: int, noise: ShapeNoise, reference: ShapeNoise
) -> dict[str, Any]:
    share = noise.within[0] / noise.variance[0] if noise.variance[0] > 0 else np.nan
    return {
        "rule": rule,
        "prompts": prompts,
        "completions": completions,
        "gain": asdict(
            Interval(1.0, 1.0, 1.0) if noise is reference else noise_ratio(reference, noise)
        ),
        "completion_share": float(np.clip(share, 0, 1)) if np.isfinite(share) else None,
    }


def _sizes(config: Config, own: int, most: int, available: int) -> Iterator[int]:
    """Completions of each prompt that shapes have: powers of two, and those of the configuration."""
    assert config.budget is not None
    powers = {2**k for k in range(12)} | {own}
    for size in sorted(powers):
        whole = config.budget % size == 0 or size == own
        fits = least_group(config.algorithm) <= size <= min(most, config.budget)
        if whole and fits and config.budget // size <= available:
            yield size


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
                self._problem(stats, 1, Bounds(every_prompt=False)), once, "min_variance", share
            )[0]
            for stats, _ in self.splits
        ]
        return self._noise([every] * _SPLITS, size, rates)

    def _problem(self, stats: PromptStats, each: int, bounds: Bounds) -> AllocationProblem:
        options = self.config.allocate
        return pose(
            stats,
            each * len(stats),
            self.target,
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
        assert self.config.budget is not None
        prompts = self.config.budget / size
        found = [
            self._of_split(judges, stats, own, prompts, None if rates is None else rates[i])
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
        prompts: float,
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
            prompts,
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
