"""Whether a TRL trainer's model and tokenizer can be a policy, before anything is drawn from them."""

from __future__ import annotations

from typing import Any

from dibs.model.fitness import check_model
from dibs.types import InputError


def check_policy(trainer: Any) -> None:
    """Raise InputError, in one line, where a trainer's model and tokenizer do not go together.

    See :func:`.check_model`. TRL also needs the end of sequence of the tokenizer itself. Weights that
    are divided among devices are not looked at.
    """
    if trainer._tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, without which TRL cannot tell where a "
            "completion ends; set its eos_token"
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    check_model(f"model {name}", model, trainer._tokenizer)
