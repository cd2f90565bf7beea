"""What a run has spent so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from dibs.rollouts.source import DrawCost, Purpose
from dibs.training.update_metrics import UpdateMetrics
from dibs.types import Group, TrainingExample


@dataclass
class Totals:
    """What the run has spent. ``rollouts`` and ``completion_tokens`` include the pilots.

    Of the rollouts that were trained on, ``accepted_rollouts`` were accepted, and ``learned_rollouts``
    had an advantage other than 0.

    The last four belong to Theorem 4 of arXiv 2505.02391, and stay 0 with one update a step. ``delta``
    and ``omega`` estimate Delta and Omega: ``||g||^2`` and the variance of its estimates, summed over
    updates. ``bound_decrease`` is ``(eta / 2) Delta``, the decrease of the loss that the theorem
    promises. ``bound_noise`` is ``(eta^2 / 2 gamma) Omega``, what the noise may take from that decrease,
    at the largest step that the theorem allows, eta = gamma.
    """

    optimizer_updates: int = 0
    rollouts: int = 0
    pilot_rollouts: int = 0
    accepted_rollouts: int = 0
    learned_rollouts: int = 0
    completion_tokens: int = 0
    delta: float = 0.0
    omega: float = 0.0
    bound_decrease: float = 0.0
    bound_noise: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """All totals by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the totals of a run that goes on."""
        for each in fields(self):
            setattr(self, each.name, state[each.name])

    def add_draw(self, cost: DrawCost, purpose: Purpose) -> None:
        """Count completions that were drawn, unless they are for evaluation."""
        if purpose is Purpose.EVALUATION:
            return
        self.rollouts += cost.rollouts
        self.completion_tokens += cost.tokens
        if purpose is Purpose.PILOT:
            self.pilot_rollouts += cost.rollouts

    def add_learning(self, groups: Sequence[Group], examples: Sequence[TrainingExample]) -> None:
        """Count what was accepted and learned from in a step."""
        self.accepted_rollouts += sum(int(group.accepted.sum()) for group in groups)
        self.learned_rollouts += learned(examples)

    def add_updates(self, made: UpdateMetrics) -> None:
        """Count the optimizer updates of a step; eta is the learning rate after the last of them."""
        self.optimizer_updates += made.updates
        if made.gradient_square is not None and made.gradient_variance is not None:
            delta, omega = (
                made.updates * made.gradient_square,
                made.updates * made.gradient_variance,
            )
            self.delta += delta
            self.omega += omega
            self.bound_decrease += made.learning_rate / 2 * delta
            self.bound_noise += made.learning_rate / 2 * omega


def learned(examples: Sequence[TrainingExample]) -> int:
    """Completions that have an advantage other than 0."""
    return sum(example.advantage != 0 for example in examples)
