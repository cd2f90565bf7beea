"""Pilot completions in, statistics of their prompts out. numpy only; knows no budget.

This is the estimate step of arXiv 2505.02391, Algorithm 2: N' fresh completions a prompt give the
accept rate ``p_i`` (accepted share) and ``G_i`` (mean gradient norm of the accepted ones). The
pilots are thrown away afterwards, so the counts they decide stay independent of the samples that
enter the gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dibs.types import Group, Prompt, PromptStats


def no_statistics(prompts: Sequence[Prompt]) -> PromptStats:
    """Statistics of prompts that nothing is known about."""
    nothing = np.zeros(len(prompts), dtype=np.int64)
    unknown = np.full(len(prompts), np.nan)
    return PromptStats([prompt.prompt_id for prompt in prompts], nothing, nothing, unknown)


def pilot_statistics(groups: Sequence[Group], grad_norms: Sequence[np.ndarray]) -> PromptStats:
    """Statistics of m prompts from their pilot groups.

    Args:
        groups: pilot rollouts of each prompt.
        grad_norms: ``||grad log pi(y|x)||`` of each pilot, one array [n_i] a group, same order.

    Returns:
        PromptStats with norms averaged as plain means, as Algorithm 2 has it (the variance bound of
        Lemma 2 would ask for the root mean square); NaN where a class is empty.
    """
    return PromptStats(
        prompt_ids=[group.prompt.prompt_id for group in groups],
        trials=np.array([len(group.rollouts) for group in groups], dtype=np.int64),
        successes=np.array([int(group.accepted.sum()) for group in groups], dtype=np.int64),
        grad_norm=_means(n[g.accepted] for g, n in zip(groups, grad_norms, strict=True)),
        grad_norm_rejected=_means(n[~g.accepted] for g, n in zip(groups, grad_norms, strict=True)),
        mean_tokens=_means(
            np.array([len(rollout.completion.token_ids) for rollout in group.rollouts])
            for group in groups
        ),
    )


def _means(samples: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([values.mean() if len(values) else np.nan for values in samples])


def weighting_rates(stats: PromptStats) -> np.ndarray:
    """Accept rates [m] fit to divide by: the pilots' share, at least 1/(trials + 1).

    A prompt whose pilots were all rejected may still have an accepted training sample. Its true rate
    is positive but was not measured; 1/(trials + 1) is about where zero successes stop being likely,
    and it keeps one lucky sample from outweighing the batch.
    """
    floor = 1.0 / (np.asarray(stats.trials) + 1.0)
    return np.maximum(np.nan_to_num(stats.accept_rate), floor)
