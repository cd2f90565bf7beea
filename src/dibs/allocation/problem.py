"""Prompt statistics, a budget and bounds: everything that an allocator may look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from dibs.allocation.least_variance import least_variance
from dibs.allocation.objectives import BASELINES, check_objective
from dibs.allocation.posterior import Posterior, expected_tokens, fit_posterior
from dibs.types import InputError, PromptStats


@dataclass(frozen=True)
class AllocationProblem:
    """Everything an allocator may look at. Build it with :func:`pose`, which checks it.

    ``budget``: completions; or, where ``cost`` is given (tokens of a completion of each prompt, above 0,
    [m]), tokens. ``lower`` and ``upper``: int64 [m], counts allowed to each prompt. ``objective`` and
    ``baseline``: the target gradient, a row of the table in ``objectives``. ``accept_rate_penalty`` and
    ``accept_rate_power``: alpha >= 0 and beta >= 1 of arXiv 2505.02391, eq. (5).
    """

    stats: PromptStats
    budget: float
    lower: np.ndarray
    upper: np.ndarray
    objective: str = "log_likelihood"
    baseline: str = "none"
    accept_rate_penalty: float = 1e-3
    accept_rate_power: float = 2.0
    cost: np.ndarray | None = None

    @cached_property
    def posterior(self) -> Posterior:
        """What the statistics let one believe."""
        return fit_posterior(self.stats)

    @cached_property
    def sigma(self) -> np.ndarray:
        """Standard deviation of one rollout's share of the gradient, as the statistics have it; [m].

        An upper bound: the prompt's mean gradient is not taken off. For ``log_likelihood`` it is weighed
        by the root of ``1 / (1 + alpha / p^beta)``, as eq. (5) weighs the variance: without that, the
        less hope a prompt has the more completions it would get. With the default, prompts of
        p = 0.03 get most.
        """
        square = self.posterior.second_moment(self.objective, self.baseline)
        if self.objective == "log_likelihood":
            power = self.posterior.accept_rate**self.accept_rate_power
            square *= power / np.maximum(power + self.accept_rate_penalty, 1e-300)
        return np.maximum(np.sqrt(square), 1e-150)

    @cached_property
    def best(self) -> np.ndarray:
        """Counts of least expected variance, int64 [m].

        At least 2 for every prompt under a group baseline, if the budget has them: a group of one has
        advantage 0, which the variance does not show.
        """
        lower = self.lower
        if self.baseline != "none":
            pairs = np.maximum(lower, np.minimum(self.upper, 2))
            price = np.ones(len(pairs)) if self.cost is None else self.cost
            lower = pairs if pairs @ price <= self.budget else lower
        return least_variance(self.sigma, self.budget, lower, self.upper, self.cost)


_LARGEST_COUNT = 2**52
"""Sums of counts are exact in float64."""


def pose(
    stats: PromptStats,
    budget: float,
    *,
    lower: ArrayLike = 0,
    upper: ArrayLike | None = None,
    objective: str = "log_likelihood",
    baseline: str | None = None,
    accept_rate_penalty: float = 1e-3,
    accept_rate_power: float = 2.0,
    cost: np.ndarray | None = None,
) -> AllocationProblem:
    """Check bounds and budget and make them arrays; ``upper=None`` means no upper bound.

    ``baseline=None`` is the first that the objective has. ``cost``: tokens of a completion of each
    prompt, [m]; the budget is then tokens, and what the bounds cannot take is not spent.

    Raises InputError where no allocation exists.
    """
    m = len(stats)
    if m == 0:
        raise InputError("no prompts to allocate to; give at least one")
    if not 0 <= budget <= _LARGEST_COUNT or (cost is None and budget != int(budget)):
        whole = "whole number" if cost is None else "number"
        raise InputError(f"budget {budget} is not a {whole} from 0 to 2^52")
    if cost is None:
        budget = int(budget)
    elif cost.shape != (m,) or not ((cost > 0) & np.isfinite(cost)).all():
        raise InputError("costs must be finite and above 0, one a prompt")
    if baseline is None:
        baseline = BASELINES.get(objective, ("none",))[0]
    check_objective(objective, baseline)
    if not 0 <= accept_rate_penalty < np.inf:
        raise InputError(f"accept_rate_penalty is {accept_rate_penalty}; it must be at least 0")
    if not 1 <= accept_rate_power < np.inf:
        raise InputError(f"accept_rate_power is {accept_rate_power}; it must be at least 1")
    low = _bound("lower", lower, m)
    price = np.ones(m) if cost is None else cost
    # At least the lower bound, which rounding could put beyond what is affordable.
    affordable = np.maximum(np.minimum(budget // price, _LARGEST_COUNT).astype(np.int64), low)
    high = affordable if upper is None else _bound("upper", upper, m)
    least, most = float(low @ price), high.sum(dtype=np.float64)
    if budget < least:
        raise InputError(
            f"budget {budget:.16g} is smaller than the {'sum' if cost is None else 'cost'} of the lower "
            f"bounds, {least:.0f}; raise the budget or lower the bounds"
        )
    crossed = low > high
    if crossed.any():
        i = int(np.argmax(crossed))
        raise InputError(
            f"prompt {stats.prompt_ids[i]!r}: lower bound {low[i]} exceeds upper bound {high[i]}"
        )
    if cost is None and budget > most:
        raise InputError(
            f"budget {budget} is larger than the sum of the upper bounds, {most:.0f}; "
            "lower the budget or raise the bounds"
        )
    high = np.minimum(high, affordable)
    return AllocationProblem(
        stats, budget, low, high, objective, baseline, accept_rate_penalty, accept_rate_power, cost
    )


def spendable(
    stats: PromptStats, budget: int | None, token_budget: float | None
) -> tuple[float, np.ndarray | None]:
    """Budget and costs for :func:`pose`, from a number of completions or of tokens.

    Raises InputError unless exactly one is given, and for tokens where no length is known.
    """
    if (budget is None) == (token_budget is None):
        raise InputError("give a budget of completions or one of tokens, and not both")
    if budget is not None:
        return budget, None
    assert token_budget is not None
    if stats.mean_tokens is None or not (np.asarray(stats.mean_tokens) > 0).any():
        raise InputError("a budget of tokens needs mean_tokens, at least of some prompts")
    return token_budget, expected_tokens(stats, otherwise=1.0)


def _bound(name: str, value: ArrayLike, m: int) -> np.ndarray:
    given = np.asarray(value)
    if given.shape not in ((), (m,)):
        raise InputError(f"{name} has shape {given.shape}; give one number or one a prompt ({m})")
    if not ((given >= 0) & (given <= _LARGEST_COUNT) & (given == np.floor(given))).all():
        raise InputError(f"{name} bounds must be whole numbers from 0 to 2^52")
    return np.broadcast_to(given, (m,)).astype(np.int64)
