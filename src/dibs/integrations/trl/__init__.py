"""Per-prompt budgets in TRL: ``DIBSGRPOTrainer(..., dibs=DIBSConfig(...))`` in place of ``GRPOTrainer``.

::

    from dibs.integrations.trl import DIBSConfig, DIBSGRPOTrainer

    trainer = DIBSGRPOTrainer(model=..., reward_funcs=..., args=GRPOConfig(...), train_dataset=...,
                              dibs=DIBSConfig(objective="grpo"))

A generation batch keeps its number of rows. ``dibs.allocation.prompt_budget`` decides how many of them
each prompt gets. ``docs/integrations.md`` lists what each version supports.
"""

from dibs.integrations.requirement import require

# Releases of 1.x after the tested one are accepted, since ``hooks`` checks what they have.
require("trl", "1.16", "2")

from dibs.integrations.trl.config import DIBSConfig  # noqa: E402
from dibs.integrations.trl.trainer import DIBSGRPOTrainer  # noqa: E402

__all__ = ["DIBSConfig", "DIBSGRPOTrainer"]
