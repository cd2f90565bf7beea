"""Checkpoints: written whole, checked before use, pruned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dibs.files import checksum
from dibs.model.policy import Policy

_MANIFEST = "checksums.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the step after which it was saved, its folder and its state."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self) -> dict[str, Tensor]:
        """Optimizer moments and random states."""
        return load_file(self.folder / "tensors.safetensors")


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{_MANIFEST} is missing or damaged"
    if not isinstance(sums, dict) or not {"state.json", "tensors.safetensors"} <= sums.keys():
        return f"{_MANIFEST} is damaged"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if checksum(path) != expected:
            return f"{name} is not what was written"
    return None


def _step_in_name(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def all_finite(policy: Policy) -> bool:
    """Whether no parameter of the policy is NaN or infinite."""
    return all(bool(torch.isfinite(p).all()) for p in policy.model.parameters())
