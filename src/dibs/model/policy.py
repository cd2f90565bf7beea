"""The policy: load a causal language model, give log-probabilities of completions, save.

Sequences of a batch are padded so that completions align: contexts on the left, completions on the
right. Column ``t`` of every ``[B, T]`` tensor is token ``t`` of the completion, and the model only
computes logits for those columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
)

from dibs.model.batching import (
    _PASS_COST,
    _PASS_COST_ON_DEVICE,
    TokenBatch,
    TokenSequence,
    micro_batches,
)
from dibs.model.token_logprobs import full_logprobs, token_logprobs


class Policy:
    """A causal language model with its tokenizer, at one sampling temperature.

    ``log pi`` everywhere means the log-probability at that temperature, since that is the
    distribution completions are drawn from. ``mixed``: see :meth:`arithmetic`. ``compiled``: updates run
    a compiled model.
    """

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
        self._head: nn.Linear | None = None
        self._looked_for_head = False
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad if pad is not None else self.eos_ids[0])

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a completion: the generation config's, and the tokenizer's."""
        declared = self.model.generation_config.eos_token_id
        ids = [] if declared is None else [declared] if isinstance(declared, int) else declared
        own = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*ids, *([] if own is None else [own])]))

    def frozen_copy(self) -> Policy:
        """The policy as it is now, for a reference that does not train."""
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        return Policy(model, self.tokenizer, self.temperature, mixed=self.mixed)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around every forward pass: with policy.dtype mixed, products are bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Meanwhile, float32 products also where policy.dtype is mixed."""
        mixed, self.mixed = self.mixed, False
        try:
            yield
        finally:
            self.mixed = mixed

    def collate(self, sequences: Sequence[TokenSequence]) -> TokenBatch:
        """Pad and stack sequences on the policy's device."""
        contexts = max(len(s.context_ids) for s in sequences)
        length = max(1, *(len(s.completion_ids) for s in sequences))
        ids = torch.full((len(sequences), contexts + length), self.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, s in enumerate(sequences):
            start, end = contexts - len(s.context_ids), contexts + len(s.completion_ids)
            ids[row, start:end] = torch.tensor([*s.context_ids, *s.completion_ids])
            mask[row, start:end] = True
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return TokenBatch(
            ids, mask.long(), positions, ids[:, contexts:], mask[:, contexts:].contiguous()
        )

    def hidden_states(self, batch: TokenBatch, decoder: Callable[..., Any] | None = None) -> Tensor:
        """Last hidden states that predict each completion token, [B, T, d]."""
        # That of PEFT too, adapters included.
        base = self.model.get_decoder() if decoder is None else decoder
        with self.autocast():
            hidden: Tensor = base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
        return hidden[:, -batch.completion_ids.shape[1] - 1 : -1]

    def logits(self, batch: TokenBatch) -> Tensor:
        """Logits over temperature that predict each completion token, float32 [B, T, V]."""
        length = batch.completion_ids.shape[1]
        with self.autocast():
            logits: Tensor = self.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=length + 1,
            ).logits[:, -length - 1 : -1]
        return logits.float() / self.temperature

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """``log pi`` of each completion token, float32 [B, T]; 0 on padding."""
        return self.logprobs_and_entropy(batch)[0]

    def logprobs_and_entropy(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """``log pi`` of each completion token, and the entropy of the distribution it was drawn from.

        float32 [B, T] each, 0 on padding; the entropy, in nats, carries no gradient. No [B, T, V] tensor
        is held where the logits are a plain output layer's.
        """
        if not self._looked_for_head:
            self.plain_output_layer(batch)
        if self._head is None:
            return self.logprobs_from_logits(batch)
        hidden = self.hidden_states(batch, self._compiled)
        with self.autocast():
            scores = token_logprobs(hidden, self._head, batch.completion_ids, self.temperature)
        return _masked(batch, scores)

    def logprobs_from_logits(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The same from the model's own logits, all [B, T, V] of them."""
        return _masked(batch, full_logprobs(self.logits(batch), batch.completion_ids))

    def plain_output_layer(self, batch: TokenBatch) -> nn.Linear | None:
        """The output layer, if the model's logits are ``W h`` of its last hidden states and no more.

        It is looked for anew, on one sequence of the batch; ``logprobs`` relies on what was found last.
        """
        self._head, self._looked_for_head = self._find_output_layer(batch.first()), True
        return self._head

    @torch.no_grad()
    def _find_output_layer(self, batch: TokenBatch) -> nn.Linear | None:
        """Random numbers in place of the layer's output must come back as the logits, unchanged."""
        model, layer = self.model, self.model.get_output_embeddings()
        if type(layer) is not nn.Linear or not isinstance(layer.weight, nn.Parameter):
            return None
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            return None
        known = {id(p) for part in (model.get_decoder(), layer) for p in part.parameters()}
        if any(p.requires_grad and id(p) not in known for p in model.parameters()):
            return None
        seen: dict[str, Tensor] = {}

        def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            numbers = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * 50
            seen["input"], seen["output"] = inputs[0], numbers.to(output)
            return seen["output"]

        with in_evaluation_mode(model):
            handle = layer.register_forward_hook(replace)
            try:
                logits = self.logits(batch)
            finally:
                handle.remove()
            if not seen:
                return None
            hidden = self.hidden_states(batch)
        columns = slice(-logits.shape[1] - 1, -1)
        same_input = torch.allclose(seen["input"][:, columns], hidden, rtol=1e-2, equal_nan=True)
        unchanged = torch.equal(seen["output"][:, columns].float() / self.temperature, logits)
        return layer if same_input and unchanged else None

    def micro_batches(
        self, sequences: Sequence[TokenSequence], max_tokens: int
    ) -> Iterator[list[int]]:
        """:func:`micro_batches` as this policy's device likes them."""
        cost = _PASS_COST_ON_DEVICE if self.device.type == "cuda" else _PASS_COST
        return micro_batches(sequences, max_tokens, cost)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format; of LoRA the adapters only."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path) -> None:
        """The same with LoRA's adapters added to the weights, so that nothing else is needed."""
        weights = dict(self.merged_weights()) if self.has_lora else None
        self.base_model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)

    @property
    def base_model(self) -> Any:
        """The model without LoRA's wrapper."""
        return self.model.get_base_model() if self.has_lora else self.model

    @property
    def has_lora(self) -> bool:
        """Whether LoRA's adapters are trained in place of the weights."""
        return hasattr(self.model, "peft_config")

    @torch.no_grad()
    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's own weights by name, with LoRA's adapters added; the model stays as it is."""
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
        """Take over the weights that :meth:`save` wrote of a policy of the same architecture.

        The model's own loader reads them: what it writes need not be named as its parameters are.
        """
        if self.has_lora:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"))
            return
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())


def _masked(batch: TokenBatch, scores: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    logprobs, entropy = (each.masked_fill(~batch.completion_mask, 0.0) for each in scores)
    return logprobs, entropy


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
