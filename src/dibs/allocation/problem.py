"""Prompt statistics, a budget and bounds: everything that an allocator may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from dibs.allocation.least_variance import least_variance
from dibs.allocation.posterior import Factor, Posterior, expected_tokens, fit_posterior
from dibs.allocation.returned import LARGEST_COUNT
from dibs.allocation.target import LOG_LIKELIHOOD, Target
from dibs.types import InputError, PromptStats

_DOUBT = 10.0
"""The factor by which what was not seen may differ from what is expected of it."""


@dataclass(frozen=True)
class Tokens:
    """A budget of tokens: at most ``total`` of them may be spent.

    ``cost``: expected tokens of a completion of each prompt, above 0, float64 [m].
    """

    total: float
    cost: np.ndarray


@dataclass(frozen=True)
class Bounds:
    """Fewest and most completions of a prompt: one number for all, or one a prompt, [m].

    ``upper`` None sets no upper bound. ``every_prompt``: whether every prompt gets as many as the
    target's order takes, as in a batch that is trained on as a whole.
    """

    lower: ArrayLike = 0
    upper: ArrayLike | None = None
    every_prompt: bool = True


@dataclass(frozen=True)
class Penalty:
    """GVM's penalty on prompts of low accept rate p: the variance is divided by ``1 + alpha / p^beta``.

    ``alpha`` is at least 0 and ``beta`` at least 1 (arXiv 2505.02391, eq. (5)).

    Raises InputError for other values.
    """

    alpha: float = 1e-3
    beta: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < np.inf:
            raise InputError(f"accept_rate_penalty is {self.alpha}; it must be at least 0")
        if not 1 <= self.beta < np.inf:
            raise InputError(f"accept_rate_power is {self.beta}; it must be at least 1")

    def factor(self, accept_rate: np.ndarray) -> np.ndarray:
        """What the variance of prompts of some accept rates, above 0, is multiplied by."""
        power = accept_rate**self.beta
        share: np.ndarray = power / np.maximum(power + self.alpha, 1e-300)
        return share


UNBOUNDED = Bounds()
GVM_PENALTY = Penalty()


@dataclass(frozen=True)
class AllocationProblem:
    """Everything an allocator may look at. Build it with :func:`pose`, which checks it.

    ``budget``: what ``sum_i cost_i n_i`` must be where ``exact`` is set, and what it may be at most
    otherwise. ``cost``: of a completion of each prompt, above 0, float64 [m]; all ones where the budget
    is one of completions, which are spent to the last one. ``lower`` and ``upper``: counts allowed to
    each prompt, int64 [m]. ``target``: the gradient whose variance the counts are to lower.
    """

    stats: PromptStats
    budget: float
    lower: np.ndarray
    upper: np.ndarray
    cost: np.ndarray
    exact: bool
    target: Target
    penalty: Penalty

    @cached_property
    def posterior(self) -> Posterior:
        """Estimates from the statistics."""
        return fit_posterior(self.stats)

    @cached_property
    def sigma(self) -> np.ndarray:
        """Standard deviation of one rollout's share of the gradient, estimated from above; [m].

        The estimate is an upper bound because the prompt's mean gradient is not subtracted. For
        ``log_likelihood`` it is multiplied by the root of ``1 / (1 + alpha / p^beta)``, as eq. (5)
        weighs the variance. Without that factor a prompt would get the more completions, the less hope
        it has. With the default penalty, prompts of p = 0.03 get most. A target with an ``order`` needs
        no such factor: its second moment itself is small where p is. Where all groups have one size,
        ``grpo`` has no gradient in those of equal rewards, so its second moment is that of the others.
        """
        return np.maximum(np.sqrt(self._class_variances.sum(0)), 1e-150)

    @cached_property
    def _class_variances(self) -> np.ndarray:
        """What accepted and rejected completions add to ``sigma^2``, [2, m]."""
        factor: Factor | None = None
        if self.target.order is not None:
            # Hopeless prompts have little gradient already, so no penalty keeps them from the budget.
            factor = self._squared_truncation
        elif self.target.group is not None:
            factor = self.target.spread
        elif self.target.fits_accepted and self.penalty.alpha > 0:
            factor = self.penalty.factor
        return self.posterior.class_moments(self.target, factor)

    def _squared_truncation(self, rate: np.ndarray) -> np.ndarray:
        return np.asarray(self.target.truncation(rate)) ** 2

    @cached_property
    def doubts(self) -> np.ndarray:
        """``sigma`` if what was not seen is otherwise than expected, [5, m].

        All prompts err alike, which a batch cannot show. In the first four cases squared norms are
        ``_DOUBT`` times larger or smaller: those of accepted completions and those of rejected ones, as
        far as they are inferred from other prompts. In the last, prompts without a success have almost
        none.
        """
        inferred = self.posterior.norms.inferred
        shifts = [[[yes], [no]] for yes in (-1, 1) for no in (-1, 1)]
        factors = np.exp(np.log(_DOUBT) * np.array(shifts) * inferred)
        squares = (self._class_variances * factors).sum(1)
        hopeless = np.where(np.asarray(self.stats.successes) > 0, 1.0, 1 / _DOUBT)
        squares = np.vstack([squares, self._class_variances.sum(0) * hopeless])
        return np.maximum(np.sqrt(squares), 1e-150)

    @cached_property
    def best(self) -> np.ndarray:
        """Counts of least expected variance, int64 [m].

        Under a group baseline every prompt gets at least 2, if the budget allows that: a group of one
        has advantage 0, which the variance does not show.
        """
        return self.counts_for(self.sigma)

    def restricted(self, rows: np.ndarray, prompt_ids: Sequence[str | int]) -> AllocationProblem:
        """The problem of some prompts, one row each; they keep what all rows together tell of them."""
        part = replace(
            self,
            stats=self.stats.take(rows, prompt_ids),
            lower=self.lower[rows],
            upper=self.upper[rows],
            cost=self.cost[rows],
        )
        part.__dict__["posterior"] = self.posterior.take(rows)
        return part

    def counts_for(self, sigma: np.ndarray) -> np.ndarray:
        """Counts of least variance if ``sigma`` [m] were true; int64 [m]."""
        lower = self.lower
        if self.target.needs_groups:
            pairs = np.maximum(lower, np.minimum(self.upper, 2))
            lower = pairs if pairs @ self.cost <= self.budget else lower
        return least_variance(sigma, self.budget, lower, self.upper, self.cost)


def pose(
    stats: PromptStats,
    budget: float | Tokens,
    target: Target = LOG_LIKELIHOOD,
    *,
    bounds: Bounds = UNBOUNDED,
    penalty: Penalty = GVM_PENALTY,
) -> AllocationProblem:
    """An allocation problem with its budget and bounds checked and the bounds made arrays.

    Args:
        stats: what is known of m prompts.
        budget: completions, a whole number that is spent exactly; or tokens, of which those that the
            bounds leave no use for are not spent.
        target: with an ``order``, no lower bound is below it.

    Raises InputError where no allocation exists.
    """
    m = len(stats)
    if m == 0:
        raise InputError("no prompts to allocate to; give at least one")
    exact = not isinstance(budget, Tokens)
    total, cost = (
        (budget.total, budget.cost) if isinstance(budget, Tokens) else (budget, np.ones(m))
    )
    _check_budget(total, cost, m, exact)
    if exact:
        total = int(total)
    low = np.maximum(
        _bound("lower", bounds.lower, m), target.least_count if bounds.every_prompt else 0
    )
    # At least the lower bound, which rounding could put beyond what is affordable.
    affordable = np.maximum(np.minimum(total // cost, LARGEST_COUNT).astype(np.int64), low)
    high = affordable if bounds.upper is None else _bound("upper", bounds.upper, m)
    least, most = float(low @ cost), high.sum(dtype=np.float64)
    if total < least:
        raise InputError(
            f"budget {total:.16g} is smaller than the {'sum' if exact else 'cost'} of the lower "
            f"bounds, {least:.0f}; raise the budget or lower the bounds{_order_bound(target)}"
        )
    crossed = low > high
    if crossed.any():
        i = int(np.argmax(crossed))
        raise InputError(
            f"prompt {stats.prompt_ids[i]!r}: lower bound {low[i]} exceeds upper bound {high[i]}"
            + _order_bound(target)
        )
    if exact and total > most:
        raise InputError(
            f"budget {total} is larger than the sum of the upper bounds, {most:.0f}; "
            "lower the budget or raise the bounds"
        )
    high = np.minimum(high, affordable)
    return AllocationProblem(stats, total, low, high, cost, exact, target, penalty)


def spendable(stats: PromptStats, budget: int | None, token_budget: float | None) -> int | Tokens:
    """The budget for :func:`pose`, from a number of completions or of tokens.

    Raises InputError unless exactly one is given, and for tokens where no length is known.
    """
    if (budget is None) == (token_budget is None):
        raise InputError("give a budget of completions or one of tokens, and not both")
    if budget is not None:
        return budget
    assert token_budget is not None
    if stats.mean_tokens is None or not (np.asarray(stats.mean_tokens) > 0).any():
        raise InputError("a budget of tokens needs mean_tokens, at least of some prompts")
    return Tokens(token_budget, expected_tokens(stats, otherwise=1.0))


def _order_bound(target: Target) -> str:
    """The end of a message about lower bounds."""
    if target.order is None:
        return ""
    return f" (estimator order_k gives every prompt at least its order, {target.order})"


def _check_budget(total: float, cost: np.ndarray, m: int, exact: bool) -> None:
    if not 0 <= total <= LARGEST_COUNT or (exact and total != int(total)):
        whole = "whole number" if exact else "number"
        raise InputError(f"budget {total} is not a {whole} from 0 to 2^52")
    if cost.shape != (m,) or not ((cost > 0) & np.isfinite(cost)).all():
        raise InputError("costs must be finite and above 0, one a prompt")


def _bound(name: str, value: ArrayLike, m: int) -> np.ndarray:
    given = np.asarray(value)
    if given.shape not in ((), (m,)):
        raise InputError(f"{name} has shape {given.shape}; give one number or one a prompt ({m})")
    if not ((given >= 0) & (given <= LARGEST_COUNT) & (given == np.floor(given))).all():
        raise InputError(f"{name} bounds must be whole numbers from 0 to 2^52")
    return np.broadcast_to(given, (m,)).astype(np.int64)
