"""The gradient that an estimator makes of one prompt's group: variance and bias. numpy only.

A group of n completions has the gradient ``sum_j c_j s_j``, where the coefficient ``c_j`` (weight times
advantage) depends on the rewards of the whole group. Given the rewards, the ``s_j`` are independent. So

    ``E ||sum_j c_j s_j||^2 = E[w' M w] + E[sum_j c_j^2 (||s_j||^2 - b_j' M b_j)]``

with ``w = sum_j c_j b_j``, where ``E[s | r] = B' b(r)`` and ``M = B B'``. The features are ``b(r) =
(1, r)``, and ``(r)`` alone where a reward of 0 has no coefficient. For rewards of 0 and 1 this is
exact. For others, coefficients are affine in a completion's own reward, so the best linear ``E[s |
r]`` gives the leading order.

The expectation is over groups drawn from the K completions at hand without replacement. That makes it
unbiased: it is the average over all subsets of n. Groups of more than K are drawn with replacement. The
square of the expected gradient, which is subtracted for the variance, is unbiased to the order 1/K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from dibs.allocation.estimators import weigh_rewards
from dibs.allocation.order_k import pass_at_k
from dibs.allocation.target import Target

Coefficients = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From r of a group [n], and of completions that enter its baseline only, to ``c`` [n]."""
_GROUPS = 64
"""Groups, or pairs of groups, drawn where rewards are not 0 and 1."""


@dataclass(frozen=True)
class PromptGradients:
    """What is known of one prompt's completions and their gradients.

    ``rewards``: r of each, [K]. ``squares``: ``||s||^2``, [K]. ``products``: M, [F, F] for the F
    features of :func:`features`.
    """

    rewards: np.ndarray
    squares: np.ndarray
    products: np.ndarray

    def of(self, chosen: np.ndarray) -> PromptGradients:
        """The same of some completions, by their positions; ``products`` stay those of all."""
        return PromptGradients(self.rewards[chosen], self.squares[chosen], self.products)

    @cached_property
    def is_binary(self) -> bool:
        """Whether all rewards are 0 or 1."""
        return bool(((self.rewards == 0) | (self.rewards == 1)).all())

    @cached_property
    def successes(self) -> int:
        """Completions of a reward above 0."""
        return int((self.rewards > 0).sum())

    @cached_property
    def noise(self) -> np.ndarray:
        """``||s||^2 - ||E[s | r]||^2`` of each level, [L]; see :class:`GroupMoments`."""
        levels, squares = self.rewards, self.squares
        if self.is_binary:
            levels, accepted = np.array([0.0, 1.0]), self.rewards > 0
            squares = np.array(
                [self.squares[each].mean() if each.any() else 0.0 for each in (~accepted, accepted)]
            )
        basis = np.stack([np.ones_like(levels), levels], axis=-1)[:, -len(self.products) :]
        return squares - np.einsum("lf,fg,lg->l", basis, self.products, basis)


def features(rewards: np.ndarray, target: Target) -> np.ndarray:
    """``b(r)`` of rewards [...]: ``(1, r)`` with a baseline, else ``(r)``; float64 [..., F]."""
    r = np.asarray(rewards, dtype=np.float64)
    return np.stack([np.ones_like(r), r], axis=-1) if target.has_baseline else r[..., None]


def own_advantages(rewards: np.ndarray, target: Target) -> np.ndarray:
    """``a(r)`` of a prompt's completions at the moments of their own rewards, float64 [K]."""
    return target.expected_advantages(rewards, float(rewards.mean()), float(rewards.std()))


def mean_products(sums: np.ndarray, known: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """M without bias, from sums over completions.

    With ``V = sum_j b_j s_j'``, the expectation of ``V V'`` is ``S M S`` plus ``sum_j b_j b_j'
    (||s_j||^2 - b_j' M b_j)``, ``S = sum_j b_j b_j'``. This is linear in M. For rewards of 0 and 1
    the solution is the mean over pairs of completions, as in a U-statistic. What no pair determines
    is taken to be 0.

    Args:
        sums: inner products ``V V'``, [F, F].
        known: features of the K completions, [K, F].
        squares: ``||s_j||^2``, [K].

    Returns:
        float64 [F, F].
    """
    size = known.shape[1]
    outer = known[:, :, None] * known[:, None, :]
    total = outer.sum(0)
    flat = outer.reshape(len(known), -1)
    system = np.kron(total, total) - flat.T @ flat
    wanted = sums - np.tensordot(squares, outer, 1)
    solved = np.linalg.lstsq(system, wanted.ravel(), rcond=1e-9)[0].reshape(size, size)
    return (solved + solved.T) / 2


def coefficients(target: Target, estimator: str) -> Coefficients:
    """The coefficients that an estimator gives a group when its prompt is the only one of the step.

    Where the accept rate or the deviation that divides comes from elsewhere, it is 1 here. For ``flat``
    the same holds.
    """
    own = "prompt_mean" if estimator == "flat" else estimator

    def of_group(rewards: np.ndarray, others: np.ndarray) -> np.ndarray:
        advantages, weights = weigh_rewards(
            [rewards],
            target,
            own,
            accept_rates=np.ones(1),
            deviations=np.ones(1) if target.known_deviation else None,
            baseline_only=[others],
        )
        return advantages[0] * weights[0]

    return of_group


@dataclass(frozen=True)
class GroupMoments:
    """Moments of the coefficients of groups: of ``w``, ``E[w w']`` and ``E[w] E[w]'``, [F, F] each.

    ``spent``: ``E[sum c_j^2]`` over the group's copies of each level, [L]. For rewards of 0 and 1 the
    levels are those two; otherwise every completion is one. ``kept``: ``E[sum_j c_j (r_j - p)]``, where
    completions outside of the group stand for p.
    """

    second: np.ndarray
    signal: np.ndarray
    spent: np.ndarray
    kept: float


@dataclass
class GroupGradient:
    """The gradient of groups of one estimator. Keeps what it has worked out.

    ``coefficients``: see :func:`coefficients`.
    """

    target: Target
    coefficients: Coefficients
    _tables: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    _moments: dict[tuple[int, int, int, int], GroupMoments] = field(default_factory=dict)

    def variance_and_kept(
        self, prompt: PromptGradients, count: int, others: int = 0
    ) -> tuple[float, float]:
        """Variance (trace) of the gradient of a group, and its expected gradient on a scale.

        The scale is ``E[sum_j c_j (r_j - p)]``: of ``E[s | r] = E[s] + (r - p) d``, what multiplies
        d. As ``E[s] = 0`` on policy, it is all of the expected gradient. See :func:`wanted`.

        Args:
            prompt: its completions, at least one.
            count: completions of the group, n.
            others: further ones, which enter its baseline only.
        """
        if count == 0:
            return 0.0, 0.0
        moments = self._of(prompt, count, others)
        variance = np.sum((moments.second - moments.signal) * prompt.products)
        return float(variance + moments.spent @ prompt.noise), moments.kept

    def _of(self, prompt: PromptGradients, count: int, others: int) -> GroupMoments:
        """Moments of the coefficients of groups of the prompt's completions."""
        if not prompt.is_binary:
            return self._by_drawing(prompt.rewards, count, others)
        key = (count, others, prompt.successes, len(prompt.rewards))
        if key not in self._moments:
            self._moments[key] = self._by_enumeration(*key)
        return self._moments[key]

    def _by_enumeration(self, count: int, others: int, successes: int, trials: int) -> GroupMoments:
        """Over the numbers of accepted completions in the group and among the others."""
        table = self._table(count, others)
        inside = np.arange(count + 1.0)
        chance = _chances(count, others, successes, trials)
        sums = np.stack([(count - inside) * table[..., 0], inside * table[..., 1]], axis=-1)
        spent = np.stack([(count - inside) * table[..., 0] ** 2, inside * table[..., 1] ** 2], -1)
        w = sums @ features(np.array([0.0, 1.0]), self.target)
        mean = np.tensordot(chance, w, 2)
        signal = np.outer(mean, mean)
        left = trials - count - others
        if left > 0:
            # The square of a mean is too large by the mean's own variance: by the jackknife.
            for successes_left, copies in (
                (successes - 1, successes),
                (successes, trials - successes),
            ):
                if copies:
                    without = _chances(count, others, successes_left, trials - 1)
                    off = np.tensordot(without, w, 2) - mean
                    signal -= np.outer(off, off) * copies * (trials - 1) / trials
        taken = inside + np.arange(others + 1.0)[:, None]
        rate = (successes - taken) / left if left > 0 else successes / trials
        kept = sums[..., 1] - rate * sums.sum(-1)
        return GroupMoments(
            np.einsum("bk,bkf,bkg->fg", chance, w, w),
            signal,
            np.tensordot(chance, spent, 2),
            float(np.sum(chance * kept)),
        )

    def _table(self, count: int, others: int) -> np.ndarray:
        """``c`` of a rejected and of an accepted completion, [others + 1, n + 1, 2]."""
        if (count, others) not in self._tables:
            table = np.zeros((others + 1, count + 1, 2))
            for b in range(others + 1):
                beside = (np.arange(others) < b).astype(np.float64)
                for k in range(count + 1):
                    rewards = (np.arange(count) >= count - k).astype(np.float64)
                    found = self.coefficients(rewards, beside)
                    table[b, k] = found[0] * (k < count), found[-1] * (k > 0)
            self._tables[count, others] = table
        return self._tables[count, others]

    def _by_drawing(self, rewards: np.ndarray, count: int, others: int) -> GroupMoments:
        rng = np.random.default_rng(0)
        size, trials = count + others, len(rewards)
        pairs = 2 * size <= trials
        basis = features(rewards, self.target)
        second, signal = np.zeros((2, basis.shape[1], basis.shape[1]))
        spent, kept = np.zeros(trials), 0.0
        mean = np.zeros(basis.shape[1])
        for _ in range(_GROUPS):
            picked = rng.choice(trials, 2 * size if pairs else size, replace=size > trials)
            both = []
            for group in np.split(picked, 2) if pairs else [picked]:
                mine = group[:count]
                found = self.coefficients(rewards[mine], rewards[group[count:]])
                both.append(found @ basis[mine])
                np.add.at(spent, mine, found**2)
                second += np.outer(both[-1], both[-1])
                outside = np.delete(rewards, group)
                kept += found @ (rewards[mine] - (outside if len(outside) else rewards).mean())
            mean += np.sum(both, axis=0)
            signal += np.outer(both[0], both[-1])
        groups = _GROUPS * (2 if pairs else 1)
        product = signal / _GROUPS if pairs else np.outer(mean, mean) / groups**2
        return GroupMoments(
            second / groups, (product + product.T) / 2, spent / groups, kept / groups
        )


def wanted(rewards: np.ndarray, target: Target) -> float:
    """The target's gradient of a prompt on the scale of :meth:`.GroupGradient.variance_and_kept`.

    It is ``E[a(r) (r - p)]``: 1 - p for ``log_likelihood``, times the chance of a success among k where
    it has the order k; the standard deviation of r for ``grpo``; else its variance. At least two
    completions are needed. The standard deviation is a
    jackknife estimate: a root of few completions is too small, by a fifth where one of 48 was
    accepted.
    """
    if target.fits_accepted:
        n, successes = len(rewards), int(rewards.sum())
        whole = (n - successes) / n
        # Of the others: a completion that is counted as rejected cannot be one of the k accepted.
        others = min(successes, n - 1)
        return whole * (pass_at_k(n - 1, others, target.order) if target.order else 1.0)
    if not target.divides_by_deviation:
        return float(rewards.var(ddof=1))
    n = len(rewards)
    squares, total = (rewards**2).sum() - rewards**2, rewards.sum() - rewards
    others = np.sqrt((squares / (n - 1) - (total / (n - 1)) ** 2).clip(min=0))
    return float(max(n * rewards.std() - (n - 1) * others.mean(), 0.0))


def _chances(count: int, others: int, successes: int, trials: int) -> np.ndarray:
    """Chance of b accepted ones among the others and of k in the group, [others + 1, n + 1]."""
    k, b = np.arange(count + 1.0), np.arange(others + 1.0)[:, None]
    ways = _log_choose(count, k) + _log_choose(others, b)
    drawn = count + others
    if drawn <= trials:
        rest = _log_choose(trials - drawn, successes - k - b)
        return np.exp(ways + rest - _log_choose(trials, np.float64(successes)))
    rate = successes / trials
    return np.exp(ways + xlogy(k + b, rate) + xlog1py(drawn - k - b, -rate))


def _log_choose(n: int, k: np.ndarray | np.float64) -> np.ndarray:
    """Logarithm of the binomial coefficient; -inf where it is 0."""
    inside = (k >= 0) & (k <= n)
    safe = np.where(inside, k, 0)
    value = gammaln(n + 1) - gammaln(safe + 1) - gammaln(n - safe + 1)
    return np.where(inside, value, -np.inf)


def shares_of_parts(
    gradient: GroupGradient,
    prompts: Sequence[PromptGradients],
    counts: Sequence[np.ndarray],
    scales: Sequence[np.ndarray],
    others: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Variance and expected gradient of a step that is the mean of independent parts, [m] each.

    Args:
        prompts: completions that judge, one entry a prompt.
        counts: of each part, int [m].
        scales: what the coefficients of each part are multiplied by, [m].
        others: completions that enter the baselines of a part only.
    """
    variance, kept = np.zeros((2, len(prompts)))
    for numbers, factors in zip(counts, scales, strict=True):
        for i, (prompt, n, factor) in enumerate(zip(prompts, numbers, factors, strict=True)):
            one, own = gradient.variance_and_kept(prompt, int(n), others)
            variance[i] += factor**2 * one
            kept[i] += factor * own
    return variance / len(counts) ** 2, kept / len(counts)
