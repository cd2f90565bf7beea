"""Per-prompt budgets for any trainer, in three calls a step.

::

    budget = PromptBudget(BudgetConfig(num_generations=8))
    for prompt_ids in batches:
        counts = budget.allocate(prompt_ids)               # how many completions of each prompt
        rewards = ...                                      # draw and judge them: counts[i] each
        advantages, weights = budget.weights(rewards)      # loss = -sum weight * advantage * log pi
        budget.update(prompt_ids, rewards)                 # they decide the counts of later steps
        ...                                                # the trainer's own update

Completions of earlier steps decide the counts of later ones, so no pilots are drawn. The gradient stays
unbiased, because counts never depend on the completions that they are spent on. In mode ``pilot`` fresh
completions decide them instead: pass these to ``take_pilots`` before each ``allocate``, and do not train
on them.
:meth:`PromptBudget.choose` takes a whole pool of candidates in place of a batch, and decides together
which of them get completions, and how many. With ``rounds``, a rule looks at the rewards before it asks
for more::

    counts = budget.allocate(prompt_ids)
    rewards = [[] for _ in prompt_ids]
    while counts.any():
        ...                                            # draw counts[i] more each, append their rewards
        counts = budget.more(rewards)

``state()`` and ``load_state()`` go into the trainer's checkpoints. ``examples/any_trainer.py`` is a
whole loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dibs.allocation.allocators import describe, solve
from dibs.allocation.budget_config import BudgetConfig, check_choice
from dibs.allocation.deviations import expected_deviations
from dibs.allocation.history import History
from dibs.allocation.kept import weigh_kept
from dibs.allocation.known_baselines import known_baselines
from dibs.allocation.memory import Memory
from dibs.allocation.pool import describe_pool, pool_counts
from dibs.allocation.problem import AllocationProblem, Bounds, Penalty, pose
from dibs.allocation.reported import Numbers, checked_rewards, checked_sums, is_accepted
from dibs.allocation.rounds import StepInRounds, named_rules
from dibs.allocation.statistics import SUMS, statistics
from dibs.config import least_group
from dibs.types import InputError


class Chosen(NamedTuple):
    """The m prompts of a step that were chosen among N candidates.

    ``positions``: among the candidates, in order, int64 [m]. ``counts``: completions of each, int64 [m],
    at least 1. ``shares``: what the weights of each prompt's completions add up to, ``n_i / (N e_i)``,
    float64 [m]; :meth:`PromptBudget.weights` has them already.
    """

    positions: np.ndarray
    prompt_ids: list[str]
    counts: np.ndarray
    shares: np.ndarray


class PromptBudget:
    """Keeps statistics of each prompt; decides counts from them, and weighs the completions.

    Args:
        warns: whether to log, once, that ``half_life`` is too short for the data. With several
            processes, set it in one of them.
        length_normalization: ``sequence`` if the loss divides every completion's gradient by the
            completion's own length, as the norms given to :meth:`update` then must be too; ``none`` if
            all completions have the same divisor. Norms of one kind are not mixed with the other.
    """

    def __init__(
        self,
        config: BudgetConfig,
        *,
        warns: bool = True,
        length_normalization: Literal["none", "sequence"] = "none",
    ) -> None:
        self.config = config
        self.memory = Memory(
            config.half_life, length_normalization, warns=warns and config.uses_statistics
        )
        self.step = 0
        self.pilots = 0
        self._pilots: tuple[list[str], np.ndarray] = [], np.zeros((0, SUMS))
        self._names: list[str] = []
        self._problem: AllocationProblem | None = None
        self._counts = np.zeros(0, dtype=np.int64)
        self._shares: np.ndarray | None = None
        self._rounds: StepInRounds | None = None
        self._metrics: dict[str, Any] = {}

    @property
    def history(self) -> History:
        """Sums of each prompt's earlier completions."""
        return self.memory.history

    def allocate(
        self, prompt_ids: Sequence[str], budget: int | None = None, *, wanted: int | None = None
    ) -> np.ndarray:
        """Completions of each prompt of a step, int64 [m]; with ``rounds``, those of the first round.

        Args:
            prompt_ids: anything that names a prompt again when it comes back; one may occur twice.
            budget: their exact sum; default: ``num_generations`` a prompt. Rules for rounds draw as much
                as they need.
            wanted: for a rule that chooses among candidates, how many prompts to train on; default: all.

        Raises InputError for a budget that the bounds do not allow, and in mode ``pilot`` without pilots
        of these prompts. Under ``gvm`` a prompt none of whose pilots could be judged counts as one
        average pilot of the others.
        """
        options = self.config
        names = [str(name) for name in prompt_ids]
        if options.rounds is not None and budget is not None:
            raise InputError(
                f"rounds {options.rounds} draws as much as it needs; leave the budget of {budget} out"
            )
        returning = self.history.returning(names, self.step)
        # A prompt that occurs twice is treated as two prompts with the same statistics.
        stats = statistics(_told_apart(names), self._known(names))
        self._problem = pose(
            stats,
            options.num_generations * len(names) if budget is None else budget,
            options.target,
            bounds=Bounds(options.lower, options.upper),
            penalty=Penalty(options.accept_rate_penalty, options.accept_rate_power),
        )
        self._metrics = {"returning_trials": float(returning.mean()) if len(returning) else None}
        self._names, self._shares = names, None
        rule, _ = named_rules(options)
        if rule is not None:
            self._rounds = StepInRounds(
                rule,
                len(names),
                group=options.num_generations,
                wanted=len(names) if wanted is None else wanted,
                most=options.max_rounds,
            )
            return self.more([[] for _ in names])
        allocation = solve(self._problem, options.allocator)
        self._counts = allocation.counts
        self._metrics |= describe([self._problem], [allocation])
        # A budget of one a prompt leaves less than one at once.
        if len(returning) and returning.mean() < min(1.0, options.num_generations / 2):
            self.memory.warn(
                f"prompts that come back have {returning.mean():.2g} completions left of those drawn "
                "before"
            )
        return self._counts.copy()

    def more(self, rewards: Numbers) -> np.ndarray:
        """With ``rounds``: completions of each prompt to draw next, int64 [m]; all 0 ends the step.

        Args:
            rewards: of all completions of the step so far.

        Raises InputError without ``rounds``, and for rewards of other prompts.
        """
        if self._rounds is None:
            raise InputError("there is no round to go on with; set rounds, and call allocate first")
        judged = checked_rewards(self._names, rewards)
        more = self._rounds.more(judged, self._accepted(judged))
        self._counts = self._rounds.asked
        self._metrics["rounds"] = self._rounds.rounds
        return more.copy()

    def choose(
        self,
        candidate_ids: Sequence[str],
        budget: int,
        *,
        group: int | None = None,
        uniform_share: float = 0.25,
        correct: bool = True,
        seed: int = 0,
    ) -> Chosen:
        """Choose prompts of a pool and the completions of each, at random and without bias.

        Give the whole training set, or a part of it that was drawn evenly. Prompts that lower the
        variance most get more completions, or get some more often; what is chosen rarely weighs more.
        Then draw ``counts[i]`` completions of each chosen prompt, and call :meth:`weights` and
        :meth:`update` with these prompts. The same step with the same seed chooses the same, in every
        process and after a resume.

        Args:
            candidate_ids: of the N prompts of the pool.
            budget: completions in all, a multiple of ``group``.
            group: completions that a prompt gets at a time; default: the fewest that the target
                needs.
            uniform_share: of a uniform count, expected of every prompt at least, in (0, 1]. No
                completion weighs more than 1 / uniform_share times a uniform one.
            correct: whether weights undo the choice. If not, all completions weigh alike, and the
                gradient is no longer that of the pool.

        Raises InputError for a pool, group or budget that cannot be.
        """
        options, names = self.config, list(map(str, candidate_ids))
        size = least_group(options) if group is None else group
        check_choice(options, size, uniform_share)
        if not names:
            raise InputError("no candidates to choose from; give at least one prompt")
        if budget < size or budget % size:
            raise InputError(
                f"the budget of {budget} completions is not a multiple of group {size}; change one"
            )
        if options.mode == "pilot":
            stats, rows = statistics(_told_apart(names), self._known(names)), np.arange(len(names))
        else:
            stats, rows = self.history.pool_statistics(names, self.step)
        problem = pose(
            stats,
            budget,
            options.target.of_groups(size),
            bounds=Bounds(every_prompt=False),
            penalty=Penalty(options.accept_rate_penalty, options.accept_rate_power),
        )
        found = pool_counts(
            problem,
            rows,
            options.allocator,
            group=size,
            uniform_share=uniform_share,
            rng=np.random.default_rng([seed, self.step]),
            correct=correct,
        )
        drawn = np.flatnonzero(found.counts)
        self._names = [names[i] for i in drawn.tolist()]
        self._problem = problem.restricted(rows[drawn], _told_apart(self._names))
        self._counts, self._shares = found.counts[drawn], found.shares[drawn]
        self._metrics = describe_pool([found], options.allocator)
        return Chosen(drawn, list(self._names), self._counts.copy(), self._shares.copy())

    def take_pilots(
        self,
        prompt_ids: Sequence[str],
        rewards: Numbers,
        *,
        lengths: Numbers | None = None,
        logprobs: Numbers | None = None,
        grad_norms: Numbers | None = None,
    ) -> None:
        """Mode ``pilot``: fresh completions that decide the next ``allocate`` and are not trained on.

        Args: as for :meth:`update`, with the prompts in the order in which they are allocated.
        """
        if self.config.mode != "pilot":
            raise InputError(f"pilots are of no use in mode {self.config.mode}; set it to pilot")
        names = [str(name) for name in prompt_ids]
        sums = self._sums(names, rewards, lengths, logprobs, grad_norms)
        self._pilots = names, np.reshape(sums, (-1, SUMS))
        self.pilots += sum(map(len, rewards))

    def weights(self, rewards: Numbers) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Advantages and estimator weights of every completion of the step, float64 [n_i] a prompt.

        ``sum_ij weights[i][j] * advantages[i][j] * grad log pi(y_ij)`` estimates the target gradient:
        the weights hold all normalization. A group of one has advantage 0 under a group baseline. A
        completion that ``keep`` leaves out, or of a prompt that ``rounds`` leaves out, has weight 0.

        Args:
            rewards: of each prompt's completions, as many as came; order as given to ``allocate``.

        Raises InputError for a reward that is not finite, and unless there is one group for each prompt
        of the last ``allocate`` or ``choose``.
        """
        if self._problem is None or len(rewards) != len(self._counts):
            raise InputError(
                f"rewards of {len(rewards)} prompts, but {len(self._counts)} allocated"
            )
        options, target, known = self.config, self.config.target, self._problem.posterior
        judged = checked_rewards(self._names, rewards)
        accepted = self._accepted(judged)
        shares, (_, own) = self._shares, named_rules(options)
        if self._rounds is not None:
            trained = self._rounds.trained(judged, accepted)
            shares = trained / max(int(trained.sum()), 1)
            self._metrics["trained_prompts"] = int(trained.sum())
        return weigh_kept(
            judged,
            accepted,
            own,
            options.keep_count or options.num_generations,
            target,
            options.estimator,
            accept_rates=known.accept_rate,
            deviations=expected_deviations(known, target),
            baselines=known_baselines(known, target),
            bessel=options.deviation == "sample",
            epsilon=options.deviation_epsilon,
            shares=shares,
        )

    def update(
        self,
        prompt_ids: Sequence[str],
        rewards: Numbers,
        *,
        lengths: Numbers | None = None,
        logprobs: Numbers | None = None,
        grad_norms: Numbers | None = None,
    ) -> None:
        """Take in a step's completions and go on to the next step.

        Args:
            rewards: of each prompt's completions.
            lengths: in tokens. logprobs: ``ln pi(y|x)``, summed over tokens. grad_norms: ``||grad log pi
                (y|x)||``, divided by the completion's length where the loss divides by it. Each as
                ``rewards``; left out, lengths and log-probabilities are unknown, and every gradient
                counts as one of norm 1, whatever its length. A norm of 0 is that of a completion
                without a gradient, whose log-probability says nothing.

        Raises InputError for numbers of other prompts or completions, or not finite.
        """
        if self.config.mode == "online":
            names = [str(name) for name in prompt_ids]
            taken = self._sums(names, rewards, lengths, logprobs, grad_norms)
            self.memory.take_in(names, taken, self.step, measured=grad_norms is not None)
        self.step += 1

    def metrics(self) -> dict[str, float | int | str | None]:
        """Of the last allocation: extreme counts, starved prompts, expected and achievable gain.

        ``pilots``: taken so far, in all steps. ``known_prompts``: those of which completions are left
        that count for half a one or more. ``returning_trials``: how many are left, on average, of the
        prompts that were seen before; below 1, earlier completions decide next to nothing. ``rounds``
        and ``trained_prompts``: of a step that a rule draws in rounds.
        """
        return {
            "count_sum": int(self._counts.sum()),
            "count_min": int(self._counts.min()) if len(self._counts) else 0,
            "count_max": int(self._counts.max(initial=0)),
            "starved_prompts": int((self._counts == 0).sum()),
            "known_prompts": self.history.known(self.step),
            "pilots": self.pilots,
            **self._metrics,
        }

    def state(self) -> dict[str, Any]:
        """Everything learned, as JSON takes it."""
        return {
            "step": self.step,
            "pilots": self.pilots,
            **self.memory.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.step, self.pilots = int(state["step"]), int(state["pilots"])
        self.memory.load_state(state)

    def _accepted(self, rewards: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [is_accepted(group, self.config.accept_threshold) for group in rewards]

    def _known(self, names: Sequence[str]) -> np.ndarray:
        """What decides the counts of these prompts, [m, SUMS]. Pilots decide once."""
        if self.config.mode != "pilot":
            return self.history.sums(names, self.step)
        (measured, sums), self._pilots = self._pilots, ([], np.zeros((0, SUMS)))
        if len(measured) != len(names):
            raise InputError(f"pilots of {len(measured)} prompts, but {len(names)} to allocate")
        for pilot, name in zip(measured, names, strict=True):
            if pilot != name:
                raise InputError(
                    f"pilots of prompt {pilot!r} where {name!r} is to be allocated; give both in "
                    "one order"
                )
        return sums

    def _sums(
        self,
        names: Sequence[str],
        rewards: Numbers,
        lengths: Numbers | None,
        logprobs: Numbers | None,
        grad_norms: Numbers | None,
    ) -> list[np.ndarray]:
        reported = {"lengths": lengths, "logprobs": logprobs, "grad_norms": grad_norms}
        return checked_sums(names, rewards, reported, self.config.accept_threshold)


def _told_apart(names: list[str]) -> list[str]:
    """Names made different, by position, where one occurs twice."""
    if len(set(names)) == len(names):
        return names
    return [f"{name} at {i}" for i, name in enumerate(names)]
