"""Log-probabilities, advantages and weights in, a loss out. Pure torch functions.

``B`` completions of at most ``T`` tokens. Every loss is a plain sum over completions whose weights
already hold all normalization (1/(m n_i) and kin), so it adds up over micro-batches exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of an algorithm.

    ``clip``: ``(epsilon, epsilon_high)`` for the clipped importance ratio of RAFT++ and GRPO, None
    for the plain log-likelihood of RAFT. ``beta``: weight of the KL to the reference policy.
    ``importance_sampling`` and its cap: see :func:`importance_weights`; None for a sampler that draws
    from the very distribution that the learner computes.
    """

    clip: tuple[float, float] | None
    beta: float = 0.0
    importance_sampling: str | None = None
    importance_sampling_cap: float = 2.0

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether it compares with the policy before the step's first update."""
        return self.clip is not None or self.importance_sampling is not None

    def __call__(
        self,
        logprobs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        weights: Tensor,
        old_logprobs: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
        sampling_logprobs: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) and sums for the metrics.

        Args:
            logprobs: of the policy being trained, [B, T].
            mask: bool [B, T], true on completion tokens.
            advantages, weights: [B].
            old_logprobs: of the policy before the first update, as the learner computes them, [B, T];
                needed with ``clip`` or ``importance_sampling``.
            ref_logprobs: of the reference policy, [B, T]; needed with ``beta`` > 0.
            sampling_logprobs: as the sampler computed them, [B, T]; needed with ``importance_sampling``.
        """
        if self.clip is None:
            surrogate = advantages.unsqueeze(-1) * logprobs
            clipped = torch.zeros_like(mask)
        else:
            assert old_logprobs is not None
            surrogate, clipped = clipped_surrogate(logprobs, old_logprobs, advantages, *self.clip)
        if self.importance_sampling is not None:
            assert old_logprobs is not None
            assert sampling_logprobs is not None
            surrogate = surrogate * importance_weights(
                old_logprobs,
                sampling_logprobs,
                mask,
                self.importance_sampling,
                self.importance_sampling_cap,
            )
        per_token = -surrogate
        sums = {"tokens": mask.sum(), "clipped_tokens": (clipped & mask).sum()}
        if self.beta > 0:
            assert ref_logprobs is not None
            kl = kl_to_reference(logprobs, ref_logprobs)
            per_token = per_token + self.beta * kl
            sums["kl"] = (kl.detach() * mask).sum()
        loss = (weights.unsqueeze(-1) * per_token * mask).sum()
        return loss, sums


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's ``min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A)``, token by token.

    Args:
        logprobs, old_logprobs: [B, T].
        advantages: [B].

    Returns:
        The surrogate [B, T] and a bool [B, T] that marks tokens whose gradient the clip stops.
    """
    ratio = (logprobs - old_logprobs).exp()
    advantage = advantages.unsqueeze(-1)
    free = ratio * advantage
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantage
    return torch.minimum(free, bounded), (bounded < free).detach()


def importance_weights(
    old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, mode: str, cap: float
) -> Tensor:
    """What makes up for a sampler whose probabilities are not quite the learner's, [B, T].

    The ratio of the learner's probability to the sampler's, of each token (``token_...``) or of the
    whole completion (``sequence_...``), is cut off at ``cap`` (``..._truncate``: truncated importance
    sampling, Yao et al. 2025) or, outside of [1 / cap, cap], set to 0 (``..._mask``).

    Args:
        old_logprobs, sampling_logprobs: before the step's first update, [B, T].
        mask: bool [B, T].
        mode: ``token_truncate``, ``token_mask``, ``sequence_truncate`` or ``sequence_mask``.
    """
    gap = (old_logprobs - sampling_logprobs).masked_fill(~mask, 0.0)
    if mode.startswith("sequence"):
        gap = gap.sum(-1, keepdim=True).expand_as(gap)
    ratio = gap.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(max=cap)
    return ratio.masked_fill((ratio > cap) | (ratio < 1 / cap), 0.0)


def kl_to_reference(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of KL(pi || pi_ref) a token, ``exp(d) - d - 1`` with ``d = ref - pi``; >= 0, [B, T].

    Unbiased under samples of pi (the "k3" estimator of Schulman, "Approximating KL divergence").
    """
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1
