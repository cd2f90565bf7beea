"""verl's task runner in a process that knows our trainer."""

from __future__ import annotations

from verl.trainer.main_ppo import TaskRunnerV1

import dibs.integrations.verl.trainer  # noqa: F401  registers the trainer where this class is unpickled


class BudgetTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """The process that holds the trainer, by the class that Ray has wrapped."""
