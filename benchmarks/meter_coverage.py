"""What `dibs variance` says of simulated prompts whose true numbers are known: bias, and coverage.

48 prompts with 48 completions each, drawn anew in every run. Accept rates range from 0.001 to
0.995, and 15% of the prompts are at 1/48. Norms of gradients are heavy-tailed. Each of three worlds
ties them to the accept rate in another way, with other tails, and none is the model that the meter
fits:

    surprise     mean squared norm p^-0.8 of the class's probability p, prompts uniform about it; Pareto
    logarithmic  (1/2 + ln 1/p)^2, prompts gamma-distributed about it; inverse gamma
    even         the same for all p, prompts gamma-distributed; log-normal

Allocator: min_variance, with 8 pilots of 48 completions and 8 completions a prompt to spend. A
coverage is the share of runs whose 95% interval holds the truth: of gains, that of these very
prompts; of noise, that of all prompts of the world. Truths are enumerated over the number of
accepted completions, for counts that 24 fresh draws of pilots decide. `value` and `truth` are means
over the runs, `bias` is the mean of value / truth - 1.

The last table is one group of self_normalized at p = 1/16: how its variance falls from 8 to 22
completions, for several shares of ||E s||^2 in E ||s||^2 of accepted completions.

    python benchmarks/meter_coverage.py [--runs 40] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binom
from shared import positive

from dibs.allocation.group_variance import GroupGradient, coefficients, features
from dibs.allocation.target import Target
from dibs.config import Config
from dibs.config.load import validated
from dibs.training.counts_judge import CountsJudge
from dibs.training.measured_gradients import MeasuredGradients, measured_gradients
from dibs.training.variance_meter import variance_report
from dibs.types import Completion, Group, Prompt, Rollout

PROMPTS, COMPLETIONS, GENERATIONS, PILOTS, DIMENSIONS = 48, 48, 8, 8, 24
TRUTH_DRAWS = 24
NOISE = ("noise_scale", "completion_share")
WORLDS = ("surprise", "logarithmic", "even")
ESTIMATORS = {
    "self_normalized": ("log_likelihood", "none", "self_normalized"),
    "prompt_mean": ("log_likelihood", "none", "prompt_mean"),
    "leave_one_out": ("expected_reward", "leave_one_out", "prompt_mean"),
    "grpo": ("grpo", "mean", "prompt_mean"),
}


@dataclass(frozen=True)
class World:
    """Prompts whose gradients are known: ``E[s | r] = (r - p) d``, and E||s||^2 of both classes.

    ``rates``: p, [m]. ``slopes``: d, [m, D]. ``accepted``, ``rejected``: ``E||s||^2``, [m].
    """

    kind: str
    rates: np.ndarray
    slopes: np.ndarray
    accepted: np.ndarray
    rejected: np.ndarray
    lengths: np.ndarray

    @classmethod
    def drawn(cls, kind: str, m: int, rng: np.random.Generator) -> World:
        """m prompts of a world."""
        u = rng.random(m)
        rare = np.where(u < 0.1, 10 ** rng.uniform(-3, -2, m), 1 / 48)
        p = np.where(u < 0.25, rare, rng.beta(0.7, 0.9, m).clip(0.01, 0.995))
        if kind == "surprise":
            effect = np.exp(rng.uniform(-0.6, 0.6, (2, m)))
            yes, no = p**-0.8 * effect[0], (1 - p) ** -0.8 * effect[0] * effect[1] ** 0.5
        elif kind == "logarithmic":
            effect = rng.gamma(4, 1 / 4, (2, m))
            yes = (0.5 - np.log(p)) ** 2 * effect[0]
            no = (0.5 - np.log1p(-p)) ** 2 * effect[1]
        else:
            effect = rng.gamma(3, 1 / 3, m)
            yes, no = effect, effect * rng.uniform(0.6, 1.6, m)
        ways = rng.normal(size=(m, DIMENSIONS)) + 1.0
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        share = rng.uniform(0.02, 0.4, m) * np.minimum(yes / (1 - p) ** 2, no / p**2)
        return cls(kind, p, ways * np.sqrt(share)[:, None], yes, no, rng.integers(5, 20, m))

    @property
    def slope_squares(self) -> np.ndarray:
        """``||d||^2``, [m]."""
        return (self.slopes**2).sum(1)

    def completions(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Whether each was accepted, bool [m, count], and its gradient, [m, count, D]."""
        m, p = len(self.rates), self.rates[:, None]
        accepted = rng.random((m, count)) < p
        means = np.where(accepted, 1 - p, -p)
        spread = np.where(accepted, self.accepted[:, None], self.rejected[:, None])
        spread = spread - means**2 * self.slope_squares[:, None]
        ways = rng.normal(size=(m, count, DIMENSIONS))
        ways /= np.linalg.norm(ways, axis=2, keepdims=True)
        radius = np.sqrt(spread * self._tail((m, count), rng))
        return accepted, self.slopes[:, None] * means[..., None] + ways * radius[..., None]

    def _tail(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Factors of mean 1."""
        if self.kind == "surprise":
            return (rng.pareto(2.5, shape) + 1) * 0.6
        if self.kind == "logarithmic":
            return 1.3 / rng.gamma(2.3, 1, shape)
        return np.exp(rng.normal(-0.5, 1, shape))

    def of_group(self, name: str, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Variance of each prompt's gradient, and what multiplies d in its mean, [m] each.

        For ``prompt_mean`` on ``log_likelihood`` both are those of a weight 1/n.
        """
        variance, kept = np.zeros((2, len(counts)))
        for n in np.unique(counts[counts > 0]):
            at = counts == n
            k = np.arange(n + 1.0)
            yes, no = _coefficients(name, k, float(n))
            p = self.rates[at, None]
            chance = binom.pmf(k, n, p)
            along = k * yes * (1 - p) - (n - k) * no * p
            spread = [
                (self.accepted[at] - (1 - self.rates[at]) ** 2 * self.slope_squares[at])[:, None],
                (self.rejected[at] - self.rates[at] ** 2 * self.slope_squares[at])[:, None],
            ]
            noise = k * yes**2 * spread[0] + (n - k) * no**2 * spread[1]
            kept[at] = (chance * along).sum(1)
            signal = (chance * along**2).sum(1) - kept[at] ** 2
            variance[at] = (chance * noise).sum(1) + signal * self.slope_squares[at]
        return variance, kept

    def sigma_squared(self, name: str) -> np.ndarray:
        """Variance of one completion's share of the target's gradient, [m]."""
        p, d2 = self.rates, self.slope_squares
        if name in ("self_normalized", "prompt_mean"):
            return self.accepted / p - (1 - p) ** 2 * d2
        plain = p * (1 - p) ** 2 * self.accepted + p**2 * (1 - p) * self.rejected
        plain -= (p * (1 - p)) ** 2 * d2
        return plain / (p * (1 - p)) if name == "grpo" else plain

    def wanted(self, name: str) -> np.ndarray:
        """What multiplies d in the target's gradient, [m]."""
        variance = self.rates * (1 - self.rates)
        if name == "leave_one_out":
            return variance
        return np.sqrt(variance) if name == "grpo" else 1 - self.rates


def _coefficients(name: str, k: np.ndarray, n: float) -> tuple[np.ndarray, np.ndarray]:
    """Of an accepted and of a rejected completion, where k of n were accepted."""
    nothing = np.zeros(len(k))
    some, not_all = np.maximum(k, 1), np.maximum(n - k, 1)
    both = (k > 0) & (k < n)
    if name == "self_normalized":
        return np.where(k > 0, 1 / some, 0), nothing
    if name == "prompt_mean":
        return nothing + 1 / n, nothing
    if name == "leave_one_out":
        size = n * max(n - 1, 1)
        return both * (n - k) / size, both * -k / size
    return both * np.sqrt(not_all / some) / n, both * -np.sqrt(some / not_all) / n


def configured(name: str) -> Config:
    """The configuration of a row of ``ESTIMATORS``."""
    objective, baseline, estimator = ESTIMATORS[name]
    values = {
        "policy": {"model": "simulated"},
        "data": {"train": "simulated"},
        "algorithm": {"objective": objective, "baseline": baseline, "estimator": estimator},
        "estimate": {"mode": "pilot", "num_pilots": PILOTS},
        "allocate": {"allocator": "min_variance", "num_generations": GENERATIONS},
        "train": {"prompts_per_step": PROMPTS},
        "variance": {"num_generations": COMPLETIONS},
    }
    return validated(values, Config, "benchmark")


def measured(
    world: World, target: Target, count: int, rng: np.random.Generator
) -> MeasuredGradients:
    """Completions of the world's prompts, and what the meter would measure of them."""
    accepted, gradients = world.completions(count, rng)
    groups = []
    for i, (row, length) in enumerate(zip(accepted, world.lengths, strict=True)):
        prompt = Prompt(str(i), "", (1,), "")
        text = Completion((1,) * int(length), "", (-0.3,) * int(length), finished=True)
        of_class = [Rollout(prompt, text, float(r), "", bool(r)) for r in (0, 1)]
        groups.append(Group(prompt, tuple(of_class[int(r)] for r in row)))
    squares = (gradients**2).sum(2)
    basis = features(accepted.astype(np.float64), target)
    sums = torch.tensor(np.einsum("mkf,mkd->mfd", basis, gradients))
    return measured_gradients(target, groups, list(np.sqrt(squares)), list(squares), sums)


@dataclass(frozen=True)
class Truth:
    """Means over fresh pilots, [m]: variances, what multiplies d in the mean, and chosen counts."""

    uniform: np.ndarray
    chosen: np.ndarray
    uniform_kept: np.ndarray
    kept: np.ndarray
    counts: np.ndarray


def true_shares(name: str, world: World, judge: CountsJudge, rng: np.random.Generator) -> Truth:
    """What the counts that fresh pilots decide are worth."""
    uniform = judge.uniform
    even_variance, even_kept = world.of_group(name, uniform)
    total = np.zeros((5, len(uniform)))
    pilots = np.tile(np.arange(PILOTS), (len(uniform), 1))
    for _ in range(TRUTH_DRAWS):
        fresh = measured(world, judge.target, PILOTS, rng)
        decision = CountsJudge(judge.config, fresh, judge.even).decision(pilots)
        counts = decision.counts[0]
        scale = 1 / decision.divisors[0] if name == "prompt_mean" else 1.0
        variance, kept = world.of_group(name, counts)
        square = scale**2
        total += [
            square * even_variance,
            square * variance,
            scale * even_kept,
            scale * kept,
            counts,
        ]
    return Truth(*total / TRUTH_DRAWS)


def true_gains(name: str, world: World, truth: Truth) -> dict[str, float]:
    """What the printed gains and kept shares should be."""
    gain = truth.uniform.sum() / truth.chosen.sum()
    spent, paid = truth.counts + PILOTS, np.full(PROMPTS, GENERATIONS)
    paid += PILOTS if name == "prompt_mean" else 0  # which needs accept rates too
    uniform_kept, kept = truth.uniform_kept.sum(), truth.kept.sum()
    return {
        "gain": gain,
        "gain_per_rollout": gain * paid.sum() / spent.sum(),
        "gain_per_token": gain * (paid @ world.lengths) / (spent @ world.lengths),
        "kept_uniform": uniform_kept / world.wanted(name).sum(),
        "kept": kept / world.wanted(name).sum(),
        "gain_rescaled": gain * (kept / uniform_kept) ** 2,
    }


def true_achievable(name: str, world: World, accepted: np.ndarray) -> float:
    """``1 + CV^2(sigma)`` over the prompts that the meter speaks of."""
    enough = np.ones(len(accepted), dtype=bool)
    if name != "leave_one_out":
        enough &= accepted.sum(1) >= 2
    if name == "grpo":
        enough &= (~accepted).sum(1) >= 2
    square = world.sigma_squared(name)[enough]
    return float(len(square) * square.sum() / np.sqrt(square).sum() ** 2)


def true_noise(worlds: Sequence[World], truths: Sequence[Truth]) -> dict[str, float]:
    """Noise scale and share of completions under uniform counts, by the prompts of all runs."""
    completions = float(np.mean([truth.uniform for truth in truths]))
    means = np.concatenate(
        [t.uniform_kept[:, None] * world.slopes for t, world in zip(truths, worlds, strict=True)]
    )
    square = float((means.mean(0) ** 2).sum())
    prompts = float((means**2).sum(1).mean()) - square
    return {
        "noise_scale": GENERATIONS * completions / square,
        "completion_share": completions / (completions + prompts),
    }


def one_run(name: str, kind: str, run: int) -> tuple[World, Truth, dict[str, Any]]:
    """Truth and printed intervals of one run: {number: [truth, value, low, high]}."""
    config = configured(name)
    rng = np.random.default_rng([run, list(ESTIMATORS).index(name), WORLDS.index(kind)])
    world = World.drawn(kind, PROMPTS, rng)
    drawn = measured(world, Target.of(config.algorithm), COMPLETIONS, rng)
    report = variance_report(config, drawn)
    truth = true_shares(name, world, CountsJudge.of(config, drawn), rng)
    rows = {**report["allocations"]["min_variance"], **report["estimators"][report["estimator"]]}
    found = {key: [true, rows[key]] for key, true in true_gains(name, world, truth).items()}
    achievable = true_achievable(name, world, drawn.accepted)
    found["achievable_gain"] = [achievable, report["achievable_gain"]]
    for key in NOISE:
        found[key] = [None, report[key]]
    return world, truth, found


def cell(name: str, kind: str, runs: Iterable[int]) -> list[dict[str, Any]]:
    """One row for each printed number."""
    done = [one_run(name, kind, run) for run in runs]
    noise = true_noise([each[0] for each in done], [each[1] for each in done])
    rows = []
    for key in done[0][2]:
        pairs = [each[2][key] for each in done]
        truths = np.array([noise[key] if true is None else true for true, _ in pairs])
        values, lows, highs = (
            np.array([found[end] for _, found in pairs], dtype=float)
            for end in ("value", "low", "high")
        )
        known = ~np.isnan(values)
        covered = ~(lows > truths) & ~(highs < truths)
        rows.append(
            {
                "estimator": name,
                "world": kind,
                "number": key,
                "truth": float(truths.mean()),
                "value": float(values[known].mean()),
                "bias": float((values[known] / truths[known]).mean() - 1),
                "median_bias": float(np.median(values[known] / truths[known]) - 1),
                "coverage": float(covered.mean()),
                "runs": len(done),
            }
        )
    return rows


def one_group(prompts: int) -> list[dict[str, float]]:
    """Variance of one self_normalized group of 8 over that of 22, at p = 1/16."""
    rows = []
    target = Target("log_likelihood", "none")
    for share in (0.0, 0.25, 0.5, 0.75):
        ones = np.ones(prompts)
        slopes = np.zeros((prompts, DIMENSIONS))
        slopes[:, 0] = np.sqrt(share) / (1 - 1 / 16)
        world = World("even", ones / 16, slopes, ones, ones, ones.astype(int))
        true = [world.of_group("self_normalized", np.full(prompts, n))[0][0] for n in (8, 22)]
        drawn = measured(world, target, COMPLETIONS, np.random.default_rng(0))
        found = {}
        for name in ("self_normalized", "prompt_mean"):
            gradient = GroupGradient(target, coefficients(target, name))
            sums = [
                sum(gradient.variance_and_kept(prompt, n)[0] for prompt in drawn.prompts)
                for n in (8, 22)
            ]
            found[name] = sums[0] / sums[1]
        rows.append({"share": share, "truth": true[0] / true[1], **found})
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=positive, default=40, help="runs of each cell (default: 40)")
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS), choices=ESTIMATORS)
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    cells = [(name, kind) for name in args.estimators for kind in WORLDS]
    rows = [
        row
        for name, kind in track(cells, "cells", console=Console(stderr=True))
        for row in cell(name, kind, range(args.runs))
    ]
    groups = one_group(10 * args.runs)
    if args.json:
        print(json.dumps({"rows": rows, "one_group": groups}, indent=1))
        return
    console = Console(width=110)
    table = Table("estimator", "world", "number", "truth", "value", "bias", "coverage")
    for row in rows:
        table.add_row(
            *(row[key] for key in ("estimator", "world", "number")),
            *(f"{row[key]:.2f}" for key in ("truth", "value")),
            f"{row['bias']:+.1%}",
            f"{row['coverage']:.0%}",
        )
    console.print(table)
    table = Table("||E s||^2 / E||s||^2", "truth", "meter", "meter of prompt_mean (Lemma 1)")
    for group in groups:
        names = ("share", "truth", "self_normalized", "prompt_mean")
        table.add_row(*(f"{group[key]:.2f}" for key in names))
    console.print(table)


if __name__ == "__main__":
    main()
