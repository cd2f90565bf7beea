"""Prompts one at a time, for trainers that draw equal groups and never speak of a step.

::

    queue = PromptQueue(prompt_ids, group=8)
    while training:
        drawn = queue.draw()                     # of which prompt to sample a group next
        rewards = ...                            # draw and judge queue.group completions of it
        queue.observe(drawn.prompt_id, rewards)  # when they are there; in any order, or never

Prompts are chosen in windows: as many groups at a time, by :meth:`.PromptBudget.choose`, with everything
observed until then. Groups may come back late or not at all, as asynchronous trainers have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dibs.allocation.budget_config import BudgetConfig, check_choice
from dibs.allocation.prompt_budget import PromptBudget
from dibs.allocation.reported import checked_rewards
from dibs.types import InputError


class DrawnPrompt(NamedTuple):
    """A prompt to sample one group of, and what the group weighs over one that was drawn evenly.

    A gradient whose groups are multiplied by ``weight`` stays that of the whole data set; without it,
    prompts that are drawn often count for more.
    """

    prompt_id: str
    weight: float


class PromptQueue:
    """Chooses prompts of a data set by what is known of them, one group at a time.

    Args:
        prompt_ids: of the whole data set, each once.
        config: target gradient and rule; default: that of GRPO with ``half_life`` 20 windows.
        group: completions that the trainer draws of a prompt at a time; default: the configuration's
            ``num_generations``.
        window: groups that are chosen at a time. Fewer let what was observed decide sooner; more spread
            the choice over more prompts.
        uniform_share: of an even share, expected of every prompt at least, in (0, 1].
        seed: of everything random.

    Raises InputError for no prompts, for one that occurs twice, and for what cannot be chosen by.
    """

    def __init__(
        self,
        prompt_ids: Sequence[str],
        config: BudgetConfig | None = None,
        *,
        group: int | None = None,
        window: int = 64,
        uniform_share: float = 0.25,
        seed: int = 0,
    ) -> None:
        self.config = config or BudgetConfig()
        if self.config.mode == "pilot":
            raise InputError(
                "mode pilot draws pilots of a step; a queue has none, so take mode online"
            )
        if self.config.keep is not None:
            raise InputError(
                f"keep {self.config.keep} leaves completions out of a step's weights, which a queue "
                "does not have; leave it out"
            )
        if self.config.advantages == "given":
            raise InputError(
                "advantages given: counts then follow from gradient norms, which a queue does not get; "
                "leave it out"
            )
        self.names = [str(name) for name in prompt_ids]
        if not self.names:
            raise InputError("no prompts to draw from; give at least one")
        self._known = set(self.names)
        if len(self._known) < len(self.names):
            ((twice, _),) = Counter(self.names).most_common(1)
            raise InputError(f"prompt {twice!r} occurs twice; give each prompt a name of its own")
        if window < 1:
            raise InputError(f"window {window} is below 1 group")
        self.group = self.config.num_generations if group is None else group
        check_choice(self.config, self.group, uniform_share)
        self.window, self.uniform_share, self.seed = window, uniform_share, seed
        self.budget = PromptBudget(self.config, warns=False)
        self._ahead: list[DrawnPrompt] = []
        self._observed: list[tuple[str, list[float]]] = []
        self._drawn = 0
        self._windows = 0

    def draw(self) -> DrawnPrompt:
        """The prompt whose group to sample next."""
        if not self._ahead:
            self._choose()
        self._drawn += 1
        return self._ahead.pop(0)

    def observe(self, prompt_id: str, rewards: Sequence[float]) -> None:
        """Take in the rewards of a group that was sampled; it may be smaller or larger than asked for.

        Raises InputError for another prompt, and for a reward that is no finite number.
        """
        if str(prompt_id) not in self._known:
            raise InputError(
                f"prompt {prompt_id!r} is not among the {len(self.names)} of the queue"
            )
        (judged,) = checked_rewards([str(prompt_id)], [rewards])
        self._observed.append((str(prompt_id), judged.tolist()))
        if len(self._observed) >= self.window:
            names, groups = zip(*self._observed, strict=True)
            self.budget.update(names, groups)
            self._observed = []

    def metrics(self) -> dict[str, float]:
        """``drawn``: groups so far; ``known_prompts``: those with completions that still count;
        ``accept_rate``: of the completions observed, each as old as it counts; ``expected_gain`` and
        ``achievable_gain``: of the last choice, 1 where nothing is gained.
        """
        sums = self.budget.history.sums(self.names, self.budget.step).sum(0)
        found = {
            "drawn": self._drawn,
            "known_prompts": self.budget.history.known(self.budget.step),
            "accept_rate": sums[1] / sums[0] if sums[0] else None,
            **{
                name: self.budget.metrics().get(name)
                for name in ("expected_gain", "achievable_gain")
            },
        }
        return {name: float(value) for name, value in found.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """Everything learned and chosen so far, as JSON takes it."""
        return {
            "budget": self.budget.state(),
            "ahead": [list(each) for each in self._ahead],
            "observed": [list(each) for each in self._observed],
            "drawn": self._drawn,
            "windows": self._windows,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave. Prompts that are gone from the data set are left out.

        Raises InputError for anything else; the queue is then as it was.
        """
        budget = PromptBudget(self.config, warns=False)
        try:
            budget.load_state(state["budget"])
            ahead = [DrawnPrompt(name, float(weight)) for name, weight in state["ahead"]]
            observed = [
                (name, [float(each) for each in group]) for name, group in state["observed"]
            ]
            drawn, windows = int(state["drawn"]), int(state["windows"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"no state of a queue of prompts ({type(error).__name__}: {error})"
            ) from None
        self.budget, self._drawn, self._windows = budget, drawn, windows
        self._ahead = [each for each in ahead if each.prompt_id in self._known]
        self._observed = [each for each in observed if each[0] in self._known]

    def _choose(self) -> None:
        """Choose the next window, in an order of its own."""
        rng = np.random.default_rng([self.seed, self._windows, 1])
        # choose() draws by the step of the budget, which several windows may share.
        chosen = self.budget.choose(
            self.names,
            self.window * self.group,
            group=self.group,
            uniform_share=self.uniform_share,
            seed=int(rng.integers(2**31)),
        )
        groups = chosen.counts // self.group
        weights = chosen.shares / groups * self.window
        ahead = [
            DrawnPrompt(name, float(weight))
            for name, weight, times in zip(chosen.prompt_ids, weights, groups, strict=True)
            for _ in range(times)
        ]
        self._ahead = [ahead[i] for i in rng.permutation(len(ahead))]
        self._windows += 1
