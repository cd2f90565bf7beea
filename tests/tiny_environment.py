"""An environment of verifiers as users write them: sums, with faults of every kind."""

from __future__ import annotations

import asyncio
from typing import Any

import verifiers as vf
from datasets import Dataset


def right(completion: Any, answer: str) -> float:
    """Whether the last message is the answer."""
    return float(completion[-1]["content"] == answer)


def brief(completion: Any) -> float:
    """Whether the last message is short."""
    return float(len(completion[-1]["content"]) <= 3)


async def moody(completion: Any, info: Any) -> float:
    """Raises, waits, or has no opinion, as the completion says; else the row's own number."""
    text = completion[-1]["content"]
    if text == "raise":
        raise RuntimeError("I do not know")
    if text == "wait":
        await asyncio.sleep(60)
    return float("nan") if text == "nan" else float(info["bonus"])


def of_a_group(completions: list[Any]) -> list[float]:
    """Rewards of several completions at once."""
    return [0.0] * len(completions)


def rows(first: int, last: int) -> Dataset:
    """Sums of a number with itself."""
    return Dataset.from_list(
        [
            {"question": f"{i}+{i}=", "answer": str(2 * i), "info": {"bonus": i}}
            for i in range(first, last)
        ]
    )


def load_environment(size: int = 40, held_out: int = 0, kind: str = "single") -> Any:
    """``size`` rows to train on and ``held_out`` to evaluate on, the first of which are the same."""
    rubric = vf.Rubric(funcs=[right, brief, moody], weights=[1.0, 0.25, 0.001])
    if kind == "group":
        rubric = vf.Rubric(funcs=[of_a_group])
    make: Any = vf.SingleTurnEnv
    if kind == "turns":

        class Turns(vf.MultiTurnEnv):
            async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
                return []

        make = Turns
    return make(
        dataset=rows(1, 1 + size),
        eval_dataset=rows(size, size + held_out) if held_out else None,
        system_prompt="Add.",
        rubric=rubric,
    )
