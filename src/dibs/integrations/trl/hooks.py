"""What ``DIBSGRPOTrainer`` overrides and reads of TRL's trainer, which is not TRL's public interface.

A name that TRL changes would switch the plug-in off without a word, or half of it; so the names are
looked up before a run, and a run stops where one was not reached.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

from dibs.integrations.check_methods import missing_method
from dibs.types import InputError

HOOKS = {
    "_generate_and_score_completions": ("inputs",),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate": ("prompts",),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
    ),
    "_compute_loss": ("model", "inputs"),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
}
"""Methods of ``GRPOTrainer`` and the parameters that are relied on, in order."""
ATTRIBUTES = (
    "_logs",
    "_metrics",
    "_pending_extra_logs",
    "_pending_metrics",
    "_tokenizer",
    "aux_loss_enabled",
    "environment_factories",
    "eos_token_ids",
    "importance_sampling_level",
    "loss_type",
    "mask_truncated_completions",
    "max_completion_length",
    "num_generations",
    "reward_weights",
    "rollout_func",
    "temperature",
    "tools",
)
"""Of a trainer that was made."""
ENTRIES = ("advantages", "completion_mask", "num_items_in_batch", "prompt_ids", "prompt_mask")
"""Of a batch of completions."""


def check_hooks(trainer: type) -> None:
    """InputError unless the class has the methods, with their parameters."""
    missing = missing_method(trainer, HOOKS)
    if missing is not None:
        raise untested_version(missing)


def check_attributes(trainer: Any) -> None:
    """InputError unless the trainer has what is read of it."""
    for name in ATTRIBUTES:
        if not hasattr(trainer, name):
            raise untested_version(f"a GRPOTrainer has no {name}")


def check_batch(batch: Mapping[str, Any], rows: int, missed: Collection[str]) -> None:
    """InputError unless the batch has its entries, one advantage a row, and no hook was ``missed``."""
    for name in missed:
        raise untested_version(f"GRPOTrainer drew completions without {name}")
    for name in ENTRIES:
        if name not in batch:
            raise untested_version(f"a batch of GRPOTrainer has no {name}")
    if tuple(batch["advantages"].shape) != (rows,):
        raise untested_version(
            f"GRPOTrainer has advantages of shape {tuple(batch['advantages'].shape)}"
        )


def untested_version(what: str) -> InputError:
    """The error for a TRL that is not the one this was written for."""
    return InputError(
        f"TRL {version('trl')}: {what}, on which DIBSGRPOTrainer relies; install a TRL it was tested "
        "with: pip install 'trl==1.16.0'"
    )
