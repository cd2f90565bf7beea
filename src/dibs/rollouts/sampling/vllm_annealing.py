"""An annealed temperature inside vLLM: its interface for logits processors, which its workers load."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from dibs.rollouts.sampling.annealing import Annealing

_KEY = "dibs_annealing"


def annealed(annealing: Annealing) -> dict[str, Any]:
    """``extra_args`` of a request whose temperature falls."""
    return {_KEY: astuple(annealing)}


class AnnealedTemperature(LogitsProcessor):
    """Divides a request's logits by the temperature of its next token, on top of the request's own.

    vLLM calls it after its own temperature and before it draws, and reports the log-probabilities that
    come out (``processed_logprobs``).
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[Annealing, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """A temperature never moves the most likely token."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests to their rows of the batch; vLLM appends to their tokens."""
        process_dict_updates(
            self._rows,
            batch_update,
            lambda params, _, tokens: _annealing(params.extra_args, tokens),
        )

    def apply(self, logits: Tensor) -> Tensor:
        """The logits [rows, vocabulary], divided in place where the temperature falls."""
        for annealing in {annealing for annealing, _ in self._rows.values()}:
            own = {row: tokens for row, (each, tokens) in self._rows.items() if each == annealing}
            places = torch.tensor([len(tokens) for tokens in own.values()])
            divisors = annealing.at(places).to(logits).unsqueeze(1)
            logits[torch.tensor(list(own), device=logits.device)] /= divisors
        return logits


def _annealing(
    extra_args: dict[str, Any] | None, tokens: list[int]
) -> tuple[Annealing, list[int]] | None:
    if not extra_args or _KEY not in extra_args:
        return None
    return Annealing(*extra_args[_KEY]), tokens
