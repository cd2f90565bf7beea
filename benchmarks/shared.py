"""What benchmarks share: a type of options, and the name of the machine."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path


def positive(text: str) -> int:
    """A whole number above 0. Raises ArgumentTypeError, which argparse turns into one line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def cpu_name() -> str:
    """Model of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
