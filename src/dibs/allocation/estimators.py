"""How the rollouts of ragged groups add up to a gradient. numpy only.

An estimator chooses the weight of a rollout and, for targets that divide by it, the accept rate ``p_i``
(``target``):

``prompt_mean``
    weight 1/(m n_i), ``p_i`` from the estimate step: Lemma 1 of arXiv 2505.02391. It is unbiased with
    the true ``p_i``; with an estimated one, 1/p has a bias of its own.
``self_normalized``
    weight 1/(m n_i), ``p_i`` the group's own accept rate, so that accepted rollouts weigh
    1/(m |D_i|): the paper's meta algorithm. It is biased where groups are small.
``order_k``
    weight 1/(m n_i), and no ``p_i``: advantages of the truncated log-likelihood (``order_k``). It is
    unbiased where groups have k completions or more, so its target does not depend on the counts.
``flat``
    weight 1/N for all N rollouts of the step, one pooled ``p``: what GVM's released code does. A
    prompt with more samples counts for more, so the counts change the objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dibs.allocation.target import NOTHING, KnownBaseline, Target
from dibs.types import Group, InputError

ESTIMATORS = ("prompt_mean", "self_normalized", "order_k", "flat")


def weigh(
    groups: Sequence[Group],
    target: Target,
    estimator: str,
    *,
    accept_rates: np.ndarray,
    deviations: np.ndarray | None = None,
    baselines: Sequence[KnownBaseline] | None = None,
    baseline_only: Sequence[Group] | None = None,
    shares: np.ndarray | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Advantages and estimator weights of every rollout of a step.

    The gradient estimate is ``sum_ij weights[i][j] * advantages[i][j] * s(y_ij)``.

    Args:
        groups: m groups of any size n_i >= 0.
        estimator: see the module's list.
        accept_rates: ``p_i`` from the estimate step, [m], above 0; used by ``prompt_mean`` on
            ``log_likelihood`` only.
        deviations: what ``grpo`` divides by, [m]; needed where the target says that it is known.
        baselines: what ``history`` and ``shrinkage`` subtract, one a prompt; needed for these.
        baseline_only: further completions of each prompt, which enter its baseline only; see
            :meth:`.Target.advantages`.
        shares: what the weights of each group add up to, [m]; None: 1/m each. Where prompts were drawn
            from a pool of N with expected counts ``e_i``, it is ``n_i / (N e_i)``.

    Returns:
        Two lists of m float64 arrays [n_i].

    Raises InputError for an unknown estimator.
    """
    return weigh_rewards(
        [target.rewards(group) for group in groups],
        target,
        estimator,
        accept_rates=accept_rates,
        deviations=deviations,
        baselines=baselines,
        baseline_only=None
        if baseline_only is None
        else [target.rewards(group) for group in baseline_only],
        shares=shares,
    )


def weigh_rewards(
    signals: Sequence[np.ndarray],
    target: Target,
    estimator: str,
    *,
    accept_rates: np.ndarray,
    deviations: np.ndarray | None = None,
    baselines: Sequence[KnownBaseline] | None = None,
    bessel: bool = False,
    epsilon: float = 0.0,
    baseline_only: Sequence[np.ndarray] | None = None,
    shares: np.ndarray | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """:func:`weigh` for completions of which only the target's r is known, float64 [n_i] a prompt.

    ``bessel``, ``epsilon`` and ``baseline_only``: see :meth:`.Target.advantages`. InputError also for
    ``shares`` with ``flat``, whose weights are all the same.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    if (estimator == "order_k") != (target.order is not None):
        raise InputError(
            f"estimator {estimator} with order {target.order}: order_k needs a target with an order, "
            "and the others one without"
        )
    total = sum(map(len, signals))
    others = [NOTHING] * len(signals) if baseline_only is None else baseline_only
    if estimator in ("prompt_mean", "order_k"):
        rates = np.asarray(accept_rates, dtype=np.float64)
    elif estimator == "self_normalized":
        # Over the same completions as the baseline: divided by another rate, it would not cancel.
        over = [
            np.concatenate([r, o]) if target.has_baseline else r
            for r, o in zip(signals, others, strict=True)
        ]
        rates = np.array([r.mean() if len(r) else 0.0 for r in over])
    else:
        rates = np.full(len(signals), sum(r.sum() for r in signals) / max(total, 1))
    unknown = [None] * len(signals)
    known = unknown if deviations is None else [float(each) for each in deviations]
    advantages = [
        target.advantages(
            r, float(p), bessel=bessel, epsilon=epsilon, deviation=d, baseline=b, baseline_only=o
        )
        for r, p, d, b, o in zip(signals, rates, known, baselines or unknown, others, strict=True)
    ]
    if estimator == "flat":
        if shares is not None:
            raise InputError("estimator flat weighs all completions alike; it has no other weights")
        return advantages, [np.full(len(r), 1.0 / max(total, 1)) for r in signals]
    own = np.full(len(signals), 1.0 / max(len(signals), 1)) if shares is None else shares
    return advantages, [
        np.full(len(r), float(share) / max(len(r), 1))
        for r, share in zip(signals, own, strict=True)
    ]
