"""What counts are worth by measured gradients: some completions decide, the others judge.

Of many completions of each prompt some, drawn anew several times, play the pilots that an allocator
would see. The others judge its counts by the gradient that an estimator makes of whole groups of
those counts (``group_variance``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dibs.allocation.allocators import solve
from dibs.allocation.cross_fit import allocation_problems, cross_fit, undivided
from dibs.allocation.deviations import expected_deviations
from dibs.allocation.group_variance import (
    GroupGradient,
    PromptGradients,
    coefficients,
    shares_of_parts,
)
from dibs.allocation.posterior import Posterior
from dibs.allocation.problem import AllocationProblem, Bounds, Tokens, pose
from dibs.allocation.statistics import no_statistics, pilot_statistics
from dibs.allocation.target import Target
from dibs.config import Config, SelectConfig
from dibs.training.measured_gradients import MeasuredGradients
from dibs.types import Group

DRAWS = 10
"""Times that pilots are drawn from the completions of every prompt."""


@dataclass(frozen=True)
class Decision:
    """What the completions that play the pilots decide of a step.

    ``counts``: of each part of the gradient, [m] each. ``divisors``: accept rates, by which
    ``prompt_mean`` divides, or expected deviations; of each part. ``others``: completions of a prompt
    that enter the baselines of a part only.
    """

    counts: Sequence[np.ndarray]
    divisors: Sequence[np.ndarray]
    others: int = 0


@dataclass(frozen=True)
class Share:
    """The variance and the expected gradient, and those of uniform counts: of each draw, [draws, m]."""

    variance: np.ndarray
    kept: np.ndarray
    uniform_variance: np.ndarray
    uniform_kept: np.ndarray


@dataclass(frozen=True)
class AllocationOutcome:
    """An allocation over the draws.

    ``shares``: by estimator. ``counts``: completions of each prompt, [m]. ``extra``: completions that
    decided the counts and were thrown away, [m]. ``complete``: whether every prompt that has a gradient
    got a completion in every part.
    """

    shares: Mapping[str, Share]
    counts: np.ndarray
    extra: np.ndarray
    complete: bool


@dataclass(frozen=True)
class CountsJudge:
    """Judges counts on measured gradients; ``config`` is that of the measured number of prompts.

    The two parts of a cross-fitted gradient are taken to be independent. They are not quite: the half
    that enters one part is in the baselines of the other.
    """

    config: Config
    measured: MeasuredGradients
    even: AllocationProblem

    @classmethod
    def of(cls, config: Config, measured: MeasuredGradients) -> CountsJudge:
        """For the measured number of prompts."""
        config = scaled(config)
        return cls(config, measured, _reference(config, measured))

    @property
    def target(self) -> Target:
        """The gradient that is estimated."""
        return Target.of(self.config.algorithm)

    @property
    def deciding(self) -> int:
        """Completions of a prompt that decide its counts or its accept rate."""
        return deciding_completions(self.config)

    @property
    def draws(self) -> int:
        """Times that pilots are drawn; once where nothing is decided."""
        return DRAWS if self.deciding else 1

    @property
    def estimators(self) -> list[str]:
        """The configured estimator, and others of the same target that it may be compared with."""
        names: list[str] = [self.config.algorithm.estimator]
        if self.target.fits_accepted:
            known = self.deciding > 0
            names += ["self_normalized", *(["prompt_mean"] if known else []), "order_k"]
        return list(dict.fromkeys(names))

    def _target_of(self, estimator: str) -> Target:
        """The target with the order that an estimator needs."""
        if not self.target.fits_accepted:
            return self.target
        return replace(
            self.target, order=self.config.algorithm.order if estimator == "order_k" else None
        )

    @property
    def uniform(self) -> np.ndarray:
        """Uniform counts, [m]."""
        return solve(self.even, "uniform").counts

    def allocations(self) -> dict[str, AllocationOutcome]:
        """Uniform counts and the configured allocator's."""
        m, mode = len(self.measured.groups), self.config.estimate.mode
        extra = np.full(m, float(self.deciding if mode == "pilot" else 0))
        chosen = self._averaged(extra)
        needed = self.config.weighs_by_statistics
        found = {"uniform": self._uniform(chosen, extra if needed else np.zeros(m))}
        if self.config.allocate.allocator != "uniform":
            found[self.config.allocate.allocator] = chosen
        return found

    def _uniform(self, chosen: AllocationOutcome, extra: np.ndarray) -> AllocationOutcome:
        shares = {
            name: Share(s.uniform_variance, s.uniform_kept, s.uniform_variance, s.uniform_kept)
            for name, s in chosen.shares.items()
        }
        counts = self.uniform
        matters = self.measured.second_moments(self.target) > 0
        complete = bool((counts[matters] > 0).all())
        return AllocationOutcome(shares, counts.astype(np.float64), extra, complete)

    def decision(self, pilots: np.ndarray) -> Decision:
        """What the configured allocator decides by pilots: positions of completions, int [m, pilots]."""
        m, deciding = pilots.shape
        if not deciding:
            return Decision([self.uniform], [np.ones(m)])
        groups = [
            Group(group.prompt, tuple(group.rollouts[j] for j in row))
            for group, row in zip(self.measured.groups, pilots, strict=True)
        ]
        norms = [own[row] for own, row in zip(self.measured.norms, pilots, strict=True)]
        crossed = self.config.estimate.mode == "cross_fit"
        if crossed:
            estimate = cross_fit(groups, norms)
        else:
            prompts = [group.prompt for group in groups]
            estimate = undivided(pilot_statistics(groups, norms), prompts)
        problems = allocation_problems(estimate, self.config)
        return Decision(
            [solve(problem, self.config.allocate.allocator).counts for problem in problems],
            [self._divisors(problem.posterior) for problem in problems],
            deciding // 2 if crossed else 0,
        )

    def _divisors(self, posterior: Posterior) -> np.ndarray:
        if self.target.known_deviation:
            return expected_deviations(posterior, self.target)
        return posterior.accept_rate

    def _averaged(self, extra: np.ndarray) -> AllocationOutcome:
        """Over draws: the first completions of a random order decide, the others judge."""
        m, per_prompt = len(self.measured.groups), len(self.measured.prompts[0].rewards)
        rng = np.random.default_rng(0)
        gradients = {
            name: GroupGradient(target, coefficients(target, name))
            for name, target in ((name, self._target_of(name)) for name in self.estimators)
        }
        draws = self.draws
        judged = {name: np.zeros((4, draws, m)) for name in gradients}
        counted, complete = np.zeros(m), True
        matters = self.measured.second_moments(self.target) > 0
        for draw in range(draws):
            picked = rng.permuted(np.tile(np.arange(per_prompt), (m, 1)), axis=1)
            decision = self.decision(picked[:, : self.deciding])
            judges = [
                prompt.of(row)
                for prompt, row in zip(
                    self.measured.prompts, picked[:, self.deciding :], strict=True
                )
            ]
            for name, gradient in gradients.items():
                judged[name][:, draw] = self._judged(name, gradient, judges, decision)
            counted += np.sum(decision.counts, axis=0)
            complete &= all((counts[matters] > 0).all() for counts in decision.counts)
        shares = {name: Share(*numbers) for name, numbers in judged.items()}
        return AllocationOutcome(shares, counted / draws, extra, complete)

    def _judged(
        self,
        estimator: str,
        gradient: GroupGradient,
        judges: Sequence[PromptGradients],
        decision: Decision,
    ) -> np.ndarray:
        """The four numbers of a :class:`Share`, [4, m]."""
        scales = [
            self._scale(estimator, judges, counts, rates)
            for counts, rates in zip(decision.counts, decision.divisors, strict=True)
        ]
        chosen = shares_of_parts(gradient, judges, decision.counts, scales, decision.others)
        even = [
            shares_of_parts(
                gradient,
                judges,
                [self.uniform],
                [self._scale(estimator, judges, self.uniform, rates)],
            )
            for rates in decision.divisors
        ]
        return np.array([*chosen, *np.mean(even, axis=0)])

    def _scale(
        self,
        estimator: str,
        judges: Sequence[PromptGradients],
        counts: np.ndarray,
        rates: np.ndarray,
    ) -> np.ndarray:
        """What an estimator multiplies the coefficients of each prompt's group by, [m]."""
        divides = self.target.fits_accepted
        if estimator == "flat":
            share = counts / max(counts.sum(), 1)
            pooled = float(share @ [judge.rewards.mean() for judge in judges]) if divides else 1.0
            return share * len(counts) / pooled if pooled > 0 else np.zeros(len(counts))
        given = self.target.known_deviation or (estimator == "prompt_mean" and divides)
        if not given:
            return np.ones(len(counts))
        return np.divide(1.0, rates, out=np.zeros(len(counts)), where=rates > 0)


def deciding_completions(config: Config) -> int:
    """Completions of a prompt that its counts are decided by; online, those of one earlier step."""
    if not config.uses_statistics:
        return 0
    online = config.estimate.mode == "online"
    return config.allocate.num_generations if online else config.estimate.num_pilots


def scaled(config: Config) -> Config:
    """The configuration for a batch of the measured number of prompts, its budget in proportion."""
    wanted = config.variance.prompts or config.train.prompts_per_step
    allocate = config.allocate
    if allocate.budget is not None:
        budget = round(allocate.budget * wanted / config.train.prompts_per_step)
        allocate = allocate.model_copy(update={"budget": budget})
    train = config.train.model_copy(update={"prompts_per_step": wanted})
    fixed = {"train": train, "allocate": allocate, "select": SelectConfig()}
    return config.model_copy(update=fixed)


def _reference(config: Config, measured: MeasuredGradients) -> AllocationProblem:
    """The step's budget and bounds with the true costs, for uniform and for informed counts."""
    one_each = float(measured.tokens.sum())
    tokens = max(config.step_budget(one_each), config.lower * one_each)
    return pose(
        no_statistics([group.prompt for group in measured.groups]),
        Tokens(tokens, measured.tokens) if config.budget is None else config.budget,
        Target.of(config.algorithm),
        bounds=Bounds(config.allocate.lower, config.allocate.upper),
    )
