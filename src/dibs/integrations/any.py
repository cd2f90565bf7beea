"""Per-prompt budgets for any trainer, in three calls a step.

::

    budget = PromptBudget(BudgetConfig(num_generations=8))
    for prompt_ids in batches:
        counts = budget.allocate(prompt_ids)               # how many completions of each prompt
        rewards = ...                                      # draw and judge them: counts[i] each
        advantages, weights = budget.weights(rewards)      # loss = -sum weight * advantage * log pi
        budget.update(prompt_ids, rewards)                 # what they tell of their prompts
        ...                                                # the trainer's own update

Completions of earlier steps decide the counts of later ones, so no pilots are drawn, and since counts
never depend on the completions they are spent on, the gradient stays unbiased. In mode ``pilot`` fresh
completions, which are not trained on, are handed to ``take_pilots`` before each ``allocate`` instead.
``state()`` and ``load_state()`` go into the trainer's checkpoints. ``examples/any_trainer.py`` is a
whole loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dibs import objectives
from dibs.allocate import AllocationProblem, check_allocator, describe, pose, solve
from dibs.config import Section, needs_statistics
from dibs.estimate import SUMS, completion_sums, statistics
from dibs.history import History
from dibs.types import InputError


class BudgetConfig(Section):
    """What a trainer says about its target gradient and its budget; keys as under ``dibs train``."""

    num_generations: int = Field(8, ge=1, description="completions a prompt on average")
    mode: Literal["online", "pilot", "none"] = Field(
        "online",
        description="what decides the counts; online: completions of earlier steps; pilot: fresh ones, "
        "which are thrown away; none: nothing, for uniform counts",
    )
    allocator: str = Field(
        "min_variance",
        description="min_variance, gvm (mode pilot), uniform, or your own function as module:function",
    )
    objective: Literal["log_likelihood", "expected_reward", "grpo"] = Field(
        "grpo", description="target gradient"
    )
    baseline: Literal["none", "mean", "leave_one_out"] = Field(
        "mean", description="subtracted from the rewards of a group"
    )
    estimator: Literal["prompt_mean", "self_normalised", "flat"] = Field(
        "prompt_mean",
        description="prompt_mean: every prompt weighs the same, whatever its count; self_normalised: "
        "log_likelihood over the accepted ones; flat: every completion weighs the same",
    )
    lower: int = Field(0, ge=0, description="fewest completions a prompt")
    upper: int | None = Field(None, ge=1, description="most completions a prompt; null: no limit")
    half_life: float = Field(20.0, gt=0, description="steps after which a completion counts half")
    accept_threshold: float = Field(1.0, description="a completion is accepted at this reward")
    accept_rate_penalty: float = Field(1e-3, ge=0, description="GVM's alpha, for log_likelihood")
    accept_rate_power: float = Field(2.0, ge=1, description="GVM's beta")

    @model_validator(mode="after")
    def _fits(self) -> BudgetConfig:
        try:
            objectives.check_objective(self.objective, self.baseline)
            check_allocator(self.allocator)
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.allocator == "gvm" and self.mode != "pilot":
            raise ValueError(
                "allocator gvm needs pilots of every prompt; set mode to pilot, or choose min_variance"
            )
        if self.mode == "none" and needs_statistics(self.allocator, self.objective, self.estimator):
            raise ValueError(
                f"allocator {self.allocator} with estimator {self.estimator} needs accept rates; set "
                "mode to online or pilot, or choose allocator uniform and another estimator"
            )
        if not self.lower <= self.num_generations <= (self.upper or self.num_generations):
            raise ValueError(
                f"num_generations {self.num_generations} is not between lower {self.lower} and upper "
                f"{self.upper}"
            )
        return self


class PromptBudget:
    """What is known of each prompt, the counts that follow, and the weights that go with them."""

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.history = History(config.half_life)
        self.step = 0
        self.pilots = 0
        self._pilot_sums: np.ndarray | None = None
        self._problem: AllocationProblem | None = None
        self._counts = np.zeros(0, dtype=np.int64)
        self._metrics: dict[str, Any] = {}

    def allocate(self, prompt_ids: Sequence[str], budget: int | None = None) -> np.ndarray:
        """Completions of each prompt of a step, int64 [m].

        Args:
            prompt_ids: anything that names a prompt again when it comes back; one may occur twice.
            budget: their exact sum; default: ``num_generations`` a prompt.

        Raises InputError for a budget that the bounds do not allow, and in mode ``pilot`` without pilots
        of these prompts.
        """
        options = self.config
        names = [str(name) for name in prompt_ids]
        # A prompt that occurs twice is two that are known alike.
        stats = statistics(_numbered(names), self._known(names))
        self._problem = pose(
            stats,
            options.num_generations * len(names) if budget is None else budget,
            lower=options.lower,
            upper=options.upper,
            objective=options.objective,
            baseline=options.baseline,
            accept_rate_penalty=options.accept_rate_penalty,
            accept_rate_power=options.accept_rate_power,
        )
        allocation = solve(self._problem, options.allocator)
        self._counts = allocation.counts
        self._metrics = describe([self._problem], [allocation])
        return self._counts

    def take_pilots(
        self,
        prompt_ids: Sequence[str],
        rewards: Sequence[Sequence[float]],
        *,
        lengths: Sequence[Sequence[int]] | None = None,
        logprobs: Sequence[Sequence[float]] | None = None,
        grad_norms: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Mode ``pilot``: fresh completions that decide the next ``allocate`` and are not trained on.

        Args: as for :meth:`update`, with the prompts in the order in which they are allocated.
        """
        if self.config.mode != "pilot":
            raise InputError(f"pilots are of no use in mode {self.config.mode}; set it to pilot")
        sums = self._sums(prompt_ids, rewards, lengths, logprobs, grad_norms)
        self._pilot_sums = np.reshape(sums, (-1, SUMS))
        self.pilots += sum(map(len, rewards))

    def weights(
        self, rewards: Sequence[Sequence[float]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Advantages and estimator weights of every completion of the step, float64 [n_i] a prompt.

        ``sum_ij weights[i][j] * advantages[i][j] * grad log pi(y_ij)`` estimates the target gradient:
        the weights hold all normalisation. A group of one has advantage 0 under a group baseline.

        Args:
            rewards: of each prompt's completions, as many as came; order as given to ``allocate``.
        """
        if self._problem is None or len(rewards) != len(self._counts):
            raise InputError(
                f"rewards of {len(rewards)} prompts, but {len(self._counts)} allocated"
            )
        signals = [self._signal(np.asarray(group, dtype=np.float64)) for group in rewards]
        return objectives.weigh_signals(
            signals,
            objective=self.config.objective,
            baseline=self.config.baseline,
            estimator=self.config.estimator,
            accept_rates=self._problem.posterior.accept_rate,
        )

    def update(
        self,
        prompt_ids: Sequence[str],
        rewards: Sequence[Sequence[float]],
        *,
        lengths: Sequence[Sequence[int]] | None = None,
        logprobs: Sequence[Sequence[float]] | None = None,
        grad_norms: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Take in a step's completions and go on to the next step.

        Args:
            rewards: of each prompt's completions.
            lengths: in tokens. logprobs: ``ln pi(y|x)``, summed over tokens. grad_norms: ``||grad log pi
                (y|x)||``. Each as ``rewards``; left out, lengths and log-probabilities are unknown, and
                every gradient counts as one of norm 1.
        """
        if self.config.mode == "online":
            taken = self._sums(prompt_ids, rewards, lengths, logprobs, grad_norms)
            for name, sums in zip(prompt_ids, taken, strict=True):
                self.history.take_in(str(name), sums, self.step)
        self.step += 1

    def metrics(self) -> dict[str, float | int | str | None]:
        """Of the last allocation: extreme counts, starved prompts, expected and achievable gain.

        ``pilots``: taken so far, in all steps.
        """
        return {
            "count_sum": int(self._counts.sum()),
            "count_min": int(self._counts.min()) if len(self._counts) else 0,
            "count_max": int(self._counts.max(initial=0)),
            "starved_prompts": int((self._counts == 0).sum()),
            "known_prompts": len(self.history),
            "pilots": self.pilots,
            **self._metrics,
        }

    def state(self) -> dict[str, Any]:
        """Everything learnt, as JSON takes it."""
        return {"step": self.step, "pilots": self.pilots, "history": self.history.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.step, self.pilots = int(state["step"]), int(state["pilots"])
        self.history = History.from_state(state["history"])
        self.history.half_life = self.config.half_life

    def _known(self, names: Sequence[str]) -> np.ndarray:
        """What decides the counts of these prompts, [m, SUMS]. Pilots decide once."""
        if self.config.mode != "pilot":
            return self.history.sums(names, self.step)
        pilots, self._pilot_sums = self._pilot_sums, None
        if pilots is None or len(pilots) != len(names):
            found = 0 if pilots is None else len(pilots)
            raise InputError(f"pilots of {found} prompts, but {len(names)} to allocate")
        return pilots

    def _sums(
        self,
        prompt_ids: Sequence[str],
        rewards: Sequence[Sequence[float]],
        lengths: Sequence[Sequence[int]] | None,
        logprobs: Sequence[Sequence[float]] | None,
        grad_norms: Sequence[Sequence[float]] | None,
    ) -> list[np.ndarray]:
        """Every prompt's completions as :func:`dibs.estimate.completion_sums` has them, [SUMS] each."""
        if len(rewards) != len(prompt_ids):
            raise InputError(f"rewards of {len(rewards)} prompts, but {len(prompt_ids)} prompt ids")
        taken = []
        for i, name in enumerate(prompt_ids):
            values = np.asarray(rewards[i], dtype=np.float64)
            if not np.isfinite(values).all():
                raise InputError(f"prompt {name!r}: a reward is {values[~np.isfinite(values)][0]}")
            accepted = values >= self.config.accept_threshold
            given = [
                _given(numbers, i, name, values, otherwise)
                for numbers, otherwise in ((lengths, 0.0), (logprobs, 0.0), (grad_norms, 1.0))
            ]
            taken.append(completion_sums(accepted, values, *given))
        return taken

    def _signal(self, rewards: np.ndarray) -> np.ndarray:
        if self.config.objective != "log_likelihood":
            return rewards
        return (rewards >= self.config.accept_threshold).astype(np.float64)


def _numbered(names: Sequence[str]) -> list[str]:
    """Names made different: the second x is x#2."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return numbered


def _given(
    numbers: Sequence[Sequence[float]] | None,
    index: int,
    name: str,
    rewards: np.ndarray,
    otherwise: float,
) -> np.ndarray:
    """A prompt's numbers, one a completion, or the same for all where none were given."""
    if numbers is None:
        return np.full(len(rewards), otherwise)
    found = np.asarray(numbers[index], dtype=np.float64)
    if found.shape != rewards.shape:
        raise InputError(f"prompt {name!r}: {len(found)} numbers for {len(rewards)} completions")
    return found
