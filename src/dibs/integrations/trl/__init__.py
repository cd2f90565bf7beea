"""Per-prompt budgets in TRL: ``DIBSGRPOTrainer(..., dibs=DIBSConfig(...))`` in place of ``GRPOTrainer``.

::

    from dibs.integrations.trl import DIBSConfig, DIBSGRPOTrainer

    trainer = DIBSGRPOTrainer(model=..., reward_funcs=..., args=GRPOConfig(...), train_dataset=...,
                              dibs=DIBSConfig(objective="grpo"))

Rows of a generation batch stay as many as they were; how many of them each prompt gets is decided by
``dibs.allocation.prompt_budget``. ``docs/integrations.md`` says what works where.
"""

from dibs.integrations.trl.requirement import require_trl

require_trl()

from dibs.integrations.trl.config import DIBSConfig  # noqa: E402
from dibs.integrations.trl.trainer import DIBSGRPOTrainer  # noqa: E402

__all__ = ["DIBSConfig", "DIBSGRPOTrainer"]
