"""Gradient norms at the output layer, measured in a forward pass that verl's FSDP engine makes anyway.

While completions are scored, a hook at the output layer reads its input and its whole matrix, even if
the matrix is sharded. A closed form computes ``||grad log pi(y|x)||`` over that matrix from the two. No
backward pass and no further forward pass is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dibs.model.batching import TokenBatch
from dibs.model.grad_norms.output_layer import output_layer
from dibs.model.grad_norms.products import Products

NORMS = "dibs_grad_norms"
"""Field of verl's batches with the norm of each row."""
MEASURE = "dibs_measure_norms"
"""Flag of a batch that requests norms: :data:`SCORES` or :data:`TERMS`. It differs from the field, which
rows keep in later passes."""
SCORES = "scores"
"""Norms of ``grad log pi(y|x)``."""
TERMS = "terms"
"""Norms of ``sum_t A_t grad log pi(y_t)``, with the batch's ``advantages``."""


def obstacle(engine: Any) -> str | None:
    """Return why an engine cannot measure norms, or None if it can."""
    module: Any = getattr(engine, "module", None)
    if not hasattr(module, "get_output_embeddings"):
        return f"the engine {type(engine).__name__} shows no output layer"
    if getattr(engine, "use_ulysses_sp", False):
        return "tokens of a sequence are spread over processes (ulysses_sequence_parallel_size)"
    if engine.engine_config.use_fused_kernels:
        return "fused kernels pass by the output layer (use_fused_kernels)"
    if not isinstance(module.get_output_embeddings(), nn.Linear):
        return f"the output layer of {type(module).__name__} is no plain Linear"
    return None


@contextmanager
def norms_measured(engine: Any, what: str = SCORES) -> Iterator[None]:
    """Let the engine's forward passes return :data:`NORMS` too.

    ``what``: :data:`SCORES` or :data:`TERMS`. A norm is NaN if the logits are not the output of the
    output layer alone.
    """
    layer = engine.module.get_output_embeddings()
    prepare_inputs, prepare_outputs = engine.prepare_model_inputs, engine.prepare_model_outputs
    seen: dict[str, Any] = {}

    def batch_inputs(micro_batch: Any) -> Any:
        seen.clear()
        seen["batch"] = micro_batch
        return prepare_inputs(micro_batch=micro_batch)

    def before(module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        seen["norms"] = completion_norms(module, inputs[0], seen["batch"], what)

    def after(module: nn.Linear, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        seen["logits"] = logits

    def outputs(output: Any, output_args: Any, micro_batch: Any, **others: Any) -> Any:
        plain = "norms" in seen and torch.equal(
            output.logits.to(seen["logits"].dtype), seen["logits"]
        )
        norms = (
            seen["norms"] if plain else torch.full((micro_batch["input_ids"].size(0),), torch.nan)
        )
        made = prepare_outputs(
            output=output, output_args=output_args, micro_batch=micro_batch, **others
        )
        made[NORMS] = norms.float().unsqueeze(1)
        return made

    hooks = [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    engine.prepare_model_inputs, engine.prepare_model_outputs = batch_inputs, outputs
    try:
        yield
    finally:
        del engine.prepare_model_inputs, engine.prepare_model_outputs
        for hook in hooks:
            hook.remove()


def completion_norms(layer: nn.Linear, hidden: Tensor, batch: Any, what: str = SCORES) -> Tensor:
    """Return norms over the output layer's matrix, float64 [B].

    Args:
        hidden: input of the layer, padded [B, L, d] or one row of all sequences, [1, tokens, d].
        batch: verl's micro-batch: ``input_ids``, ``responses`` and ``response_mask`` nested [B, *], and
            ``temperature``. Tokens outside the mask do not count.
        what: :data:`SCORES`, or :data:`TERMS`, which needs ``advantages`` [B, *] too.
    """
    ids, responses = batch["input_ids"], batch["responses"]
    ends, lengths = ids.offsets(), responses.offsets().diff()
    packed = hidden.shape[0] == 1 and hidden.shape[1] >= int(ends[-1])
    rows = [
        hidden[0, ends[i] : ends[i + 1]] if packed else hidden[i, : ends[i + 1] - ends[i]]
        for i in range(len(lengths))
    ]
    # The last token predicts no other.
    before = [row[-int(n) - 1 : -1] for row, n in zip(rows, lengths, strict=True)]
    mask = batch["response_mask"].to_padded_tensor(0).bool()
    chosen = responses.to_padded_tensor(0)
    nothing = chosen.new_zeros(0)
    products = Products(len(lengths), pairs=False, device=hidden.device)
    with torch.no_grad():
        output_layer(
            layer,
            nn.utils.rnn.pad_sequence(before, batch_first=True),
            TokenBatch(nothing, nothing, nothing, chosen, mask),
            _temperature(batch["temperature"]),
            products,
            slopes=batch["advantages"].to_padded_tensor(0).float() if what == TERMS else None,
        )
    return products.total.sqrt()


def _temperature(value: Any) -> float:
    """Return the temperature, which is the same for all completions of verl's training partition."""
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)
