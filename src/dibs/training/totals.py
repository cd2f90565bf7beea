"""What a run has spent so far."""

from __future__ import annotations

from dataclasses import dataclass

from dibs.training.update_metrics import UpdateMetrics


@dataclass
class Totals:
    """What the run has spent. ``rollouts`` and ``completion_tokens`` include the pilots.

    Of the training rollouts, ``accepted_rollouts`` were accepted and ``learned_rollouts`` had an
    advantage other than 0. ``delta`` and ``omega`` are estimates of Delta and Omega of arXiv 2505.02391,
    Theorem 4: ``||g||^2`` and the variance of its estimates, summed over updates. ``bound_decrease`` is
    ``(eta / 2) Delta``, the decrease of the loss that the theorem promises, and ``bound_noise`` what the
    noise may take from it, ``(eta^2 / 2 gamma) Omega`` at the largest step it allows, eta = gamma. They
    stay 0 with one update a step.
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

    def add_updates(self, made: UpdateMetrics) -> None:
        """Count a step's optimizer updates; eta is the learning rate after the last."""
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
