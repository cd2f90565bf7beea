"""Which models can compute a prompt once for several completions, and the switch for it."""

from __future__ import annotations

from dibs.model.packing import PackedBatch
from dibs.model.policy import Policy
from dibs.model.prefix_attention import NAME

_SUPPORTED = {"full_attention", "sliding_attention"}


def why_not_shared(policy: Policy, dropout: float = 0.0) -> str | None:
    """Why prompts cannot be shared, as far as the model's configuration shows it; None: they may be.

    ``dropout``: of LoRA's adapters. Shared prompts would have one mask for several completions.
    """
    config = policy.model.get_decoder().config
    implementation = getattr(config, "_attn_implementation", None)
    kinds = set(getattr(config, "layer_types", None) or ()) - _SUPPORTED
    name = type(policy.base_model).__name__
    if policy.compiled:
        return "policy.compile compiles the model"
    if dropout > 0:
        return f"policy.lora.dropout is {dropout:g}"
    if implementation not in ("sdpa", NAME):
        return f"{name} runs the attention {implementation}, not sdpa"
    if kinds:
        return f"{name} has layers of {', '.join(sorted(kinds))}"
    return None


def share_prompts(policy: Policy, *, on: bool) -> None:
    """Put the model's attention into place, or the usual one back."""
    policy.model.get_decoder().config._attn_implementation = NAME if on else "sdpa"
    policy.shares_prompts = on
    policy.holds_prompts = policy.holds_prompts and on


def unseen_window(policy: Policy, batch: PackedBatch) -> str | None:
    """Why prompts cannot be shared, if layers declare a window that attention did not get.

    ``batch``: one whose forward pass was computed. A few short sequences would not show the difference.
    """
    config = policy.model.get_decoder().config
    declared = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if declared is None or (kinds is not None and "sliding_attention" not in kinds):
        return None
    if declared in batch.layout.windows:
        return None
    return f"{type(policy.base_model).__name__} does not pass its sliding window to attention"
