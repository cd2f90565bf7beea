"""Which gradient is estimated, and how the rollouts of ragged groups add up to it. numpy only.

The target is ``g = (1/m) sum_i E[a_i(r) s]`` with ``s = grad log pi(y|x_i)`` summed over tokens. An
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
===================  =================  ==================  =======================================

An estimator chooses the weight of a rollout and the ``p_i`` that divides it:

``prompt_mean``
    weight 1/(m n_i), ``p_i`` from the estimate step: Lemma 1 of the paper, unbiased with the true
    ``p_i``; with an estimated one, 1/p is a plug-in with a bias of its own.
``self_normalized``
    weight 1/(m n_i), ``p_i`` the group's own accept rate, so that accepted rollouts weigh
    1/(m |D_i|): the paper's meta algorithm. Biased where groups are small.
``flat``
    weight 1/N for all N rollouts of the step, one pooled ``p``: what GVM's released code does. A
    prompt with more samples counts for more, so the counts change the objective.

The variance of one rollout's share, ``sigma_i^2 = E[a^2 ||s||^2] - ||E[a s]||^2``, follows for rewards
of 0 and 1 from the accept rate, the second moments ``Q1 = E[||s||^2 | accepted]`` and ``Q0``
(rejected), and ``M = ||E[s | accepted]||^2``; since ``E[s] = 0``, the mean gradient of the rejected is
fixed by it. Every term is a product of powers of p and 1 - p, listed in ``_VARIANCE``. For other
rewards ``E[a^2 ||s||^2]`` follows from ``E[r^k ||s||^2]``, k = 0, 1, 2, of both classes
(:func:`second_moment`).

For ``log_likelihood`` r is the accept indicator; elsewhere it is the reward. Under a group baseline
a group of one has advantage 0, and a group of equal rewards has advantages 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dibs.types import Group, InputError, RewardMoments

Powers = tuple[int, int]
BASELINES: dict[str, tuple[str, ...]] = {
    "log_likelihood": ("none", "mean"),
    "expected_reward": ("none", "mean", "leave_one_out"),
    "grpo": ("mean",),
}
_VARIANCE: dict[tuple[str, str], tuple[Powers | None, Powers | None, Powers]] = {
    ("log_likelihood", "none"): ((-1, 0), None, (0, 0)),
    ("log_likelihood", "mean"): ((-1, 2), (0, 1), (0, 0)),
    ("expected_reward", "none"): ((1, 0), None, (2, 0)),
    ("expected_reward", "mean"): ((1, 2), (2, 1), (2, 0)),
    ("expected_reward", "leave_one_out"): ((1, 2), (2, 1), (2, 0)),
    ("grpo", "mean"): ((0, 1), (1, 0), (1, -1)),
}
"""Powers of p and of 1 - p that multiply Q1, Q0 and M in sigma^2; None: the moment does not enter."""
ESTIMATORS = ("prompt_mean", "self_normalized", "flat")
_NOTHING = np.zeros(0)


def check_objective(objective: str, baseline: str) -> None:
    """InputError unless the pair is a row of the table above."""
    if objective not in BASELINES:
        raise InputError(f"unknown objective {objective!r}; known: {', '.join(BASELINES)}")
    if baseline not in BASELINES[objective]:
        raise InputError(
            f"objective {objective} has no baseline {baseline}; choose baseline "
            + " or ".join(BASELINES[objective])
        )


def second_moment_powers(objective: str, baseline: str) -> tuple[Powers | None, Powers | None]:
    """Powers of p and 1 - p that multiply Q1 and Q0 in ``E[a^2 ||s||^2]``; None: not in it."""
    check_objective(objective, baseline)
    return _VARIANCE[objective, baseline][:2]


def variance(
    objective: str,
    baseline: str,
    accept_rate: np.ndarray,
    accepted: np.ndarray,
    rejected: np.ndarray,
    mean_square: np.ndarray | float = 0.0,
) -> np.ndarray:
    """``sigma_i^2`` of one rollout's share of the gradient, for known moments and rewards of 0 and 1.

    Args:
        objective, baseline: a row of the module's table, its baseline taken at its expectation.
        accept_rate: ``p_i`` in [0, 1], [m].
        accepted, rejected: ``Q1`` and ``Q0``, [m]; ignored where the class has probability 0.
        mean_square: ``M = ||E[s | accepted]||^2``, [m]; 0 leaves the mean gradient out, which bounds
            the variance from above.

    Returns:
        float64 [m], at least 0; 0 where p is 0, or where it is 1 and the objective is ``grpo`` or has a
        baseline: there all advantages are 0, or nothing can be learned.
    """
    check_objective(objective, baseline)
    p = np.asarray(accept_rate, dtype=np.float64)
    varied = (p > 0) & ((p < 1) | (baseline == "none"))
    inside = np.where(varied, p, 0.5)
    total = np.zeros(p.shape)
    moments = (accepted, rejected, -np.asarray(mean_square))
    for powers, moment in zip(_VARIANCE[objective, baseline], moments, strict=True):
        if powers is not None:
            total += inside ** powers[0] * (1 - inside) ** powers[1] * np.nan_to_num(moment)
    return np.where(varied, np.maximum(total, 0.0), 0.0)


def second_moment(
    objective: str,
    baseline: str,
    accept_rate: np.ndarray,
    squares: tuple[np.ndarray, np.ndarray],
    rewards: tuple[RewardMoments, RewardMoments],
) -> np.ndarray:
    """``E[a_i^2 ||s||^2]`` for rewards of any value; not for ``log_likelihood``, which takes 0 and 1.

    Args:
        objective, baseline: a row of the module's table, its baseline taken at its expectation.
        accept_rate: ``p_i``, [m].
        squares: ``E[||s||^2]`` of accepted and of rejected completions, [m] each.
        rewards: moments of the rewards of both classes; a class that cannot occur may hold anything
            finite.

    Returns:
        float64 [m]; 0 for ``grpo`` where all rewards are equal.
    """
    check_objective(objective, baseline)
    if objective == "log_likelihood":
        raise ValueError("log_likelihood takes accept indicators; its rewards are 0 and 1")
    shares = (accept_rate, 1 - np.asarray(accept_rate))

    def total(parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return shares[0] * parts[0] + shares[1] * parts[1]

    mean = total((rewards[0].mean, rewards[1].mean))
    subtract_baseline = np.zeros(len(mean)) if baseline == "none" else mean
    result = total(
        tuple(
            square * (r.weighted_square - 2 * subtract_baseline * r.weighted + subtract_baseline**2)
            for square, r in zip(squares, rewards, strict=True)
        )
    ).clip(min=0)
    if objective != "grpo":
        return result
    spread = total((rewards[0].square, rewards[1].square)) - mean**2
    return np.divide(result, spread, out=np.zeros(len(mean)), where=spread > 1e-12 * mean**2)


def subtract_baseline(rewards: np.ndarray, baseline: str) -> np.ndarray:
    """Subtract a group's baseline from its rewards [n_i]."""
    n = len(rewards)
    if baseline == "none":
        return rewards
    if n < 2:
        return np.zeros(n)
    if baseline == "leave_one_out":
        return rewards - (rewards.sum() - rewards) / (n - 1)
    if np.ptp(rewards) == 0:
        return np.zeros(n)
    return rewards - rewards.mean()


def group_advantages(
    rewards: np.ndarray,
    objective: str,
    baseline: str,
    accept_rate: float,
    *,
    bessel: bool = False,
    epsilon: float = 0.0,
    beside: np.ndarray = _NOTHING,
) -> np.ndarray:
    """``a_i(r)`` for one group.

    Args:
        rewards: rewards, or accept indicators for ``log_likelihood``, float [n_i].
        objective, baseline: a row of the module's table.
        accept_rate: the ``p_i`` that divides ``log_likelihood``, in [0, 1]; unused elsewhere. At 0
            nothing was accepted where it was measured, and the advantages are 0.
        bessel: ``grpo`` divides by the standard deviation with n_i - 1, as TRL and verl do.
        epsilon: they also add this to it.
        beside: rewards of further completions of the prompt, which have no advantage themselves but
            enter the baseline and deviation, as if the group were larger.

    Returns:
        float64 [n_i]. By default ``grpo`` divides by the population standard deviation; where it is 0,
        so are the advantages.
    """
    check_objective(objective, baseline)
    known = np.concatenate([rewards, beside]).astype(np.float64)
    centered = subtract_baseline(known, baseline)[: len(rewards)]
    if objective == "log_likelihood":
        return centered / accept_rate if accept_rate > 0 else np.zeros(len(centered))
    if objective == "grpo":
        spread = float(np.std(known, ddof=int(bessel))) if len(known) > 1 else 0.0
        return centered / (spread + epsilon) if spread > 0 else np.zeros(len(centered))
    return centered


def expected_advantages(
    rewards: np.ndarray, objective: str, baseline: str, mean: float, deviation: float
) -> np.ndarray:
    """``a_i(r)`` with the prompt's own moments in place of a group's: what the variance is of.

    Args:
        rewards: rewards, or accept indicators for ``log_likelihood``, float [n_i].
        mean, deviation: of one of them; for ``log_likelihood`` the mean is ``p_i``.

    Returns:
        float64 [n_i]; 0 where a divisor is 0.
    """
    check_objective(objective, baseline)
    centered = rewards if baseline == "none" else rewards - mean
    if objective == "expected_reward":
        return np.asarray(centered, dtype=np.float64)
    divisor = deviation if objective == "grpo" else mean
    return centered / divisor if divisor > 0 else np.zeros(len(rewards))


def objective_rewards(group: Group, objective: str) -> np.ndarray:
    """The r of the objective, float64 [n_i]: accept indicator or reward."""
    return group.accepted.astype(np.float64) if objective == "log_likelihood" else group.rewards


def weigh(
    groups: Sequence[Group],
    *,
    objective: str,
    baseline: str,
    estimator: str,
    accept_rates: np.ndarray,
    beside: Sequence[Group] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Advantages and estimator weights of every rollout of a step.

    The gradient estimate is ``sum_ij weights[i][j] * advantages[i][j] * s(y_ij)``.

    Args:
        groups: m groups of any size n_i >= 0.
        objective, baseline, estimator: see the module's tables.
        accept_rates: ``p_i`` from the estimate step, [m], above 0; used by ``prompt_mean`` on
            ``log_likelihood`` only.
        beside: further completions of each prompt that enter its baseline only; see
            :func:`group_advantages`.

    Returns:
        Two lists of m float64 arrays [n_i].
    """
    return weigh_rewards(
        [objective_rewards(group, objective) for group in groups],
        objective=objective,
        baseline=baseline,
        estimator=estimator,
        accept_rates=accept_rates,
        beside=None
        if beside is None
        else [objective_rewards(group, objective) for group in beside],
    )


def weigh_rewards(
    signals: Sequence[np.ndarray],
    *,
    objective: str,
    baseline: str,
    estimator: str,
    accept_rates: np.ndarray,
    bessel: bool = False,
    epsilon: float = 0.0,
    beside: Sequence[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """:func:`weigh` for completions of which only the objective's r is known, float64 [n_i] a prompt.

    ``bessel``, ``epsilon`` and ``beside``: see :func:`group_advantages`.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    total = sum(map(len, signals))
    others = [_NOTHING] * len(signals) if beside is None else beside
    if estimator == "prompt_mean":
        rates = np.asarray(accept_rates, dtype=np.float64)
    elif estimator == "self_normalized":
        # Over the same completions as the baseline: divided by another rate, it would not cancel.
        over = [
            r if baseline == "none" else np.concatenate([r, o])
            for r, o in zip(signals, others, strict=True)
        ]
        rates = np.array([r.mean() if len(r) else 0.0 for r in over])
    else:
        rates = np.full(len(signals), sum(r.sum() for r in signals) / max(total, 1))
    advantages = [
        group_advantages(r, objective, baseline, float(p), bessel=bessel, epsilon=epsilon, beside=o)
        for r, p, o in zip(signals, rates, others, strict=True)
    ]
    rollouts_per_weight = [total if estimator == "flat" else len(signals) * len(r) for r in signals]
    weights = [
        np.full(len(r), 1.0 / max(share, 1))
        for r, share in zip(signals, rollouts_per_weight, strict=True)
    ]
    return advantages, weights
