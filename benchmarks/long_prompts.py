"""A policy with random weights and prompts of 256 tokens, for benchmarks of speed.

Rewards are tosses of a coin, so that nearly every completion has an advantage.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from dibs.config import WarmStartConfig
from dibs.data.arithmetic import MODULUS
from dibs.model.warm_start import build_model, build_tokenizer

LONG_PROMPT, LONG_COMPLETION = 256, 64
_NEVER = 30.0
"""What all tokens but the end share in one entry of their vectors; the end has its negative."""


def coin(answer: str, completion: str) -> float:
    """A verifier's reward that is 1 for about half of all texts, whatever they say."""
    return float(zlib.crc32(f"{answer} {completion}".encode()) % 2)


def save_long_prompts(
    folder: Path, rows: int, *, hidden_size: int = 256, layers: int = 4, endless: bool = False
) -> dict[str, str]:
    """Write the policy and so many prompts; their places as ``model`` and ``prompts``.

    ``endless``: the policy never ends a completion, so that all have the greatest length.
    """
    tokenizer = build_tokenizer()
    model = build_model(WarmStartConfig(hidden_size=hidden_size, layers=layers), tokenizer)
    if endless:
        vectors = model.get_input_embeddings().weight
        with torch.no_grad():
            # So the logits of all tokens rise by one number, and that of the end falls by it.
            vectors[:, 0] = _NEVER
            vectors[tokenizer.eos_token_id, 0] = -_NEVER
    places = {"model": str(folder / "model"), "prompts": str(folder / "prompts.jsonl")}
    model.save_pretrained(places["model"])
    tokenizer.save_pretrained(places["model"])
    numbers = np.random.default_rng(0).integers(MODULUS, size=(rows, LONG_PROMPT // 2))
    lines = [
        json.dumps({"question": "=".join(map(str, each)) + "=", "answer": str(i)})
        for i, each in enumerate(numbers)
    ]
    Path(places["prompts"]).write_text("\n".join(lines), encoding="utf-8")
    return places
