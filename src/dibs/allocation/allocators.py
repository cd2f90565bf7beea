"""Prompt statistics and a budget in, integer sample counts out.

An allocator is a function from an :class:`AllocationProblem` to integer counts. ``@allocator(name)``
registers one. An allocator of another package may also be named ``module:function``. Counts sum to a
budget of completions exactly; under a budget of tokens their expected cost is at most the budget. They
respect the bounds of every prompt and do not depend on anything random: ties and remainders go to the
prompt that comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dibs.allocation import rules
from dibs.allocation.problem import AllocationProblem, Bounds, Penalty, pose, spendable
from dibs.allocation.proportional import proportional
from dibs.allocation.returned import are_whole, numbers_of
from dibs.allocation.target import Target
from dibs.plugins import called, import_function
from dibs.types import Allocation, InputError, PromptStats

Allocator = Callable[[AllocationProblem], np.ndarray]
ALLOCATORS: dict[str, Allocator] = {}
POWERS = (1.0, 0.75, 0.5, 0.25)
"""Powers of sigma that ``min_variance`` considers: from its optimum towards uniform counts."""


def allocator(name: str) -> Callable[[Allocator], Allocator]:
    """Register an allocator under ``name`` for configs and the command line."""

    def register(function: Allocator) -> Allocator:
        ALLOCATORS[name] = function
        return function

    return register


def uniform(problem: AllocationProblem) -> np.ndarray:
    """The same count for every prompt, as far as the bounds allow."""
    return ALLOCATORS["uniform"](problem)


def _by_rule(name: str) -> Allocator:
    def counts(problem: AllocationProblem) -> np.ndarray:
        return _in_proportion(rules.weights_of(name, problem), problem)

    return counts


ALLOCATORS |= {name: _by_rule(name) for name in rules.WEIGHTS if not rules.is_random(name)}
ALLOCATORS |= {name: rules.module_of(name).counts for name in rules.COUNTS}


@allocator("min_variance")
def min_variance(problem: AllocationProblem) -> np.ndarray:
    """Counts of least expected variance for the target, as far as they are surely better than uniform.

    The optimum is n_i about sigma_i / sqrt(cost_i); its integers are optimal for a budget of
    completions. ``sigma_i`` is expected from the statistics (``posterior.fit_posterior``), and it may be
    wrong in the same way for all prompts. So counts for several powers of sigma are judged by what they
    gain over uniform counts in the worst of ``problem.doubts``, and the best are taken. The lower the
    power, the nearer to uniform they are. Where none is a gain in all cases, counts are uniform. No
    prompt is starved while the budget has one completion for each.
    """
    candidates = [problem.counts_for(problem.sigma**power) for power in POWERS]
    gains = _gains(problem, candidates, problem.doubts).min(1)
    best = int(np.argmax(gains))
    return candidates[best] if gains[best] > 1 else uniform(problem)


def expected_gain(problem: AllocationProblem, counts: np.ndarray) -> float:
    """Variance expected of uniform counts over that of ``counts``.

    A prompt that could have completions and has none makes the variance infinite: the gain is 0 where
    ``counts`` leave out more (in sigma^2) than uniform ones, infinite where less.
    """
    return float(_gains(problem, [counts], problem.sigma[None])[0, 0])


def _gains(
    problem: AllocationProblem, candidates: Sequence[np.ndarray], sigmas: np.ndarray
) -> np.ndarray:
    """The same for each of c counts [m] if each of ``sigmas`` [k, m] is true, [c, k]."""
    squares = np.where(problem.upper > 0, sigmas**2, 0.0)
    left_out, even = _variances(squares, uniform(problem))
    out, chosen = np.stack([_variances(squares, counts) for counts in candidates], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = np.where(chosen > 0, even / chosen, 1.0)
    # A variance that is infinite decides alone.
    same = np.isclose(out, left_out, rtol=1e-12, atol=0)
    return np.where(same, gains, np.where(out > left_out, 0.0, np.inf))


def _variances(squares: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``sum sigma_i^2`` of prompts left out, and ``sum sigma_i^2 / n_i`` of the others; [k] each."""
    shares = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    return squares @ (counts == 0), squares @ shares


def describe(
    problems: Sequence[AllocationProblem], allocations: Sequence[Allocation]
) -> dict[str, float | str | None]:
    """Gains expected of the allocations of a step's parts, for the metrics.

    Gains are means over the parts; None where nothing is known of any prompt.
    """
    if not any(np.any(problem.stats.trials) for problem in problems):
        return {"expected_gain": None, "achievable_gain": None, "allocation_note": None}
    achievable = float(np.mean([expected_gain(p, p.best) for p in problems]))
    pairs = list(zip(problems, allocations, strict=True))
    stayed = all(
        a.allocator == "min_variance" and np.array_equal(a.counts, uniform(p)) for p, a in pairs
    )
    note = f"uniform: an expected gain of {achievable:.3f} is not sure, or there is none"
    return {
        "expected_gain": float(np.mean([expected_gain(p, a.counts) for p, a in pairs])),
        "achievable_gain": achievable,
        "allocation_note": note if stayed else None,
    }


def _in_proportion(weights: np.ndarray, problem: AllocationProblem) -> np.ndarray:
    return proportional(weights, problem.budget, problem.lower, problem.upper, problem.cost)


def check_allocator(name: str) -> None:
    """InputError unless an allocator of this name is registered, or ``module:function`` is one."""
    if name in ALLOCATORS or name in rules.WEIGHTS:
        return
    if name in rules.ROUNDS:
        raise InputError(
            f"{name} draws in rounds; name it as allocate.rounds, with allocator uniform"
        )
    if ":" not in name:
        known = ", ".join(sorted({*ALLOCATORS, *rules.WEIGHTS}))
        raise InputError(
            f"unknown allocator {name!r}; known: {known}, or your own as module:function"
        )
    import_function(name, "allocator")


def solve(problem: AllocationProblem, name: str) -> Allocation:
    """Run the allocator registered as ``name``.

    Raises InputError for an unknown name, for a rule that needs a pool, and for an allocator that broke
    its contract.
    """
    check_allocator(name)
    rules.check_place(name, pool=False)
    function = ALLOCATORS.get(name) or import_function(name, "allocator")
    given = called(name, "allocator", function, problem)
    counts = _checked(given, problem, name)
    return Allocation(problem.stats.prompt_ids, counts, name)


def _checked(given: object, problem: AllocationProblem, name: str) -> np.ndarray:
    """What an allocator returned, int64 [m]. InputError unless it is what the problem asks for."""
    m, who = len(problem.stats), f"allocator {name}"
    wanted = f"one count for each of {m} prompts"
    numbers = numbers_of(given, m, who, what="counts", wanted=wanted)
    if not are_whole(numbers).all():
        raise InputError(f"{who} returned counts that are not whole numbers up to 2^52")
    counts = numbers.astype(np.int64)
    outside = np.flatnonzero((counts < problem.lower) | (counts > problem.upper))
    if len(outside):
        i = int(outside[0])
        raise InputError(
            f"allocator {name} gave {counts[i]} completions to prompt {problem.stats.prompt_ids[i]!r}; "
            f"its bounds are {problem.lower[i]} and {problem.upper[i]}"
        )
    spent = float(counts @ problem.cost)
    paid = spent == problem.budget if problem.exact else spent <= problem.budget * (1 + 1e-9)
    if not paid:
        raise InputError(
            f"allocator {name} returned counts that spend {spent:.16g} of a budget of "
            f"{problem.budget:.16g}"
        )
    return counts


def allocate(
    trials: ArrayLike,
    successes: ArrayLike,
    grad_norm: ArrayLike,
    *,
    budget: int | None = None,
    token_budget: float | None = None,
    allocator: str = "min_variance",
    lower: ArrayLike = 0,
    upper: ArrayLike | None = None,
    grad_norm_rejected: ArrayLike | None = None,
    mean_tokens: ArrayLike | None = None,
    prompt_ids: Iterable[str] | None = None,
    objective: str = "log_likelihood",
    baseline: str | None = None,
    order: int | None = None,
    accept_rate_penalty: float = 1e-3,
    accept_rate_power: float = 2.0,
) -> np.ndarray:
    """Counts for m prompts from arrays of their statistics; the library form of ``dibs allocate``.

    Args:
        trials: pilot completions drawn for each prompt, [m]; need not be whole where discounted.
        successes: how many of them were accepted, [m].
        grad_norm: mean gradient norm of the accepted ones, [m]; NaN where none was.
        budget: total number of completions to spread over the prompts.
        token_budget: in place of ``budget``, the most tokens to expect; needs ``mean_tokens``.
        allocator: ``min_variance``, ``uniform``, a rule of docs/rules.md for a fixed batch (``gvm``,
            ``spo``, ``vip``, ...), a name that you registered, or ``module:function``.
        lower, upper: bounds on the count of a prompt, one number or [m].
        grad_norm_rejected: mean gradient norm of the rejected ones, [m].
        mean_tokens: mean completion length, [m].
        prompt_ids: names used in error messages; the prompt's position by default.
        objective, baseline: the target gradient that ``min_variance`` allocates for (the table in
            ``dibs.allocation.target``); by default the first baseline that the objective has.
        order: of the truncated ``log_likelihood``, as estimator ``order_k`` has it; no prompt gets fewer
            completions. None: not truncated.
        accept_rate_penalty, accept_rate_power: alpha and beta of GVM's eq. (5), :class:`.Penalty`.
            ``min_variance`` uses them for ``log_likelihood`` without an order only.

    Returns:
        int64 counts [m]. They sum to ``budget``, or are expected to take at most ``token_budget``.

    Raises:
        InputError: statistics that cannot be, or bounds that no allocation meets.
    """
    trials = np.asarray(trials, dtype=np.float64)
    names = range(trials.size) if prompt_ids is None else prompt_ids
    stats = PromptStats(
        prompt_ids=[str(name) for name in names],
        trials=trials,
        successes=np.asarray(successes, dtype=np.float64),
        grad_norm=np.asarray(grad_norm, dtype=np.float64),
        grad_norm_rejected=_given(grad_norm_rejected),
        mean_tokens=_given(mean_tokens),
    )
    problem = pose(
        stats,
        spendable(stats, budget, token_budget),
        Target.named(objective, baseline, order),
        bounds=Bounds(lower, upper),
        penalty=Penalty(accept_rate_penalty, accept_rate_power),
    )
    return solve(problem, allocator).counts


def _given(values: ArrayLike | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, dtype=np.float64)
