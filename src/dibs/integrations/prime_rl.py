"""Prompts in prime-rl: a task sampler that chooses by what is known of each task.

::

    # Where the configuration names samplers by path (import_path and kwargs):
    class DIBSSampler(PosteriorSampler, TaskSampler): ...
    # Where it does not, in the orchestrator:
    curriculum.sampler = PosteriorSampler(tasks, group=16)

prime-rl draws groups of one size, out of step with its updates, and weighs all groups alike. So what is
chosen here are tasks, not counts, and those that come often count for more: the gradient is that of
another mix of tasks. ``docs/recipes/prime-rl.md`` names the interfaces that this was written for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.prompt_queue import PromptQueue
from dibs.config.wording import one_line
from dibs.types import InputError


class PosteriorSampler(Iterator[Any]):
    """Task sampler over a finite set of tasks, each with a ``key``.

    It has the methods of prime-rl's ``TaskSampler`` in both of its forms, and needs nothing of prime-rl.

    Args:
        tasks: the task set.
        group: rollouts that prime-rl draws of a task at a time.
        window, uniform_share, seed: see :class:`.PromptQueue`.
        half_life: windows after which a rollout counts half.
        allocator: rule that chooses (docs/rules.md).
        accept_threshold: lowest reward at which a rollout is accepted.

    Raises InputError for tasks without an end, without keys, or with one key twice, and for options
    without a meaning.
    """

    def __init__(
        self,
        tasks: Sequence[Any] | Iterator[Any],
        *,
        group: int = 8,
        window: int = 64,
        half_life: float = 20.0,
        allocator: str = "min_variance",
        uniform_share: float = 0.25,
        accept_threshold: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not isinstance(tasks, Sequence):
            raise InputError("the task set has no end; give one whose tasks come back")
        if any(task.key is None for task in tasks):
            raise InputError("a task has no key, so it cannot be known again")
        self._tasks = {str(task.key): task for task in tasks}
        try:
            config = BudgetConfig(
                num_generations=group,
                half_life=half_life,
                allocator=allocator,
                accept_threshold=accept_threshold,
            )
        except ValidationError as error:
            fault = one_line(error, "PosteriorSampler").replace("num_generations", "group")
            raise InputError(fault) from None
        self.queue = PromptQueue(
            [str(task.key) for task in tasks],
            config,
            window=window,
            uniform_share=uniform_share,
            seed=seed,
        )

    def __next__(self) -> Any:
        """The task to sample next."""
        return self._tasks[self.queue.draw().prompt_id]

    def sample(self) -> Any:
        """The same, as an earlier form of the interface calls it."""
        return next(self)

    def observe(self, group: Any) -> None:
        """Take in a finished group: episodes with traces, or a result with its ``rollouts``.

        Rollouts that failed, or that are not trained on, say nothing of the task, nor does an empty
        group.
        """
        rollouts = getattr(group, "rollouts", None)
        if rollouts is not None:
            key, rewards = group.task_key, _rewards(rollouts)
        else:
            key = group[0].task.key if group else None
            rewards = _rewards(trace for episode in group if episode.ok for trace in episode.traces)
        if rewards:
            self.queue.observe(str(key), rewards)

    def state_dict(self) -> dict[str, Any]:
        """Everything learned and chosen so far, for prime-rl's checkpoints."""
        return self.queue.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.queue.load_state(state_dict)

    def metrics(self) -> dict[str, float]:
        """See :meth:`.PromptQueue.metrics`."""
        return self.queue.metrics()


def _rewards(rollouts: Iterable[Any]) -> list[float]:
    """Rewards of the rollouts that were finished and are trained on."""
    return [
        float(rollout.reward)
        for rollout in rollouts
        if not rollout.has_error and rollout.agent.trainable
    ]
