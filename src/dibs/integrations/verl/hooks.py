"""What ``BudgetTrainer`` overrides and calls of verl's trainer, which is not verl's public interface."""

from __future__ import annotations

from importlib.metadata import version

from dibs.integrations.check_methods import missing_method
from dibs.types import InputError

HOOKS: dict[str, tuple[str, ...]] = {
    "_init_resource_pool_mgr": (),
    "on_init_end": (),
    "_submit_batch_to_rollout": ("batch",),
    "_compute_reward_colocate": ("batch",),
    "_balance_batch": ("batch", "metrics"),
    "_compute_old_log_prob": ("batch", "metrics"),
    "_compute_advantage": ("batch", "metrics"),
    "_load_checkpoint": (),
    "_save_checkpoint": (),
    "fit": ("agent_loop_manager",),
}
"""Methods of ``PPOTrainerSync`` and the parameters that are relied on, in order."""


def check_hooks(trainer: type) -> None:
    """InputError unless the class has the methods, with their parameters."""
    missing = missing_method(trainer, HOOKS)
    if missing is not None:
        raise untested_version(missing)


def untested_version(what: str) -> InputError:
    """The error for a verl that is not the one this was written for."""
    return InputError(
        f"verl {version('verl')}: {what}, on which dibs relies; install a verl it was tested with: pip "
        "install 'verl==0.9.1'"
    )
