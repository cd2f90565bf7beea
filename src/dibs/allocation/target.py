"""The gradient that is estimated: an objective and a baseline. numpy only.

The gradient is ``g = (1/m) sum_i E[a_i(r) s]`` with ``s = grad log pi(y|x_i)``, summed over tokens. An
objective and a baseline choose ``a_i``:

===================  =================  ==================  =======================================
objective            baseline           a_i(r)              known as
===================  =================  ==================  =======================================
``log_likelihood``   ``none``           r / p_i             EM; GVM's target (arXiv 2505.02391)
``log_likelihood``   ``mean``           (r - mean) / p_i    MaxRL; same expectation
``expected_reward``  ``none``           r                   REINFORCE, RAFT as released
``expected_reward``  ``mean``           r - mean            Dr. GRPO (biased by (n-1)/n)
``expected_reward``  ``leave_one_out``  r - mean of others  RLOO, unbiased
``grpo``             ``mean``           (r - mean) / std    GRPO
any                  ``history``        r - b in place of   A baseline known before the group is drawn
                                        r - mean
any                  ``shrinkage``      the same, b drawn   Between ``history`` and ``leave_one_out``
                                        towards the others  (compare arXiv 2511.03710)
===================  =================  ==================  =======================================

Two variants have a target that does not depend on the counts. With an ``order`` k, ``log_likelihood``
is cut off after k terms, and ``1 / p_i`` becomes ``(1 - (1 - p_i)^k) / p_i`` (:mod:`.order_k`). With
``known_deviation``, ``grpo`` divides by a standard deviation that is known before the group is drawn
(:mod:`.deviations`), and the mean is that of the other completions. Otherwise ``grpo`` has another
target for every group size (:meth:`Target.of_groups`).

With ``given``, a trainer has advantages of its own, such as a critic's of every token. Then ``a_i`` is
1, and ``s`` stands for the completion's whole term, ``sum_t A_t grad log pi(y_t)``.

For ``log_likelihood`` r is the accept indicator; elsewhere it is the reward. Under the group baselines
``mean`` and ``leave_one_out``, groups of one and groups of equal rewards have advantages 0. ``history``
and ``shrinkage`` need no group (:class:`KnownBaseline`).

The variance of one rollout's share is ``sigma_i^2 = E[a^2 ||s||^2] - ||E[a s]||^2``
(:mod:`.moment_powers`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from dibs.allocation.moment_powers import GIVEN, KNOWN_BASELINES, ROWS, Powers, Row
from dibs.allocation.order_k import expected_pass, order_k_advantages
from dibs.types import Group, InputError, RewardMoments

NOTHING = np.zeros(0)
OBJECTIVES = tuple(dict.fromkeys(objective for objective, _ in ROWS))
BASELINES: dict[str, tuple[str, ...]] = {
    objective: tuple(baseline for own, baseline in ROWS if own == objective)
    for objective in OBJECTIVES
}
"""The baselines that each objective allows. The first is taken where none is named."""


class NamesTarget(Protocol):
    """Anything that names an objective and a baseline, such as a section of a configuration."""

    @property
    def objective(self) -> str:
        """One of ``OBJECTIVES``."""

    @property
    def baseline(self) -> str:
        """One of the objective's ``BASELINES``."""

    @property
    def estimator(self) -> str:
        """``order_k``, or another for which ``order`` means nothing."""

    @property
    def order(self) -> int:
        """k of ``order_k``."""

    @property
    def deviation(self) -> str:
        """``expected``, or another for which ``grpo`` divides by the group's own."""


class KnownBaseline(NamedTuple):
    """What is known of a prompt's r before the completions that it is subtracted from are drawn.

    ``mean``: expected r. ``weight``: how many completions it is worth against those of a group, at least
    0; for a Beta posterior of the accept rate, alpha + beta. ``shrinkage`` subtracts from ``r_j`` the
    mean of the others and of ``weight`` completions of that ``mean``: with a Beta posterior, the accept
    rate expected once the others are seen too. Neither baseline depends on ``r_j`` itself, so both leave
    the gradient unbiased, also for a group of one.
    """

    mean: float
    weight: float


@dataclass(frozen=True)
class Target:
    """A row of the module's table, or a variant of it.

    ``order``: of the truncated ``log_likelihood``; None: not truncated. ``known_deviation``: whether
    ``grpo`` divides by a deviation that is given. ``group``: completions of every group, where all have
    the same number and that changes the target (:meth:`of_groups`); None: otherwise. ``given``: whether
    the trainer computes the advantages, which gradients then hold already; with objective
    ``expected_reward`` and baseline ``none``.

    Raises InputError for a pair that is not in the table, or a variant of another objective.
    """

    objective: str
    baseline: str
    order: int | None = None
    known_deviation: bool = False
    group: int | None = None
    given: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(
                f"unknown objective {self.objective!r}; known: {', '.join(OBJECTIVES)}"
            )
        if self.baseline not in BASELINES[self.objective]:
            raise InputError(
                f"objective {self.objective} has no baseline {self.baseline}; choose baseline "
                + " or ".join(BASELINES[self.objective])
            )
        if self.order is not None and not (self.fits_accepted and self.order >= 1):
            raise InputError(
                f"order {self.order} of objective {self.objective}: an order is at least 1, and only "
                "log_likelihood has one"
            )
        if self.knows_baseline and self.order is not None:
            raise InputError(
                f"estimator order_k has no baseline {self.baseline}; choose baseline none or mean"
            )
        if self.known_deviation and not self.divides_by_deviation:
            raise InputError(f"objective {self.objective} divides by no deviation; only grpo does")
        if self.given and (self.objective, self.baseline) != ("expected_reward", "none"):
            raise InputError(
                f"advantages given, objective {self.objective}, baseline {self.baseline}: the trainer "
                "has subtracted its own baseline; set objective to expected_reward and baseline to none"
            )

    @classmethod
    def of(cls, options: NamesTarget) -> Target:
        """The target that a configuration names."""
        order = options.order if options.estimator == "order_k" else None
        return cls(options.objective, options.baseline, order, options.deviation == "expected")

    @classmethod
    def named(cls, objective: str, baseline: str | None = None, order: int | None = None) -> Target:
        """The target of two names. Without a baseline it has the first that the objective allows."""
        return cls(objective, first_baseline(objective) if baseline is None else baseline, order)

    def of_groups(self, size: int) -> Target:
        """The target of groups of ``size`` completions each.

        Where ``grpo`` divides by the group's own deviation, a group of equal rewards has no gradient. A
        prompt then teaches as often as the rewards of its groups differ: :meth:`spread`. No other
        target depends on the size.
        """
        if not self.divides_by_deviation or self.known_deviation or size < 2:
            return self
        return replace(self, group=size)

    def spread(self, accept_rate: np.ndarray) -> np.ndarray:
        """Probability ``1 - p^g - (1 - p)^g`` that the rewards of a group of g differ."""
        assert self.group is not None
        return np.asarray(1 - (accept_rate**self.group + (1 - accept_rate) ** self.group))

    @property
    def fits_accepted(self) -> bool:
        """Whether r is the accept indicator, divided by the accept rate."""
        return self.objective == "log_likelihood"

    @property
    def divides_by_deviation(self) -> bool:
        """Whether advantages are divided by the standard deviation of the rewards."""
        return self.objective == "grpo"

    @property
    def has_baseline(self) -> bool:
        """Whether something is subtracted from the rewards of a group."""
        return self.baseline != "none"

    @property
    def knows_baseline(self) -> bool:
        """Whether what is subtracted is known from other completions; see :class:`KnownBaseline`."""
        return self.baseline in KNOWN_BASELINES

    @property
    def needs_groups(self) -> bool:
        """Whether a group of one teaches nothing, since its baseline is its own reward."""
        return self.has_baseline and not self.knows_baseline

    @property
    def least_count(self) -> int:
        """Fewest completions of a prompt of which the target can be estimated without bias."""
        return self.order or 0

    def truncation(self, accept_rate: np.ndarray | float) -> np.ndarray | float:
        """What an order multiplies advantages with, in [0, 1]: ``1 - (1 - p)^k``; 1 without one."""
        return 1.0 if self.order is None else expected_pass(accept_rate, self.order)

    @property
    def square_powers(self) -> tuple[Powers | None, Powers | None]:
        """What multiplies Q1 and Q0 in ``E[a^2 ||s||^2]``; None: the moment does not enter."""
        return self._row[:2]

    @property
    def _row(self) -> Row:
        return GIVEN if self.given else ROWS[self.objective, self.baseline]

    def signal(self, accepted: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """The r of completions, float64 [n]: whether each was accepted, or its reward."""
        return accepted.astype(np.float64) if self.fits_accepted else rewards

    def rewards(self, group: Group) -> np.ndarray:
        """The r of a group's completions, float64 [n_i]."""
        return self.signal(group.accepted, group.rewards)

    def advantages(
        self,
        rewards: np.ndarray,
        accept_rate: float,
        *,
        bessel: bool = False,
        epsilon: float = 0.0,
        deviation: float | None = None,
        baseline: KnownBaseline | None = None,
        baseline_only: np.ndarray = NOTHING,
    ) -> np.ndarray:
        """``a_i(r)`` for one group.

        Args:
            rewards: r of each completion, float [n_i].
            accept_rate: the ``p_i`` that divides ``log_likelihood``, in [0, 1]; unused elsewhere and
                with an ``order``. It is 0 where no completion was accepted; the advantages are then 0.
            bessel: whether ``grpo`` divides by the standard deviation with n_i - 1, as TRL and verl do.
            epsilon: added to that deviation, as TRL and verl do.
            deviation: what ``grpo`` divides by under ``known_deviation``; unused elsewhere.
            baseline: what ``history`` and ``shrinkage`` subtract; unused elsewhere.
            baseline_only: r of further completions of the prompt. They get no advantage themselves, but
                they enter the baseline and the deviation, as if the group were larger. A known baseline
                has them already.

        Returns:
            float64 [n_i]. By default ``grpo`` divides by the population standard deviation. Where the
            deviation is 0, the advantages are 0. With ``given`` they are 1.
        """
        if self.given:
            return np.ones(len(rewards))
        if self.order is not None:
            return order_k_advantages(
                rewards, self.order, baseline=self.has_baseline, baseline_only=baseline_only
            )
        if self.knows_baseline:
            if baseline is None:
                raise ValueError(f"baseline {self.baseline} needs what is known of the prompt")
            known = np.asarray(rewards, dtype=np.float64)
            centered = self._less_known(known, baseline)
        else:
            known = np.concatenate([rewards, baseline_only]).astype(np.float64)
            centered = self._centered(known)[: len(rewards)]
        if self.known_deviation:
            if deviation is None:
                raise ValueError("a target of known deviation needs that deviation")
            divisor = deviation + epsilon
            return centered / divisor if divisor > 0 else np.zeros(len(centered))
        if self.fits_accepted:
            return centered / accept_rate if accept_rate > 0 else np.zeros(len(centered))
        if self.divides_by_deviation:
            spread = float(np.std(known, ddof=int(bessel))) if len(known) > 1 else 0.0
            return centered / (spread + epsilon) if spread > 0 else np.zeros(len(centered))
        return centered

    def expected_advantages(self, rewards: np.ndarray, mean: float, deviation: float) -> np.ndarray:
        """``a_i(r)`` with the prompt's own moments in place of a group's, as sigma_i^2 has it.

        Args:
            rewards: r of each completion, float [n_i].
            mean, deviation: expectation and standard deviation of r over the prompt's completions. For
                ``log_likelihood`` the mean is ``p_i``.

        Returns:
            float64 [n_i]; 0 where a divisor is 0.
        """
        if self.given:
            return np.ones(len(rewards))
        centered = rewards - mean if self.has_baseline else rewards
        if not (self.fits_accepted or self.divides_by_deviation):
            return np.asarray(centered, dtype=np.float64)
        divisor = deviation if self.divides_by_deviation else mean
        scaled = centered / divisor * self.truncation(mean) if divisor > 0 else 0 * centered
        return np.asarray(scaled, dtype=np.float64)

    def variance(
        self,
        accept_rate: np.ndarray,
        accepted: np.ndarray,
        rejected: np.ndarray,
        mean_square: np.ndarray | float = 0.0,
    ) -> np.ndarray:
        """``sigma_i^2`` of one rollout's share of the gradient, for rewards of 0 and 1.

        The baseline is taken at its expectation.

        Args:
            accept_rate: ``p_i`` in [0, 1], [m].
            accepted, rejected: ``Q1`` and ``Q0``, [m]; ignored where the class has probability 0.
            mean_square: ``M = ||E[s | accepted]||^2``, or ``||E[s]||^2`` if ``given``, [m]. 0 leaves
                the mean gradient out, which bounds the variance from above.

        Returns:
            float64 [m], at least 0. Unless ``given``, it is 0 where p is 0. With a baseline it is also
            0 where p is 1, because all advantages are then 0.
        """
        p = np.asarray(accept_rate, dtype=np.float64)
        varied = (p > 0) & ((p < 1) | (not self.has_baseline)) | self.given
        inside = np.where(varied, p, 0.5)
        total, moments = np.zeros(p.shape), (accepted, rejected, -np.asarray(mean_square))
        for powers, moment in zip(self._row, moments, strict=True):
            if powers is not None:
                total += inside ** powers[0] * (1 - inside) ** powers[1] * np.nan_to_num(moment)
        total *= self.truncation(inside) ** 2
        return np.where(varied, np.maximum(total, 0.0), 0.0)

    def second_moment(
        self,
        accept_rate: np.ndarray,
        squares: tuple[np.ndarray, np.ndarray],
        rewards: tuple[RewardMoments, RewardMoments],
    ) -> np.ndarray:
        """``E[a_i^2 ||s||^2]`` for rewards of any value, the baseline taken at its expectation.

        Args:
            accept_rate: ``p_i``, [m].
            squares: ``E[||s||^2]`` of accepted and of rejected completions, [m] each.
            rewards: moments of the rewards of both classes. A class that cannot occur may hold anything
                finite.

        Returns:
            float64 [m]; 0 for ``grpo`` where all rewards are equal.

        Raises ValueError for ``log_likelihood``, whose r is 0 or 1.
        """
        if self.fits_accepted:
            raise ValueError("log_likelihood takes accept indicators; its rewards are 0 and 1")

        def total(parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            return accept_rate * parts[0] + (1 - accept_rate) * parts[1]

        if self.given:
            return total(squares)
        mean = total((rewards[0].mean, rewards[1].mean))
        baseline = mean if self.has_baseline else np.zeros(len(mean))
        result = total(
            tuple(
                square * (r.weighted_square - 2 * baseline * r.weighted + baseline**2)
                for square, r in zip(squares, rewards, strict=True)
            )
        ).clip(min=0)
        if not self.divides_by_deviation:
            return result
        spread = total((rewards[0].square, rewards[1].square)) - mean**2
        return np.divide(result, spread, out=np.zeros(len(mean)), where=spread > 1e-12 * mean**2)

    def _less_known(self, rewards: np.ndarray, known: KnownBaseline) -> np.ndarray:
        """Rewards of a group [n_i] less a baseline that others know."""
        if self.baseline == "history":
            return rewards - known.mean
        others = rewards.sum() - rewards
        weight = max(known.weight, 1e-12)
        return rewards - (weight * known.mean + others) / (weight + len(rewards) - 1)

    def _centered(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards of a group [n_i] less its baseline."""
        n = len(rewards)
        if not self.has_baseline:
            return rewards
        if n < 2:
            return np.zeros(n)
        if self.baseline == "leave_one_out" or self.known_deviation:
            return rewards - (rewards.sum() - rewards) / (n - 1)
        if np.ptp(rewards) == 0:
            return np.zeros(n)
        return rewards - rewards.mean()


LOG_LIKELIHOOD = Target("log_likelihood", "none")  # GVM's target


def first_baseline(objective: str) -> str:
    """The baseline of an objective that is named alone; ``none`` for an unknown objective."""
    return BASELINES[objective][0] if objective in OBJECTIVES else "none"


def unbiased_baseline(objective: str) -> str | None:
    """The group baseline that leaves an objective's gradient unbiased at any count; None without one."""
    known = objective in OBJECTIVES and "leave_one_out" in BASELINES[objective]
    return "leave_one_out" if known else None
