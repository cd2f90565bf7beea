"""What ``DIBSGRPOTrainer`` overrides and reads of TRL's trainer.

None of it is TRL's public interface. If TRL changed a name, part of the plug-in would stop working and
nothing would fail. So all names are looked up before a run, and a run stops if TRL did not call an
overridden method.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dibs.integrations.check_methods import TrainerHooks

HOOKS = TrainerHooks(
    package="trl",
    title="TRL",
    plug_in="DIBSGRPOTrainer",
    tested="1.16.0",
    methods={
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
    },
)
"""Methods of ``GRPOTrainer``."""
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
"""Attributes of a ``GRPOTrainer`` after its ``__init__``."""
ENTRIES = ("advantages", "completion_mask", "num_items_in_batch", "prompt_ids", "prompt_mask")
"""Keys of a batch of completions."""


def check_attributes(trainer: Any) -> None:
    """Raise InputError unless the trainer has all attributes that the plug-in reads."""
    for name in ATTRIBUTES:
        if not hasattr(trainer, name):
            raise HOOKS.untested_version(f"a GRPOTrainer has no {name}")


def check_batch(batch: Mapping[str, Any], rows: int, missed: Collection[str]) -> None:
    """Raise InputError unless the batch is one that the plug-in can weigh.

    Args:
        batch: must have all :data:`ENTRIES`, and one advantage for each row.
        rows: number of rows of this process.
        missed: overridden methods that TRL did not call; there must be none.
    """
    for name in missed:
        raise HOOKS.untested_version(f"GRPOTrainer drew completions without {name}")
    for name in ENTRIES:
        if name not in batch:
            raise HOOKS.untested_version(f"a batch of GRPOTrainer has no {name}")
    if tuple(batch["advantages"].shape) != (rows,):
        raise HOOKS.untested_version(
            f"GRPOTrainer has advantages of shape {tuple(batch['advantages'].shape)}"
        )
