"""Log-probabilities, advantages and weights in, a loss out. Pure torch functions.

``B`` completions of at most ``T`` tokens. Every loss is a plain sum over completions whose weights
already hold all normalisation (1/(m n_i) and kin), so it adds up over micro-batches exactly.
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
    """

    clip: tuple[float, float] | None
    beta: float = 0.0

    def __call__(
        self,
        logprobs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        weights: Tensor,
        old_logprobs: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) and sums for the metrics.

        Args:
            logprobs: of the policy being trained, [B, T].
            mask: bool [B, T], true on completion tokens.
            advantages, weights: [B].
            old_logprobs: of the policy that sampled, [B, T]; needed with ``clip``.
            ref_logprobs: of the reference policy, [B, T]; needed with ``beta`` > 0.
        """
        if self.clip is None:
            surrogate = advantages.unsqueeze(-1) * logprobs
            clipped = torch.zeros_like(mask)
        else:
            assert old_logprobs is not None
            surrogate, clipped = clipped_surrogate(logprobs, old_logprobs, advantages, *self.clip)
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


def kl_to_reference(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of KL(pi || pi_ref) a token, ``exp(d) - d - 1`` with ``d = ref - pi``; >= 0, [B, T].

    Unbiased under samples of pi (the "k3" estimator of Schulman, "Approximating KL divergence").
    """
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1
