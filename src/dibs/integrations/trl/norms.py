"""Norms of the gradients that a TRL trainer trains with, one a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dibs.integrations.loss_lengths import trained_norms, trl_normalization
from dibs.integrations.trl.config import DIBSConfig
from dibs.model.grad_norms import gradient_norms
from dibs.model.memory import with_smaller_batches
from dibs.model.policy import Policy
from dibs.types import InputError


@dataclass(frozen=True)
class Tokens:
    """The tokens of a prompt and of a completion."""

    context_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


class NormMeter:
    """Measures norms with the trainer's own model, by the method of its config.

    They are of the gradients that the trainer's ``loss_type`` trains with, before advantage and weight:
    ``||grad log pi(y|x)||``, divided by the completion's length where the loss divides by it.
    ``normalization`` says whether it does.

    Raises InputError if the model's weights are divided among devices, and for a ``loss_type`` that is
    not known.
    """

    def __init__(self, trainer: Any, config: DIBSConfig) -> None:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise InputError(
                f"DIBSConfig.grad_norm {config.grad_norm} needs whole weights, which FSDP and DeepSpeed "
                "do not keep; set it to none"
            )
        self.config = config
        self.normalization = trl_normalization(trainer.loss_type)
        self.tokens = config.grad_norm_tokens
        # DistributedDataParallel's hooks expect a backward pass after every forward one.
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.policy = Policy(model, trainer._tokenizer, trainer.temperature)

    def norms(
        self, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], seed: int
    ) -> np.ndarray:
        """Return the norm of each completion, float64 [n].

        Args:
            contexts, completions: tokens of n prompts and of the n completions after them.
            seed: of the sketch.
        """
        pairs = zip(contexts, completions, strict=True)
        sequences = [Tokens(tuple(context), tuple(completion)) for context, completion in pairs]
        method = self.config.grad_norm
        assert method != "none"
        longest = max(len(s.context_ids) + len(s.completion_ids) for s in sequences)
        measured, self.tokens = with_smaller_batches(
            lambda most: gradient_norms(
                self.policy,
                sequences,
                method,
                parameters=self.config.grad_norm_parameters,
                sketch=self.config.grad_norm_sketch,
                max_tokens=most,
                seed=seed,
            ),
            self.tokens,
            longest,
        )
        lengths = np.array([len(sequence.completion_ids) for sequence in sequences])
        return trained_norms(measured.norms, lengths, self.normalization)
