"""The nouns of DIBS: frozen records passed between the stages of a training step.

``m`` is the number of prompts of a step, ``n_i`` the number of completions of prompt i. Groups are
ragged everywhere: any ``n_i >= 0`` is legal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

UNREACHED = ("timeout", "error")
"""Statuses of a completion that got no judgment."""


_UNFIT = ("Cc", "Cs", "Cn", "Zl", "Zp")
"""Unicode categories that XML refuses, that fonts cannot draw, or that would break a line."""


def printable(text: object) -> str:
    """One line of text without control characters and halves of surrogate pairs.

    They are written as Python escapes them, not dropped, so that names that differ still do.
    """
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _UNFIT else each
        for each in str(text)
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 row", "2 rows", "1,000 rows"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


class InputError(Exception):
    """Something that the user gave is unusable. The message is one line: what, where, and what to do.

    The command line prints it and exits with status 2. What the user wrote may hold line breaks and
    control characters; the message shows them escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ElsewhereError(RuntimeError):
    """Another process of the run failed. That process prints the reason, so this one need not."""


class NonFiniteError(Exception):
    """A log-probability, loss or gradient is NaN or infinite. No update was made from it."""


class NoVerdictError(Exception):
    """The verifier gave no verdict on any completion of a draw. The message holds its first reason."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, rendered and tokenized.

    ``prompt_id`` is a hash of question and answer, so it is the same in another order and in another
    run. ``level``: of prompts that are added while a policy learns, which addition it belongs to.
    """

    prompt_id: str
    text: str
    token_ids: tuple[int, ...]
    answer: str
    level: int = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote after a prompt.

    ``finished``: whether the policy wrote an end: an end-of-sequence token, or what ``sampling.stop``
    names. ``token_ids`` then ends with it, and ``text`` does not contain it. ``sampling_logprobs``: the
    sampler's log-probabilities of ``token_ids``, at its temperature, in nats.
    """

    token_ids: tuple[int, ...]
    text: str
    sampling_logprobs: tuple[float, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's judgment: a reward, and why.

    ``status`` is ``accepted``, ``rejected`` or ``no_answer``. Where there is no judgment it is
    ``timeout`` or ``error``; the reward is then NaN, and ``reason`` holds what happened. ``rewards``:
    those that it is the weighted sum of, by name; empty where there is one.
    """

    reward: float
    status: str
    reason: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether there is a judgment."""
        return self.status not in UNREACHED


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A completion with its share of the gradient: ``weight * advantage * grad log pi(completion)``.

    ``advantage`` comes from the objective. ``weight`` comes from the estimator and also weighs the KL
    penalty. ``sampling_logprobs``: the sampler's log-probability of each token of the completion; empty
    where it is not needed.
    """

    context_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    weight: float
    sampling_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, one completion of it and the verdict on it; ``rewards`` as in :class:`Verdict`."""

    prompt: Prompt
    completion: Completion
    reward: float
    status: str
    accepted: bool
    rewards: Mapping[str, float] = field(default_factory=dict)

    def example(self, advantage: float = 0.0, weight: float = 0.0) -> TrainingExample:
        """The rollout as an example to train on, with its share of the gradient."""
        return TrainingExample(
            self.prompt.token_ids,
            self.completion.token_ids,
            float(advantage),
            float(weight),
            self.completion.sampling_logprobs,
        )


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one prompt in one phase of a step; there may be none.

    ``unreached``: statuses of completions that got no judgment and are not among the rollouts.
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    unreached: tuple[str, ...] = ()

    @classmethod
    def merged(cls, parts: Sequence[Group]) -> Group:
        """One group of the rollouts of all ``parts``: groups of the same prompt, at least one."""
        return cls(
            parts[0].prompt,
            tuple(rollout for part in parts for rollout in part.rollouts),
            tuple(status for part in parts for status in part.unreached),
        )

    @property
    def rewards(self) -> np.ndarray:
        """Rewards, float64 [n_i]."""
        return np.array([rollout.reward for rollout in self.rollouts], dtype=np.float64)

    @property
    def accepted(self) -> np.ndarray:
        """Whether each rollout was accepted, bool [n_i]."""
        return np.array([rollout.accepted for rollout in self.rollouts], dtype=bool)


@dataclass(frozen=True)
class RewardMoments:
    """Means of rewards over a class of completions, float64 [m]; NaN where there are none.

    ``mean`` and ``square``: means of r and r^2. ``weighted`` and ``weighted_square``: means of r and
    r^2 with weights ``||s||^2``. Times ``E[||s||^2]``, these are ``E[r ||s||^2]`` and ``E[r^2
    ||s||^2]``.
    """

    mean: np.ndarray
    square: np.ndarray
    weighted: np.ndarray
    weighted_square: np.ndarray

    def take(self, rows: np.ndarray) -> RewardMoments:
        """The same of some prompts, by their positions."""
        return RewardMoments(
            *(each[rows] for each in (self.mean, self.square, self.weighted, self.weighted_square))
        )


@dataclass(frozen=True)
class CompletionMoments:
    """Of the accepted, or of the rejected, completions of each of m prompts; all float64 [m].

    ``count``: completions with a gradient norm above 0; old ones count less than 1. ``log_norm``: mean
    of ``ln ||s||`` over them. ``log_norm_scatter``: sum of squared deviations from that mean; NaN if
    the deviations are not known. ``effective_count``: how many completions of weight 1 would give the
    mean as precisely, ``(sum of weights)^2 / (sum of squared weights)``. ``logprob``: mean of ``ln
    pi(y|x)``, summed over tokens. Means are NaN where the count is 0. ``rewards``: None where accepted
    completions have reward 1 and rejected ones 0.
    """

    count: np.ndarray
    log_norm: np.ndarray
    log_norm_scatter: np.ndarray
    effective_count: np.ndarray
    logprob: np.ndarray
    rewards: RewardMoments | None = None

    def take(self, rows: np.ndarray) -> CompletionMoments:
        """The same of some prompts, by their positions."""
        return CompletionMoments(
            self.count[rows],
            self.log_norm[rows],
            self.log_norm_scatter[rows],
            self.effective_count[rows],
            self.logprob[rows],
            None if self.rewards is None else self.rewards.take(rows),
        )


@dataclass(frozen=True)
class PromptStats:
    """What is known about each of m prompts before the budget is spent.

    ``trials`` and ``successes``: pilot completions that were drawn and accepted, [m]. Old ones count
    less than 1, so these need not be whole numbers. ``grad_norm``: mean of ``||grad log pi(y|x)||``
    over accepted pilots, each divided by what the loss divides its gradient by, float64 [m]; NaN where
    none was accepted. ``grad_norm_rejected``: the same over rejected pilots. ``mean_tokens``: mean
    length of completions in tokens, [m]. ``accepted`` and ``rejected``: moments of both classes.
    ``streak``: how many of the prompt's last visits in a row had all completions accepted or all
    rejected, [m]. The last five are optional.

    Raises InputError, with the prompt's id, for impossible values.
    """

    prompt_ids: Sequence[str | int]
    trials: np.ndarray
    successes: np.ndarray
    grad_norm: np.ndarray
    grad_norm_rejected: np.ndarray | None = None
    mean_tokens: np.ndarray | None = None
    accepted: CompletionMoments | None = None
    rejected: CompletionMoments | None = None
    streak: np.ndarray | None = None

    def __post_init__(self) -> None:
        m = len(self.prompt_ids)
        for name in (
            "trials",
            "successes",
            "grad_norm",
            "grad_norm_rejected",
            "mean_tokens",
            "streak",
        ):
            values = getattr(self, name)
            if values is None:
                continue
            if np.shape(values) != (m,):
                raise InputError(
                    f"{name} has shape {np.shape(values)}, but there are {m} prompts; "
                    "give one value a prompt"
                )
            self._refuse(np.isinf(values), name, "is infinite")
            if name in ("trials", "successes"):
                self._refuse(np.isnan(values), name, "is missing")
            self._refuse(np.asarray(values) < 0, name, "is negative")
        self._refuse(self.successes > self.trials, "successes", "exceeds trials")
        self._refuse(
            np.isnan(self.grad_norm) & (self.successes > 0),
            "grad_norm",
            "is missing though completions were accepted",
        )
        if len(set(self.prompt_ids)) < m:
            seen: set[str | int] = set()
            twice = next(p for p in self.prompt_ids if p in seen or seen.add(p))  # type: ignore[func-returns-value]
            raise InputError(f"prompt_id {twice!r} occurs twice; merge its statistics into one row")

    def _refuse(self, bad: np.ndarray, name: str, why: str) -> None:
        if bad.any():
            i = int(np.argmax(bad))
            value = getattr(self, name)[i]
            raise InputError(f"prompt {self.prompt_ids[i]!r}: {name} = {value} {why}")

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def take(self, rows: np.ndarray, prompt_ids: Sequence[str | int]) -> PromptStats:
        """Statistics of other prompts: what ``rows`` say of them, one row a prompt."""

        def taken(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else np.asarray(values)[rows]

        return PromptStats(
            prompt_ids,
            np.asarray(self.trials)[rows],
            np.asarray(self.successes)[rows],
            np.asarray(self.grad_norm)[rows],
            taken(self.grad_norm_rejected),
            taken(self.mean_tokens),
            None if self.accepted is None else self.accepted.take(rows),
            None if self.rejected is None else self.rejected.take(rows),
            taken(self.streak),
        )

    @property
    def accept_rate(self) -> np.ndarray:
        """``successes / trials``, float64 [m] in [0, 1]; NaN where there were no trials."""
        rate = np.full(len(self), np.nan)
        np.divide(self.successes, self.trials, out=rate, where=np.asarray(self.trials) > 0)
        return rate


@dataclass(frozen=True)
class Allocation:
    """How many completions each prompt gets: ``counts``, int64 [m], chosen by ``allocator``.

    ``expected``: of prompts that were drawn from a pool, what ``counts`` are in expectation, [m].
    """

    prompt_ids: Sequence[str | int]
    counts: np.ndarray
    allocator: str
    expected: np.ndarray | None = None
