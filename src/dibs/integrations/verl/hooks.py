"""What ``BudgetTrainer`` overrides and calls of verl's trainer; it is not verl's public interface."""

from __future__ import annotations

from dibs.integrations.check_methods import TrainerHooks

HOOKS = TrainerHooks(
    package="verl",
    title="verl",
    plug_in="dibs",
    tested="0.9.1",
    methods={
        "_init_resource_pool_mgr": (),
        "on_init_end": (),
        "_submit_batch_to_rollout": ("batch",),
        "_step_once": ("metrics", "timing_raw", "sample_batch_size"),
        "_compute_reward_colocate": ("batch",),
        "_balance_batch": ("batch", "metrics"),
        "_compute_old_log_prob": ("batch", "metrics"),
        "_compute_advantage": ("batch", "metrics"),
        "_load_checkpoint": (),
        "_save_checkpoint": (),
        "fit": ("agent_loop_manager",),
    },
)
"""Methods of ``PPOTrainerSync``."""
