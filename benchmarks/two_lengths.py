"""Prompts whose completions have one of two lengths, with true variances of a step's gradient.

For ``length_normalization.py``, which says what is measured. Of the package only inner products of exact
gradients are used, which its tests hold against autograd. Divisors, advantages and variances are
computed here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import stats as distributions

from dibs.config import WarmStartConfig
from dibs.model.grad_norms import gradient_norms
from dibs.model.policy import Policy
from dibs.model.warm_start import build_model, build_tokenizer
from dibs.types import Completion, Group, Prompt, Rollout

CONTEXT = 6
"""Tokens of a prompt."""
Advantages = Callable[[np.ndarray, int], np.ndarray]
"""Rewards of 0 and 1 [groups, n + others], and n, to the advantages of the first n, [groups, n]."""


def accepted_share(rewards: np.ndarray, n: int) -> np.ndarray:
    """1/|D_i|: the default estimator of ``dibs train`` for log_likelihood."""
    own = rewards[:, :n]
    return own / np.maximum(own.mean(1, keepdims=True), 1e-9)


def reward(rewards: np.ndarray, n: int) -> np.ndarray:
    """The reward."""
    return rewards[:, :n]


def leave_one_out(rewards: np.ndarray, n: int) -> np.ndarray:
    """The reward less the mean of the others, as in dibs, TRL's plug-in and verl's ``rloo``."""
    total, size = rewards.sum(1, keepdims=True), rewards.shape[1]
    return rewards[:, :n] - (total - rewards[:, :n]) / max(size - 1, 1) if size > 1 else 0 * rewards


def normalized(ddof: int, epsilon: float) -> Advantages:
    """GRPO: centered, over the deviation with n - ``ddof`` plus ``epsilon``; 0 in a group of one."""

    def advantages(rewards: np.ndarray, n: int) -> np.ndarray:
        size = rewards.shape[1]
        if size < 2:
            return 0 * rewards
        deviation = rewards.std(1, ddof=ddof, keepdims=True)
        centered = rewards[:, :n] - rewards.mean(1, keepdims=True)
        return np.where(deviation > 0, centered / np.maximum(deviation + epsilon, 1e-9), 0.0)

    return advantages


FORMULAS: dict[tuple[str, str], dict[str, Advantages]] = {
    ("log_likelihood", "none"): {"dibs": accepted_share},
    ("expected_reward", "none"): {"dibs": reward},
    ("expected_reward", "leave_one_out"): dict.fromkeys(("dibs", "trl", "verl"), leave_one_out),
    ("grpo", "mean"): {
        "dibs": normalized(0, 0.0),
        "trl": normalized(1, 1e-4),
        "verl": normalized(1, 1e-6),
    },
}
DIVIDES = ("sequence", "grpo", "sapo", "seq-mean-token-mean")
"""The losses that divide a completion's gradient by its length, by their trainers' sources."""


@dataclass(frozen=True)
class Case:
    """A row: what is trained, and what decides the counts."""

    trainer: str
    loss: str
    target: tuple[str, str]
    mode: str

    @property
    def advantages(self) -> Advantages:
        """The trainer's formula."""
        return FORMULAS[self.target][self.trainer]

    @property
    def divides(self) -> bool:
        """Whether the loss divides by a completion's length."""
        return self.loss in DIVIDES


@dataclass
class Scene:
    """A policy, its prompts and their completions.

    ``lengths``: of the completions of each prompt, [m]. ``gram``: inner products of the gradients ``s``
    of the truth's completions, [m, K, K]; ``rewards``: theirs, [m, K]. ``pool``: the completions that
    counts are decided by, a group a prompt.
    """

    policy: Policy
    lengths: np.ndarray
    gram: np.ndarray
    rewards: np.ndarray
    pool: list[Group]
    seed: int
    groups: int
    variances: dict[tuple[object, ...], float] = field(default_factory=dict)
    norms: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)

    def variance(self, case: Case, i: int, n: int, others: int) -> float:
        """Variance of prompt i's gradient from a group of n, over the squared share that n keeps.

        ``others``: further completions in its baseline. Infinite for a group that learns nothing.
        """
        key = (case.advantages, case.divides, i, n, others)
        if key not in self.variances:
            self.variances[key] = self._variance(case, i, n, others)
        return self.variances[key]

    def _variance(self, case: Case, i: int, n: int, others: int) -> float:
        kept = self.share_kept(case, i, n, others)
        if kept <= 0:
            return np.inf
        rng = np.random.default_rng((self.seed, i, n, others))
        size, samples = n + others, self.rewards.shape[1]
        assert 2 * size <= samples, "more samples are needed for two groups of this size"
        order = rng.permuted(np.tile(np.arange(samples), (self.groups, 1)), axis=1)
        pair = order[:, :size], order[:, size : 2 * size]
        first, second = (
            case.advantages(self.rewards[i][drawn], n) / n / self.divisor(case, i) for drawn in pair
        )
        rows, columns = pair[0][:, :n, None], pair[0][:, None, :n]
        square = np.einsum("gi,gij,gj->g", first, self.gram[i][rows, columns], first)
        # Groups without a common completion share their expectation only.
        apart = self.gram[i][rows, pair[1][:, None, :n]]
        return float((square - np.einsum("gi,gij,gj->g", first, apart, second)).mean() / kept**2)

    def share_kept(self, case: Case, i: int, n: int, others: int) -> float:
        """The expected gradient of a group of n over the target's.

        A prompt's completions have one length and ``E[s] = 0``, so it is ``E[A | r = 1] - E[A | r =
        0]`` over the same of the target's advantage.
        """
        if n < 1:
            return 0.0
        rate = float(self.rewards[i].mean())
        rest = n - 1 + others
        accepted = np.arange(rest + 1)
        chances = distributions.binom.pmf(accepted, rest, rate)
        others_rewards = (np.arange(rest) < accepted[:, None]).astype(float)
        means = []
        for own in (1.0, 0.0):
            rewards = np.column_stack([np.full(rest + 1, own), others_rewards])
            means.append(chances @ case.advantages(rewards, n)[:, 0])
        gap = {"log_likelihood": 1 / rate, "grpo": (rate * (1 - rate)) ** -0.5}
        return float((means[0] - means[1]) / gap.get(case.target[0], 1.0))

    def divisor(self, case: Case, i: int) -> float:
        """What the loss divides a completion's gradient by."""
        return float(self.lengths[i]) if case.divides else 1.0

    def sigma(self, case: Case) -> np.ndarray:
        """True standard deviation of one completion's share, [m]."""
        result = []
        for i, (gram, rewards) in enumerate(zip(self.gram, self.rewards, strict=True)):
            mean, deviation = rewards.mean(), rewards.std()
            centered = rewards - mean * (case.target[1] != "none")
            over = {"log_likelihood": mean, "grpo": deviation}.get(case.target[0], 1.0)
            factors = centered / over / self.divisor(case, i)
            products = factors[:, None] * gram * factors
            own, k = np.trace(products), len(rewards)
            result.append(own / k - (products.sum() - own) / (k * (k - 1)))
        return np.sqrt(np.maximum(result, 1e-12))


@torch.no_grad()
def drawn(policy: Policy, context: list[int], count: int, length: int) -> np.ndarray:
    """Completions of exactly ``length`` tokens, int64 [count, length], and their log-probability."""
    ids = torch.tensor([context] * count)
    past, chosen = None, []
    total = torch.zeros(count)
    for _ in range(length):
        made = policy.model(input_ids=ids, past_key_values=past, use_cache=True)
        past = made.past_key_values
        table = (made.logits[:, -1].float() / policy.temperature).log_softmax(-1)
        ids = torch.multinomial(table.exp(), 1)
        total += table.gather(1, ids)[:, 0]
        chosen.append(ids)
    return np.column_stack([torch.cat(chosen, 1).numpy(), total.numpy()])


def build_scene(args: argparse.Namespace, seed: int) -> Scene:
    """Draw a policy and everything that is known of it."""
    tokenizer = build_tokenizer()
    shape = WarmStartConfig(hidden_size=32, layers=2, heads=2, seed=seed)
    policy = Policy(build_model(shape, tokenizer).eval(), tokenizer)
    torch.manual_seed(seed)
    lengths = np.repeat(args.lengths, args.prompts // 2)
    grams, rewards, pool = [], [], []
    for i, length in enumerate(track(lengths, f"policy {seed}", console=Console(stderr=True))):
        context = torch.randint(len(tokenizer), (CONTEXT,)).tolist()
        prompt = Prompt(str(i), "", tuple(context), "")
        rollouts = []
        for *tokens, logprob in drawn(policy, context, args.samples + args.pool, int(length)):
            ids = tuple(int(token) for token in tokens)
            done = Completion(ids, "", (float(logprob),), finished=True)
            right = ids[-1] < len(tokenizer) // 2
            rollouts.append(Rollout(prompt, done, float(right), "", right))
        truth = rollouts[: args.samples]
        measured = gradient_norms(
            policy, [rollout.example() for rollout in truth], group_sizes=[args.samples]
        )
        assert measured.products is not None
        grams.append(measured.products[0])
        rewards.append([rollout.reward for rollout in truth])
        pool.append(Group(prompt, tuple(rollouts[args.samples :])))
    return Scene(policy, lengths, np.array(grams), np.array(rewards), pool, seed, args.groups)
