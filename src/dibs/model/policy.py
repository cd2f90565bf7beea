"""The policy: a causal language model that gives log-probabilities of completions and can be saved.

Column ``t`` of every ``[B, T]`` tensor belongs to token ``t`` of the completion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from dibs.model.batching import TokenBatch, TokenSequence, collate, micro_batches
from dibs.model.fitness import eos_of
from dibs.model.forward_pass import completion_hidden_states, completion_logits
from dibs.model.output_head import find_output_head
from dibs.model.packing import PackedBatch, cheapest_batches, pack
from dibs.model.token_logprobs import full_logprobs, token_logprobs
from dibs.model.turn_end import Stops

Batch = TokenBatch | PackedBatch


class Policy:
    """A causal language model with its tokenizer, at one sampling temperature.

    ``log pi`` always means the log-probability at that temperature, since completions are drawn from
    that distribution. ``output_head`` is the model's output layer where its logits are that layer's
    output and no more, else None (see :func:`.find_output_head`). It is found when the policy is made.
    Whoever changes the model afterwards, by hooks, adapters or other layers, makes a new policy or
    calls :meth:`find_output_head`.

    Args:
        mixed: whether products are bfloat16 (see :meth:`autocast`).
        compiled: whether log-probabilities run a compiled decoder.
    """

    stops: Stops = Stops()
    """What ends a completion besides the end-of-sequence tokens."""
    shares_prompts: bool = False
    """Whether :meth:`batches` may compute a prompt once for several completions."""
    holds_prompts: bool = False
    """Whether sampling may hold keys and values of a prompt once; only where it shares prompts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        temperature: float = 1.0,
        *,
        mixed: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.mixed = mixed
        self._compiled = torch.compile(model.get_decoder(), dynamic=True) if compiled else None
        self.device = next(model.parameters()).device
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad if pad is not None else self.eos_ids[0])
        self.find_output_head()

    def find_output_head(self) -> None:
        """Find ``output_head`` again, after the model was changed."""
        with self.autocast():
            self.output_head = find_output_head(self.model)

    @property
    def compiled(self) -> bool:
        """Whether log-probabilities run a compiled decoder."""
        return self._compiled is not None

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a completion: the model's, the tokenizer's, and those of ``stops``."""
        return list(dict.fromkeys([*eos_of(self.model, self.tokenizer), *self.stops.tokens]))

    def frozen_copy(self) -> Policy:
        """A copy of the policy with its weights of now, which does not train: a reference policy."""
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        made = Policy(model, self.tokenizer, self.temperature, mixed=self.mixed)
        made.shares_prompts = self.shares_prompts
        return made

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass: bfloat16 products where ``mixed``, else as the weights."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within, products are as the weights even where ``mixed``."""
        mixed, self.mixed = self.mixed, False
        try:
            yield
        finally:
            self.mixed = mixed

    def collate(self, sequences: Sequence[TokenSequence]) -> TokenBatch:
        """Pad and stack sequences on the policy's device."""
        return collate(sequences, self.pad_id, self.device)

    def micro_batches(
        self, sequences: Sequence[TokenSequence], max_tokens: int
    ) -> Iterator[list[int]]:
        """:func:`.micro_batches` that cost least on the policy's device."""
        return micro_batches(sequences, max_tokens, self.device)

    def batches(
        self, sequences: Sequence[TokenSequence], max_tokens: int
    ) -> Iterator[tuple[list[int], Batch]]:
        """Micro-batches with the indices of their sequences, packed where that is on and costs less."""
        if self.shares_prompts:
            width = self.model.config.get_text_config().hidden_size
            groups, packed = cheapest_batches(sequences, max_tokens, self.device, width)
        else:
            groups, packed = list(self.micro_batches(sequences, max_tokens)), False
        for indices in groups:
            chosen = [sequences[i] for i in indices]
            yield indices, self.pack(chosen) if packed else self.collate(chosen)

    def pack(self, sequences: Sequence[TokenSequence]) -> PackedBatch:
        """Lay sequences out on the policy's device, each distinct prompt once."""
        return pack(sequences, self.pad_id, self.device)

    def hidden_states(self, batch: Batch, decoder: Callable[..., Any] | None = None) -> Tensor:
        """Last hidden states that predict each ``batch.predicted`` token, [..., d], adapters included.

        ``decoder``: runs in place of the model's own, such as a compiled one.
        """
        decoder = self.model.get_decoder() if decoder is None else decoder
        with self.autocast():
            return completion_hidden_states(decoder, batch)

    def logits(self, batch: Batch) -> Tensor:
        """Logits over temperature that predict each ``batch.predicted`` token, float32 [..., V]."""
        with self.autocast():
            logits = completion_logits(self.model, batch)
        return logits.float() / self.temperature

    def logprobs(self, batch: Batch) -> Tensor:
        """``log pi`` of each completion token, float32 [B, T]; 0 on padding."""
        return self.logprobs_and_entropy(batch)[0]

    def logprobs_and_entropy(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """``log pi`` of each completion token, and the entropy of the distribution it was drawn from.

        float32 [B, T] each, 0 on padding. The entropy is in nats and carries no gradient. No [B, T, V]
        tensor is held where there is an ``output_head``.
        """
        if self.output_head is None:
            return self.logprobs_from_logits(batch)
        hidden = self.hidden_states(batch, self._compiled)
        with self.autocast():
            logprobs, entropy = token_logprobs(
                hidden, self.output_head, batch.predicted, self.temperature
            )
        return batch.padded(logprobs), batch.padded(entropy)

    def logprobs_from_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same from the model's own logits, all of them."""
        logprobs, entropy = full_logprobs(self.logits(batch), batch.predicted)
        return batch.padded(logprobs), batch.padded(entropy)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format; with LoRA, its adapters and no model."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path) -> None:
        """Write model and tokenizer, with LoRA's adapters added to the weights, as one whole model.

        Its configuration ties the embeddings to the output layer only where they are still equal.
        """
        weights = dict(self.merged_weights()) if self.has_lora else None
        untied = weights is not None and not self._still_tied(weights)
        self.base_model.save_pretrained(folder, state_dict=weights)  # takes tied weights out
        self.tokenizer.save_pretrained(folder)
        if untied:
            config = copy.deepcopy(self.base_model.config)
            config.tie_word_embeddings = False
            config.save_pretrained(folder)

    def _still_tied(self, weights: dict[str, Tensor]) -> bool:
        """Whether weights that the model has under two names are equal after adapters were added."""
        tied = self.base_model.all_tied_weights_keys
        return all(torch.equal(weights[one], weights[other]) for one, other in tied.items())

    @property
    def base_model(self) -> Any:
        """The model without LoRA's wrapper."""
        return self.model.get_base_model() if self.has_lora else self.model

    @property
    def has_lora(self) -> bool:
        """Whether the model has LoRA's adapters, which are trained in place of its weights."""
        return hasattr(self.model, "peft_config")

    @torch.no_grad()
    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's weights by name, with LoRA's adapters added; the model itself does not change."""
        if not self.has_lora:
            yield from self.model.state_dict().items()
            return
        base = self.base_model
        layers = dict(base.named_modules())
        for name, weight in base.state_dict().items():
            layer, _, kind = name.rpartition(".base_layer.")
            if not layer:
                if ".lora_" not in name:
                    yield name, weight
                continue
            own = f"{layer}.{kind}"
            added = layers[layer].get_delta_weight("default") if kind == "weight" else 0
            yield own, weight + added

    def load(self, folder: Path) -> None:
        """Load weights that :meth:`save` wrote for a policy of the same architecture.

        The model's own loader reads them, since a saved weight may have another name than its parameter.
        """
        if self.has_lora:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"))
            return
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())
