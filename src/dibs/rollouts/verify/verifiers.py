"""Verifiers: the verdicts of many completions, in order, and the groups that they make.

A judge compares one gold answer with the text of one completion; a verifier runs a judge on many. The
judge of mathematics and users' own judges run in worker processes, because they may take any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from dibs.config import VerifyConfig
from dibs.data.answers import LONGEST, reading
from dibs.data.arithmetic import ANSWER_MARK, parts_of
from dibs.data.environments import environment_name
from dibs.data.gold_answers import columns_of, forms_of
from dibs.data.reasoning_gym import gym_names
from dibs.plugins import import_function
from dibs.rollouts.verify.judges import (
    NO_ANSWER,
    Judge,
    judge_arithmetic,
    judge_choice,
    judge_exact,
    judge_numeric,
    judged,
    scored,
)
from dibs.rollouts.verify.several import AnyForm, Part, WeightedVerifier
from dibs.rollouts.verify.verifier import Verifier
from dibs.types import Completion, Group, InputError, Prompt, Rollout, Verdict

BOXED = ("math", "exact", "numeric", "choice")
"""Verifiers that take what ``verify.answer_from`` finds, a box by default, and nothing else."""
VERIFIERS = (*BOXED, "arithmetic", "reasoning-gym", "environment")


def verified(
    verifier: Verifier,
    prompts: Sequence[Prompt],
    sampled: Iterable[tuple[int, int, Completion]],
    accept_threshold: float,
    keep_unreached: bool,
    *,
    reasons: list[str] | None = None,
    require_end: bool = False,
) -> list[Group]:
    """Judge completions as they are sampled, and return one group of rollouts for each prompt.

    Args:
        sampled: for each completion the index of its prompt, its number in the group, and the completion
            itself; in any order.
        accept_threshold: least reward of an accepted completion.
        keep_unreached: whether a completion without a verdict is a rollout of reward 0. If not, it is
            left out, and the group notes its status.
        reasons: gets the reason for each completion without a verdict.
        require_end: whether a completion that did not end has no answer, and is not judged.
    """
    drawn: list[tuple[int, int, Completion]] = []
    cut_off: list[tuple[int, int, Completion, Verdict]] = []

    def items() -> Iterator[tuple[str, str]]:
        for each in sampled:
            if require_end and not each[2].finished:
                cut_off.append((*each, NO_ANSWER))
                continue
            drawn.append(each)
            yield prompts[each[0]].answer, each[2].text

    judged = [(*drawn[n], v) for n, v in enumerate(verifier.verdicts(items()))]
    judged += cut_off
    if reasons is not None:
        reasons += [verdict.reason for *_, verdict in judged if not verdict.reached]
    rollouts: list[list[Rollout]] = [[] for _ in prompts]
    left_out: list[list[str]] = [[] for _ in prompts]
    for index, _, completion, verdict in sorted(judged, key=lambda each: each[:2]):
        if verdict.reached or keep_unreached:
            reward = verdict.reward if verdict.reached else 0.0
            accepted = verdict.reached and reward >= accept_threshold
            rollouts[index].append(
                Rollout(
                    prompts[index], completion, reward, verdict.status, accepted, verdict.rewards
                )
            )
        else:
            left_out[index].append(verdict.status)
    return [
        Group(prompt, tuple(group), tuple(statuses))
        for prompt, group, statuses in zip(prompts, rollouts, left_out, strict=True)
    ]


class InlineVerifier:
    """A verifier whose judge is quick and runs in this process."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """Yield a verdict for each item; an exception of the judge has the status ``error``."""
        return (judged(self.judge, answer, text) for answer, text in items)

    def close(self) -> None:
        """Nothing to stop."""


def build_verifier(config: VerifyConfig, source: str) -> Verifier:
    """The configured verifier; with ``auto``, the one that fits the data ``source``.

    Raises InputError for an unknown name or a function that cannot be imported.
    """
    if not config.rewards:
        return _built(resolved(config.verifier, source), config)
    parts = [
        Part(reward.label, reward.weight, _built(reward.verifier, config))
        for reward in config.rewards
    ]
    return WeightedVerifier(parts, config.accept_threshold)


def _built(name: str, config: VerifyConfig) -> Verifier:
    """The verifier of one name."""
    options: dict[str, Any] = {"anywhere": config.answer_from == "anywhere"}
    inline: dict[str, Judge] = {
        "arithmetic": judge_arithmetic,
        "exact": partial(judge_exact, **options),
        "numeric": partial(judge_numeric, **options, tolerance=config.tolerance),
        "choice": partial(judge_choice, **options),
    }
    if name in inline:
        return InlineVerifier(AnyForm(inline[name]))
    from dibs.rollouts.verify.pool import VerifierPool

    limits = (config.workers or min(os.cpu_count() or 1, 8), config.timeout, config.memory_limit)
    if name == "math":
        from dibs.rollouts.verify.maths import judge_math

        return VerifierPool(AnyForm(partial(judge_math, **options)), *limits, longest=LONGEST)
    if name == "environment":
        from dibs.rollouts.verify.environment import EnvironmentVerifier

        return EnvironmentVerifier(config.accept_threshold, config.timeout)
    if name == "reasoning-gym":
        from dibs.rollouts.verify.gym import judge_gym

        judge = partial(judge_gym, **options, accept_threshold=config.accept_threshold)
        return VerifierPool(judge, *limits)
    if ":" not in name:
        raise InputError(
            f"unknown verifier {name!r}; known: {', '.join(VERIFIERS)}, or your own as module:function"
        )
    own = import_function(name, "verify.verifier")
    return VerifierPool(AnyForm(OwnJudge(own, config.accept_threshold)), *limits)


def answer_reader(config: VerifyConfig, source: str) -> Callable[[str], str | None]:
    """A function from a completion's text to its answer, in a form in which like answers are equal.

    The function returns None where the completion gives no answer.
    """
    if resolved(config.verifier, source) == "arithmetic":
        return lambda text: text.partition(ANSWER_MARK)[2] or None
    return partial(reading, anywhere=config.answer_from == "anywhere")


def gold_reader(config: VerifyConfig, source: str) -> Callable[[str], bool]:
    """A function that says whether the configured verifier can compare a gold answer, in every form."""
    readers = [_gold_reader(resolved(name, source)) for name in config.verifiers]
    return lambda answer: all(reads(form) for reads in readers for form in forms_of(answer))


def _gold_reader(name: str) -> Callable[[str], bool]:
    if name == "math":
        from dibs.rollouts.verify.maths import is_readable_gold

        return is_readable_gold
    judge = {"numeric": judge_numeric, "choice": judge_choice}.get(name)
    if judge is None:
        return lambda answer: True
    return lambda answer: judged(judge, answer, r"\boxed{0}").reached


def resolved(name: str, source: str) -> str:
    """The verifier of a name; that of the data ``source`` for ``auto``."""
    if name != "auto":
        return name
    if gym_names(source) is not None:
        return "reasoning-gym"
    if environment_name(source) is not None:
        return "environment"
    return "arithmetic" if parts_of(source) else "math"


class OwnJudge:
    """A judge from a user's function of (answer, completion) that returns a reward, bool or Verdict.

    The function also gets the columns of ``data.columns``, as keyword arguments.
    """

    def __init__(self, function: Callable[[str, str], Any], accept_threshold: float) -> None:
        self.function = function
        self.accept_threshold = accept_threshold

    def __call__(self, answer: str, completion: str) -> Verdict:
        """The function's result as a verdict; a reward of at least the threshold is accepted."""
        given = self.function(answer, completion, **columns_of(answer))
        if isinstance(given, Verdict):
            return given
        return scored(float(given), self.accept_threshold)
