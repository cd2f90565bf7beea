"""Prompts and groups made by hand."""

from __future__ import annotations

import numpy as np

from dibs.types import Completion, CompletionMoments, Group, Prompt, Rollout


def make_prompt(name: str = "00", token_ids: tuple[int, ...] = (2, 3)) -> Prompt:
    return Prompt(name, f"prompt {name}", token_ids, "1")


def make_group(rewards: list[float], prompt: Prompt | None = None, length: int = 3) -> Group:
    """A group whose completions are ``length`` tokens long and accepted at reward 1."""
    prompt = prompt or make_prompt()
    completion = Completion((4,) * length, "text", (-1.0,) * length, finished=True)
    return Group(
        prompt,
        tuple(
            Rollout(prompt, completion, float(reward), "status", reward >= 1) for reward in rewards
        ),
    )


def assert_equal_arrays(got, expected) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def logprob_moments(count: np.ndarray, logprob: np.ndarray) -> CompletionMoments:
    """Moments of a class with equal norms, of which only counts and log-probabilities tell."""
    weight, flat = count.astype(float), np.where(count > 0, 0.0, np.nan)
    return CompletionMoments(weight, flat, flat, weight, np.where(count > 0, logprob, np.nan))
