"""Verifiers as users write them, with faults of every kind; a module that workers import quickly."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def sleepy(answer: str, completion: str) -> float:
    """Says its process, sleeps where told to, and obeys its completion."""
    if completion == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if completion == "raise":
        raise RuntimeError("I do not know")
    if completion == "exit":
        sys.exit(1)
    if completion == "interrupt":
        raise KeyboardInterrupt
    if completion == "nan":
        return float("nan")
    if completion == "stuck":
        Path(answer).write_text(str(os.getpid()))
        while True:
            pass
    if completion == "eat":
        return float(len("x" * 10**10))
    if completion == "slow once":
        first = not Path(answer).exists()
        Path(answer).write_text(str(os.getpid()))
        time.sleep(60 if first else 0)
        return 1.0
    if completion.startswith("sleep"):
        Path(answer).write_text(str(os.getpid()))
        time.sleep(float(completion.split()[1]))
    return 0.5 if completion == "half" else float(completion == "right")


def everything(answer: str, completion: str) -> float:
    """Accepts whatever it is given."""
    return 1.0


def half(answer: str, completion: str) -> float:
    """Accepts about every second text."""
    return float(sum(completion.encode()) % 2)


def moody(answer: str, completion: str) -> float:
    """Fails on some completions and takes too long for others."""
    mood = sum(map(ord, completion)) // 2 % 4
    if mood == 0:
        raise RuntimeError("no idea")
    if mood == 1:
        time.sleep(30)
    return float(completion.endswith(f"#{answer}"))


def brevity(answer: str, completion: str) -> float:
    """1 for an empty completion, less the longer it is."""
    return 1 / (1 + len(completion))


def leveled(answer: str, completion: str, level: int, hint: str | None = None) -> float:
    """Right answers count by the level of their question."""
    return level * float(completion.endswith(answer)) + (0.5 if hint else 0.0)


def silent(answer: str, completion: str) -> float:
    """Fails on every completion."""
    raise RuntimeError("no idea")


def nothing(answer: str, completion: str) -> None:
    """Forgets to return anything."""


def partial(answer: str, completion: str) -> float:
    """Fails on all completions of the prompts whose answer is even."""
    if int(answer) % 2 == 0:
        raise RuntimeError("no idea")
    return float(completion.endswith(f"#{answer}"))
