"""Makes half the steps of our verl trainer steps of the stock trainer; for verl_overhead.py.

verl imports it in the trainer's process, by ``actor_rollout_ref.model.external_lib``.
"""

from __future__ import annotations

from typing import Any

import cpu_engine  # noqa: F401  the engine and rollout server of the tests
from verl.trainer.ppo.v1 import PPOTrainerSync

from dibs.integrations.verl.trainer import BudgetTrainer


def is_ours(step: int) -> bool:
    """The Thue-Morse order: balanced, and without the period that epochs have."""
    return step.bit_count() % 2 == 1


def _alternate(name: str) -> None:
    ours, stock = getattr(BudgetTrainer, name), getattr(PPOTrainerSync, name)

    def either(self: BudgetTrainer, *args: Any, **kwargs: Any) -> Any:
        chosen = ours if is_ours(self.global_steps) else stock
        return chosen(self, *args, **kwargs)

    setattr(BudgetTrainer, name, either)


for each in ("_submit_batch_to_rollout", "_compute_old_log_prob", "_compute_advantage"):
    _alternate(each)
