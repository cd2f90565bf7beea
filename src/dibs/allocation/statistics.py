"""Completions in, statistics of their prompts out. Knows no budget.

This is the estimate step of arXiv 2505.02391, Algorithm 2: N' fresh completions a prompt give the
accept rate ``p_i`` (accepted share) and ``G_i`` (mean gradient norm of the accepted ones). ``history``
gives statistics of completions of earlier steps instead. ``posterior`` makes estimates of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dibs.types import CompletionMoments, Group, Prompt, PromptStats, RewardMoments


def no_statistics(prompts: Sequence[Prompt]) -> PromptStats:
    """Statistics of prompts of which nothing is known: zero trials each."""
    return statistics([prompt.prompt_id for prompt in prompts], np.zeros((len(prompts), SUMS)))


def pilot_statistics(groups: Sequence[Group], grad_norms: Sequence[np.ndarray]) -> PromptStats:
    """Statistics of m prompts from their pilot groups.

    Args:
        groups: pilot rollouts of each prompt.
        grad_norms: ``||grad log pi(y|x)||`` of each pilot, divided by what the loss divides its gradient
            by; one array [n_i] a group, same order.

    Returns:
        PromptStats with norms averaged as plain means, as in Algorithm 2 (the variance bound of Lemma 2
        would need the root mean square); NaN where a class is empty.
    """
    sums = [group_sums(group, norms) for group, norms in zip(groups, grad_norms, strict=True)]
    return statistics([group.prompt.prompt_id for group in groups], np.reshape(sums, (-1, SUMS)))


_CLASS = 13
SUMS = 3 + 2 * _CLASS
"""How many sums there are of a prompt's completions; see :func:`group_sums`."""
SQUARED_WEIGHTS = [5, 5 + _CLASS]
"""Which of them are sums of squared weights."""
_LARGEST_NORM = 1e100


def group_sums(group: Group, grad_norms: np.ndarray) -> np.ndarray:
    """Sums over a group's completions, float64 [29]. The sums of several groups of a prompt add up.

    The first three are the completions, the accepted ones and the tokens. Thirteen follow over the
    accepted completions, and the same thirteen over the rejected ones:

    - ``||s||``;
    - over completions with ``||s|| > 0``: 1, 1 (the weight and the squared weight of a completion that
      is not discounted), ``ln ||s||``, ``(ln ||s||)^2``;
    - ``ln pi(y|x)`` over completions with a gradient, measured or not;
    - r, r^2, ``||s||^2``, ``r ||s||^2``, ``r^2 ||s||^2``;
    - 1 over completions whose norm was measured, and 1 over completions with a gradient.

    A norm that is NaN was not measured: it is missing from every sum of norms and from their counts.
    """
    return completion_sums(
        group.accepted,
        group.rewards,
        np.array([len(rollout.completion.token_ids) for rollout in group.rollouts]),
        np.array([sum(rollout.completion.sampling_logprobs) for rollout in group.rollouts]),
        grad_norms,
    )


def completion_sums(
    accepted: np.ndarray,
    rewards: np.ndarray,
    tokens: np.ndarray,
    logprobs: np.ndarray,
    grad_norms: np.ndarray,
) -> np.ndarray:
    """:func:`group_sums` from arrays over a prompt's completions, [n] each."""
    sums = [len(accepted), accepted.sum(), tokens.sum()]
    for chosen in (accepted, ~accepted):
        usable = chosen & (grad_norms > 0)
        measured = chosen & ~np.isnan(grad_norms)
        written = chosen & (grad_norms != 0)
        logs = np.log(grad_norms[usable])
        sums += [grad_norms[measured].sum(), usable.sum(), usable.sum()]
        sums += [logs.sum(), (logs**2).sum(), logprobs[written].sum()]
        squares = np.nan_to_num(grad_norms[chosen].clip(max=_LARGEST_NORM)) ** 2
        own = rewards[chosen]
        sums += [own.sum(), (own**2).sum(), squares.sum()]
        sums += [(own * squares).sum(), (own**2 * squares).sum()]
        sums += [measured.sum(), written.sum()]
    return np.array(sums, dtype=np.float64)


def all_measured(sums: Sequence[float]) -> list[float]:
    """The sums of a prompt whose completions were all measured, from those of older checkpoints [25].

    These lack the last two numbers of each class.
    """
    trials, successes = sums[:2]
    accepted, rejected = sums[3:14], sums[14:25]
    return [
        *sums[:3],
        *(*accepted, successes, accepted[1]),
        *(*rejected, trials - successes, rejected[1]),
    ]


def statistics(prompt_ids: Sequence[str | int], sums: np.ndarray) -> PromptStats:
    """Statistics of m prompts from their sums [m, 29]."""
    trials, successes, tokens = sums[:, :3].T
    accepted, rejected = sums[:, 3 : 3 + _CLASS].T, sums[:, 3 + _CLASS :].T
    # Rewards of 0 and 1 need no moments of their own.
    binary = not rejected[6:8].any() and (accepted[6:8] == successes).all()
    rewards = (
        (None, None)
        if binary
        else (_rewards(accepted, successes), _rewards(rejected, trials - successes))
    )
    return PromptStats(
        prompt_ids=prompt_ids,
        trials=trials,
        successes=successes,
        grad_norm=_quotient(accepted[0], accepted[11]),
        grad_norm_rejected=_quotient(rejected[0], rejected[11]),
        mean_tokens=_quotient(tokens, trials),
        accepted=_moments(accepted, rewards[0]),
        rejected=_moments(rejected, rewards[1]),
    )


def _moments(sums: np.ndarray, rewards: RewardMoments | None) -> CompletionMoments:
    count, squared, log, square, logprob = sums[1:6]
    written = sums[12]
    mean = _quotient(log, count)
    scatter = np.maximum(square - log * mean, 0.0)
    effective = np.nan_to_num(_quotient(count**2, squared))
    logprob = _quotient(logprob, written)
    return CompletionMoments(count, mean, scatter, effective, logprob, rewards, written)


def _rewards(sums: np.ndarray, count: np.ndarray) -> RewardMoments:
    reward, square, norms, weighted, weighted_square = sums[6:11]
    return RewardMoments(
        _quotient(reward, count),
        _quotient(square, count),
        _quotient(weighted, norms),
        _quotient(weighted_square, norms),
    )


def _quotient(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``total / count``, NaN where the count is 0."""
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
