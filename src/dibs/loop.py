"""THE loop: estimate -> choose -> sample and verify -> weigh -> update -> evaluate.

Departures from the textbook (REINFORCE with a group of n completions a prompt, and one update):

- The number of completions differs from prompt to prompt. A group may have any size, also 0.
- The prompts of a step may be chosen from a pool together with their counts. What is chosen with a small
  probability then weighs more, so that the gradient stays that of the pool.
- The counts are decided by completions that do not enter the gradient whose counts they decide: by
  pilots, by the other half of a cross-fitted step, or by earlier steps. So they add no bias.
- The estimator that turns ragged groups into one gradient is named in the configuration.
- A step makes a fixed number of optimizer updates, whatever the counts.
- A rule may draw a step's completions in rounds until it has enough, and train on some of them. Such
  rules are published; their bias is stated where they are.
- Prompts may be added while the policy learns. A step's gradient is that of the prompts that are there.
- A completion without a verdict is left out of its group rather than counted as wrong.

Departures from the released code of GVM (arXiv 2505.02391): pilots are counted in every total, and the
number of updates does not grow with the counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from dibs.allocation.choice import Choice, choose
from dibs.allocation.cross_fit import (
    StepEstimate,
    assign_rollouts,
    cross_fit,
    missing_counts,
    pooled,
    undivided,
)
from dibs.allocation.history import History
from dibs.allocation.posterior import expected_tokens
from dibs.allocation.statistics import no_statistics, pilot_statistics
from dibs.config import Config
from dibs.data.curriculum import Curriculum
from dibs.data.prompts import PromptSet
from dibs.model.policy import Policy
from dibs.rollouts.scores import score
from dibs.rollouts.source import DrawCost, Purpose, RolloutSource
from dibs.training.examples import weighted_examples
from dibs.training.phases import PhaseTimer
from dibs.training.records import StepRecord, StepSpending, step_record
from dibs.training.rollout_gradients import RolloutGradients
from dibs.training.rounds import draw_in_rounds, left_in
from dibs.training.totals import Totals, learned
from dibs.training.updater import Updater
from dibs.types import Group, NonFiniteError, NoVerdictError, Prompt


@dataclass
class Trainer:
    """The parts of a run, and the loop over them.

    ``curriculum``: what steps draw from. ``upcoming``: batches or pools that are drawn and estimated,
    and not trained on yet. ``cost``: what the step under way has drawn. ``fault``: why the last
    evaluation has no verdict at all; None where it has one.
    """

    config: Config
    policy: Policy
    source: RolloutSource
    updater: Updater
    prompts: PromptSet
    curriculum: Curriculum
    history: History
    gradients: RolloutGradients
    phase: PhaseTimer = field(default_factory=PhaseTimer)
    totals: Totals = field(default_factory=Totals)
    upcoming: list[tuple[Sequence[Prompt], StepEstimate]] = field(default_factory=list)
    cost: DrawCost = field(default_factory=DrawCost)
    fault: str | None = None

    def run(self, first: int = 1) -> Iterator[StepRecord]:
        """Train from step ``first`` to step ``train.steps``, and yield a record after each.

        Raises NonFiniteError, which names the step, when the policy, a loss or a gradient is NaN or
        infinite; a bad gradient is never applied. Raises NoVerdictError when the verifier gives no
        verdict at all in a step, and after the record of a step whose evaluation has none. The trainer
        is then as it was after the last record, so that it can be saved.
        """
        for step in range(first, self.config.train.steps + 1):
            before = replace(self.totals), self.curriculum.state_dict(), list(self.upcoming)
            try:
                self.phase.restart()
                self.cost = DrawCost()
                if not self.upcoming:
                    self.look_ahead(step)
                record = self.step(step, *self.upcoming.pop(0))
            except NonFiniteError as error:
                raise NonFiniteError(f"step {step}: {error}") from None
            except NoVerdictError as error:
                self.totals, drawn, self.upcoming = before
                self.curriculum.load_state_dict(drawn)
                raise NoVerdictError(f"step {step}: {error}") from None
            yield record
            self.require_verdicts(f"the evaluation of step {step}")

    def look_ahead(self, step: int) -> None:
        """Draw and estimate the prompts of the steps up to the next estimate, from ``step`` on."""
        ahead = min(self.config.estimate.interval, self.config.train.steps + 1 - step)
        with self.phase("estimate"):
            drawn = [self.curriculum.draw() for _ in range(ahead)]
            for i, prompts in enumerate(drawn):
                self.upcoming.append((prompts, self.estimate(prompts, step + i)))

    def step(self, step: int, prompts: Sequence[Prompt], estimate: StepEstimate) -> StepRecord:
        """One training step on prompts, or on some of a pool, of which something is known."""
        config = self.config
        with self.phase("allocate"):
            choice = choose(prompts, estimate, config, step)
        with self.phase("sample"):
            choice, groups_of_parts = self.sample(choice, step)
        with self.phase("weigh"):
            problems = choice.problems
            examples = weighted_examples(
                *left_in(groups_of_parts, choice.parts, config), problems, config
            )
            groups = [Group.merged(each) for each in zip(*groups_of_parts, strict=True)]
            self.totals.add_learning(groups, examples)
        from_updates = config.estimate.grad_norm == "update"
        if config.estimate.mode == "online" and not from_updates:
            with self.phase("remember"):
                self.history.add(groups, self.gradients.norms(groups, step), step)
        metrics: dict[str, Any] = {}
        if config.measures_at(step):
            with self.phase("measure"):
                metrics |= self.gradients.gain(groups_of_parts, problems, choice.allocations)
        with self.phase("update"):
            norms = self.gradients.sample_of_updates(groups) if from_updates else None
            updates = self.updater.step(examples, norms)
            self.source.sampler.update_weights()
            self.totals.add_updates(updates)
            metrics |= {key: value for key, value in asdict(updates).items() if key != "updates"}
        if norms is not None:
            with self.phase("remember"):
                found = self.gradients.norms_of_updates(groups, norms)
                self.history.add(groups, found, step)
        held_out: list[Group] = []
        if config.evaluates_at(step):
            with self.phase("evaluate"):
                held_out = self.held_out()
                metrics |= self.scores(held_out)
        metrics |= self.curriculum.observe(groups, held_out)
        metrics["learned"] = learned(examples)
        processes = self.source.processes
        processes.require_same(updates.update_grad_norm, f"the gradient of step {step}")
        spending = StepSpending(self.cost, processes.size)
        record = step_record(step, self.totals, groups, choice, metrics, spending)
        record.metrics.update(self.phase.timings(self.cost.tokens))
        return record

    def sample(self, choice: Choice, step: int) -> tuple[Choice, list[list[Group]]]:
        """The completions of every part of a step, and the choice, which drawing in rounds completes."""
        longest = self.config.sampling.max_completion_length
        costs = expected_tokens(choice.stats, longest)

        def draw(counts: np.ndarray, first: np.ndarray | None = None) -> list[Group]:
            self.phase.turn_to("sample")
            return self.draw(
                choice.prompts,
                counts.tolist(),
                Purpose.TRAINING,
                step,
                first=first,
                costs=costs,
                when_drawn=partial(self.phase.turn_to, "verify"),
            )

        if self.config.allocate.rounds is not None:
            choice, groups = draw_in_rounds(choice, self.config, draw)
            return choice, [groups]
        missing = missing_counts(choice.allocations, choice.parts)
        return choice, assign_rollouts(draw(np.sum(missing, axis=0)), missing, choice.parts)

    def estimate(self, prompts: Sequence[Prompt], step: int) -> StepEstimate:
        """What is known of the prompts: from pilots, or from earlier steps."""
        mode = self.config.estimate.mode
        names = [prompt.prompt_id for prompt in prompts]
        if self.config.chooses and mode in ("none", "online"):
            return pooled(*self.history.pool_statistics(names, step))
        if mode == "none":
            return undivided(no_statistics(prompts), prompts)
        if mode == "online":
            return undivided(self.history.statistics(names, step), prompts)
        counts = [self.config.estimate.num_pilots] * len(prompts)
        groups = self.draw(prompts, counts, Purpose.PILOT, step)
        norms = self.gradients.norms(groups, step)
        if mode == "cross_fit":
            return cross_fit(groups, norms)
        return undivided(pilot_statistics(groups, norms), prompts)

    def draw(
        self,
        prompts: Sequence[Prompt],
        counts: Sequence[int],
        purpose: Purpose,
        step: int,
        **how: Any,
    ) -> list[Group]:
        """Judged completions, counted in the totals; see :meth:`.RolloutSource.draw`."""
        groups, cost = self.source.draw(prompts, counts, purpose, step, **how)
        self.totals.add_draw(cost, purpose)
        if purpose is Purpose.EVALUATION:
            self.fault = cost.fault
            return groups
        if cost.fault is not None:
            raise NoVerdictError(cost.fault)
        self.cost.add(cost)
        return groups

    def require_verdicts(self, what: str) -> None:
        """Raise NoVerdictError where the last evaluation has no verdict at all."""
        if self.fault is not None:
            raise NoVerdictError(f"{what}: {self.fault}")

    def evaluate(self) -> dict[str, Any]:
        """Score the held-out prompts."""
        return self.scores(self.held_out())

    def scores(self, held_out: Sequence[Group]) -> dict[str, Any]:
        """Scores of the held-out prompts, also of those that are too long to be asked."""
        return score(held_out, too_long=self.prompts.too_long).metrics()

    def held_out(self) -> list[Group]:
        """Completions of the held-out prompts, with the same random numbers every time."""
        prompts = self.prompts.eval
        counts = [self.config.evaluate.num_generations] * len(prompts)
        return self.draw(prompts, counts, Purpose.EVALUATION, 0)
