"""THE loop: estimate -> allocate -> sample and verify -> weigh -> update -> evaluate.

Departures from the released GVM code: pilots are counted in every total; the number of optimizer
updates a step is fixed and does not grow with the counts; the estimator that turns ragged groups
into one gradient is explicit; a group may have any size, also 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from dibs.allocation import objectives
from dibs.allocation.allocators import describe, solve
from dibs.allocation.cross_fit import (
    StepEstimate,
    allocation_problems,
    assign_rollouts,
    cross_fit,
    missing_counts,
    undivided,
)
from dibs.allocation.history import History
from dibs.allocation.posterior import expected_tokens
from dibs.allocation.statistics import no_statistics, pilot_statistics
from dibs.config import Config
from dibs.data.prompts import PromptSet, batches
from dibs.model.policy import Policy
from dibs.rollouts.scores import score
from dibs.rollouts.source import EVALUATION, PILOT, TRAINING, DrawCost, RolloutSource
from dibs.training.records import describe_step
from dibs.training.rollout_gradients import RolloutGradients
from dibs.training.totals import Totals
from dibs.training.updater import Updater
from dibs.types import (
    Allocation,
    Group,
    NonFiniteError,
    Prompt,
    PromptStats,
    TrainingExample,
)


@dataclass(frozen=True)
class StepRecord:
    """A finished step with its metrics (keys with ``second`` in their name are timings)."""

    step: int
    metrics: dict[str, Any]
    groups: Sequence[Group]
    stats: PromptStats
    allocation: Allocation


@dataclass
class Trainer:
    """The parts of a run and the loop over them. ``on_phase`` hears each phase as it begins.

    ``drawn``: batches of prompts drawn so far. ``upcoming``: those that were measured ahead.
    """

    config: Config
    policy: Policy
    source: RolloutSource
    updater: Updater
    prompts: PromptSet
    history: History
    gradients: RolloutGradients
    on_phase: Callable[[str], None] = lambda name: None
    totals: Totals = field(default_factory=Totals)
    drawn: int = 0
    upcoming: list[tuple[list[Prompt], StepEstimate]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    current: tuple[str, float] = ("", 0.0)
    spent: DrawCost = field(default_factory=DrawCost)

    def run(self, first: int = 1) -> Iterator[StepRecord]:
        """Train from step ``first`` to step ``train.steps`` and yield a record after each.

        Raises NonFiniteError, naming the step, when the policy, a loss or a gradient is NaN or
        infinite; a bad gradient is never applied.
        """
        config = self.config
        everything = batches(self.prompts.train, config.train.prompts_per_step, config.seed)
        draw = islice(everything, self.drawn, None)
        for step in range(first, config.train.steps + 1):
            try:
                self.seconds.clear()
                self.spent = DrawCost()
                if not self.upcoming:
                    ahead = min(config.estimate.interval, config.train.steps + 1 - step)
                    with self.phase("estimate"):
                        drawn = [next(draw) for _ in range(ahead)]
                        self.drawn += ahead
                        self.upcoming = [
                            (prompts, self.estimate(prompts, step + i))
                            for i, prompts in enumerate(drawn)
                        ]
                record = self.step(step, *self.upcoming.pop(0))
            except NonFiniteError as error:
                raise NonFiniteError(f"step {step}: {error}") from None
            yield record

    def step(self, step: int, prompts: Sequence[Prompt], estimate: StepEstimate) -> StepRecord:
        """One training step on prompts of which something is known."""
        with self.phase("allocate"):
            problems = allocation_problems(estimate.parts, self.config)
            allocations = [solve(each, self.config.allocate.allocator) for each in problems]
        with self.phase("sample"):
            missing = missing_counts(allocations, estimate.parts)
            costs = expected_tokens(estimate.stats, self.config.sampling.max_completion_length)
            counts = np.sum(missing, axis=0).tolist()
            fresh = self.rollouts(
                prompts,
                counts,
                TRAINING,
                step,
                costs=costs,
                when_drawn=lambda: self.turn_to("verify"),
            )
            streams = assign_rollouts(fresh, missing, estimate.parts)
        with self.phase("weigh"):
            examples = [
                example
                for groups, problem, stream in zip(streams, problems, estimate.parts, strict=True)
                for example in self.weigh(
                    groups, problem.posterior.accept_rate, stream.baseline_only, 1 / len(streams)
                )
            ]
        groups = [Group.merged(parts) for parts in zip(*streams, strict=True)]
        if self.config.estimate.mode == "online":
            with self.phase("remember"):
                self.history.add(groups, self.gradients.norms(groups, step), step)
        metrics: dict[str, Any] = {}
        if self.measurement_is_due(step):
            with self.phase("measure"):
                metrics |= self.gradients.gain(streams, problems)
        with self.phase("update"):
            metrics |= self.update(examples)
            self.source.sampler.update_weights()
        if self.evaluation_is_due(step):
            with self.phase("evaluate"):
                metrics |= self.evaluate()

        self.totals.accepted_rollouts += sum(int(group.accepted.sum()) for group in groups)
        metrics["learned"] = sum(example.advantage != 0 for example in examples)
        self.totals.learned_rollouts += metrics["learned"]
        allocation = Allocation(
            [prompt.prompt_id for prompt in prompts],
            np.sum([each.counts for each in allocations], axis=0),
            self.config.allocate.allocator,
        )
        metrics |= describe_step(groups, estimate.stats, allocation)
        metrics |= describe(problems, allocations)
        self.source.processes.require_same(
            metrics["update_grad_norm"], f"the gradient of step {step}"
        )
        metrics["missing_completions"] = self.spent.missing
        metrics["token_imbalance"] = self.spent.imbalance(self.source.processes.size)
        return StepRecord(
            step,
            {"step": step, **asdict(self.totals), **metrics, **self.timings()},
            groups,
            estimate.stats,
            allocation,
        )

    def estimate(self, prompts: Sequence[Prompt], step: int) -> StepEstimate:
        """What is known of the prompts: from pilots or from earlier steps."""
        mode = self.config.estimate.mode
        if mode == "none":
            return undivided(no_statistics(prompts), prompts)
        if mode == "online":
            known = self.history.statistics([prompt.prompt_id for prompt in prompts], step)
            return undivided(known, prompts)
        counts = [self.config.estimate.num_pilots] * len(prompts)
        before = self.totals.rollouts
        groups = self.rollouts(prompts, counts, PILOT, step)
        self.totals.pilot_rollouts += self.totals.rollouts - before
        norms = self.gradients.norms(groups, step)
        if mode == "cross_fit":
            return cross_fit(groups, norms)
        return undivided(pilot_statistics(groups, norms), prompts)

    def rollouts(
        self, prompts: Sequence[Prompt], counts: Sequence[int], stream: int, step: int, **how: Any
    ) -> list[Group]:
        """Completions with their rewards, counted unless they are for evaluation.

        See :meth:`dibs.rollouts.source.RolloutSource.draw`.
        """
        groups, spent = self.source.draw(prompts, counts, stream, step, **how)
        if stream != EVALUATION:
            self.totals.rollouts += spent.rollouts
            self.totals.completion_tokens += spent.tokens
            self.spent.add(spent)
        return groups

    def weigh(
        self,
        groups: Sequence[Group],
        accept_rates: np.ndarray,
        beside: Sequence[Group] | None = None,
        share: float = 1.0,
    ) -> list[TrainingExample]:
        """Advantage and estimator weight of every rollout.

        ``beside``: completions that enter baselines only; ``share``: of the stream in the gradient.
        """
        algorithm = self.config.algorithm
        advantages, weights = objectives.weigh(
            groups,
            objective=algorithm.objective,
            baseline=algorithm.baseline,
            estimator=algorithm.estimator,
            accept_rates=accept_rates,
            beside=beside,
        )
        divisor = self.gradients.length_divisor
        return [
            rollout.example(advantage, share * weight / divisor(rollout))
            for group, *shares in zip(groups, advantages, weights, strict=True)
            for rollout, advantage, weight in zip(group.rollouts, *shares, strict=True)
        ]

    def update(self, examples: Sequence[TrainingExample]) -> dict[str, Any]:
        """The step's optimizer updates."""
        made = self.updater.step(examples)
        self.totals.add_updates(made)
        return {name: value for name, value in asdict(made).items() if name != "updates"}

    def measurement_is_due(self, step: int) -> bool:
        """Every ``variance.interval`` steps; uniform counts gain nothing over themselves."""
        interval = self.config.variance.interval
        return interval > 0 and step % interval == 0 and self.config.allocate.allocator != "uniform"

    def evaluation_is_due(self, step: int) -> bool:
        """Every ``evaluate.interval`` steps, and after the last."""
        interval = self.config.evaluate.interval
        return step == self.config.train.steps or (interval > 0 and step % interval == 0)

    def evaluate(self) -> dict[str, Any]:
        """Score the held-out prompts, with the same random numbers every time."""
        prompts = self.prompts.eval
        counts = [self.config.evaluate.num_generations] * len(prompts)
        return score(self.rollouts(prompts, counts, EVALUATION, 0)).metrics()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and time it, and those that it turns to."""
        self._begin(name)
        yield
        self._end()

    def turn_to(self, name: str) -> None:
        """The current phase is over and another begins."""
        self._end()
        self._begin(name)

    def _begin(self, name: str) -> None:
        self.on_phase(name)
        self.current = (name, time.perf_counter())

    def _end(self) -> None:
        name, started = self.current
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def timings(self) -> dict[str, float]:
        """Seconds of each phase of the step, and tokens/s of sampling (pilots included)."""
        sampling = self.seconds.get("estimate", 0.0) + self.seconds["sample"]
        return {
            **{f"{name}_seconds": spent for name, spent in self.seconds.items()},
            "step_seconds": sum(self.seconds.values()),
            "tokens_per_second": self.spent.tokens / sampling if sampling > 0 else 0.0,
        }
