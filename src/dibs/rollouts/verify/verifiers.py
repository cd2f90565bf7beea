"""(gold answer, completion text) to Verdict. Knows no tokens.

Judges compare one answer with one completion; a verifier gives the verdicts of many, in order. Judges of
mathematics and of users run in worker processes, because nobody knows how long they take.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from dibs.config import VerifyConfig
from dibs.data.answers import LONGEST, reading
from dibs.data.arithmetic import ANSWER_MARK, parts_of
from dibs.plugins import import_function
from dibs.rollouts.verify.judges import (
    Judge,
    judge_arithmetic,
    judge_choice,
    judge_exact,
    judge_numeric,
    judged,
    unreached,
)
from dibs.types import Completion, Group, InputError, Prompt, Rollout, Verdict

VERIFIERS = ("math", "exact", "numeric", "choice", "arithmetic")


class Verifier(Protocol):
    """Gives verdicts in the order of the items, ``(gold answer, completion text)``."""

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]: ...

    def close(self) -> None: ...


def verified(
    verifier: Verifier,
    prompts: Sequence[Prompt],
    sampled: Iterable[tuple[int, int, Completion]],
    accept_threshold: float,
    keep_unreached: bool,
) -> list[Group]:
    """Completions to a group of rollouts a prompt; they are judged as they come.

    ``sampled``: index of the prompt, number of the completion in its group, and the completion, in any
    order. ``keep_unreached``: completions without a verdict are rollouts of reward 0; else they are left
    out, and the group notes their statuses.
    """
    drawn: list[tuple[int, int, Completion]] = []

    def items() -> Iterator[tuple[str, str]]:
        for each in sampled:
            drawn.append(each)
            yield prompts[each[0]].answer, each[2].text

    judged = [(*drawn[n], v) for n, v in enumerate(verifier.verdicts(items()))]
    rollouts: list[list[Rollout]] = [[] for _ in prompts]
    left_out: list[list[str]] = [[] for _ in prompts]
    for index, _, completion, verdict in sorted(judged, key=lambda each: each[:2]):
        if verdict.reached or keep_unreached:
            reward = verdict.reward if verdict.reached else 0.0
            accepted = verdict.reached and reward >= accept_threshold
            rollouts[index].append(
                Rollout(prompts[index], completion, reward, verdict.status, accepted)
            )
        else:
            left_out[index].append(verdict.status)
    return [
        Group(prompt, tuple(group), tuple(statuses))
        for prompt, group, statuses in zip(prompts, rollouts, left_out, strict=True)
    ]


class InlineVerifier:
    """A quick judge in this process."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """One verdict an item; an exception of the judge is an ``error``."""
        return (judged(self.judge, answer, text) for answer, text in items)

    def close(self) -> None:
        """Nothing to stop."""


def build_verifier(config: VerifyConfig, source: str) -> Verifier:
    """The configured verifier; ``auto`` picks the one that fits the data ``source``.

    Raises InputError for an unknown name or a function that cannot be imported.
    """
    name = _resolved(config, source)
    options: dict[str, Any] = {"anywhere": config.answer_from == "anywhere"}
    inline: dict[str, Judge] = {
        "arithmetic": judge_arithmetic,
        "exact": partial(judge_exact, **options),
        "numeric": partial(judge_numeric, **options, tolerance=config.tolerance),
        "choice": partial(judge_choice, **options),
    }
    if name in inline:
        return InlineVerifier(inline[name])
    from dibs.rollouts.verify.pool import VerifierPool

    limits = (config.workers or min(os.cpu_count() or 1, 8), config.timeout, config.memory_limit)
    if name == "math":
        from dibs.rollouts.verify.maths import judge_math

        return VerifierPool(partial(judge_math, **options), *limits, longest=LONGEST)
    if ":" not in name:
        raise InputError(
            f"unknown verifier {name!r}; known: {', '.join(VERIFIERS)}, or your own as module:function"
        )
    own = import_function(name, "verify.verifier")
    return VerifierPool(OwnJudge(own, config.accept_threshold), *limits)


def answer_reader(config: VerifyConfig, source: str) -> Callable[[str], str | None]:
    """What a completion answers, in a form that is equal for answers written alike; None if nothing."""
    if _resolved(config, source) == "arithmetic":
        return lambda text: text.partition(ANSWER_MARK)[2] or None
    return partial(reading, anywhere=config.answer_from == "anywhere")


def _resolved(config: VerifyConfig, source: str) -> str:
    if config.verifier != "auto":
        return config.verifier
    return "arithmetic" if parts_of(source) else "math"


class OwnJudge:
    """A user's function of (answer, completion) that returns a reward, a truth value or a Verdict."""

    def __init__(self, function: Callable[[str, str], Any], accept_threshold: float) -> None:
        self.function = function
        self.accept_threshold = accept_threshold

    def __call__(self, answer: str, completion: str) -> Verdict:
        """Its result as a verdict; at the threshold and above it is accepted."""
        given = self.function(answer, completion)
        if isinstance(given, Verdict):
            return given
        reward = float(given)
        if not math.isfinite(reward):
            return unreached("error", f"the reward is {reward}")
        return Verdict(reward, "accepted" if reward >= self.accept_threshold else "rejected")
