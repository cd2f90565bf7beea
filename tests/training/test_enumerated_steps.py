"""Expected gradients of whole steps, every outcome counted, from the parts that the loop puts together.

A step has two prompts. The first has three kinds of completions, two of them accepted; the second has
one kind, always accepted, so that it takes what the first one leaves. Counts depend on luck as strongly
as can be: they double for every rejected completion among those that decide them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dibs.allocation import problem as problem_module
from dibs.allocation.cross_fit import (
    StepEstimate,
    allocation_problems,
    assign_rollouts,
    cross_fit,
    missing_counts,
    undivided,
)
from dibs.allocation.deviations import expected_deviations
from dibs.allocation.history import History
from dibs.allocation.posterior import Posterior, fit_posterior
from dibs.allocation.problem import AllocationProblem
from dibs.allocation.proportional import proportional
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.config import Config
from dibs.training.examples import weighted_examples
from dibs.types import Allocation, Completion, Group, PromptStats, Rollout
from tiny_groups import make_prompt

SHARES = np.array([0.15, 0.25, 0.6])
ACCEPTED = np.array([True, True, False])
RATE = float(SHARES[ACCEPTED].sum())
SCORES = np.eye(3) - SHARES
GRADIENT = SHARES[ACCEPTED] @ SCORES[ACCEPTED]
"""Of the accept rate, with respect to the logits of the kinds."""
OPEN, SETTLED = make_prompt("open", (1,)), make_prompt("settled", (2,))
ORDER = 2
Kinds = tuple[int, ...]
FITTED: dict[tuple[float, ...], Posterior] = {}


def hungry(problem: AllocationProblem) -> np.ndarray:
    rejected = np.asarray(problem.stats.trials) - np.asarray(problem.stats.successes)
    return proportional(2.0**rejected, problem.budget, problem.lower, problem.upper)


def outcomes(n: int) -> Iterator[tuple[Kinds, float]]:
    """What n completions of the open prompt can be, and how likely that is."""
    for kinds in itertools.combinations_with_replacement(range(3), n):
        times = [kinds.count(kind) for kind in range(3)]
        ways = math.factorial(n) / math.prod(math.factorial(t) for t in times)
        yield kinds, float(ways * np.prod(SHARES**times))


def groups(kinds: Sequence[int], settled: int) -> list[Group]:
    """A group of the open prompt of these kinds, and one of the settled prompt."""

    def rollout(prompt, kind: int, accepted: bool) -> Rollout:
        completion = Completion((kind,), "", (-1.0,), finished=True)
        return Rollout(prompt, completion, float(accepted), "", accepted)

    return [
        Group(OPEN, tuple(rollout(OPEN, kind, bool(ACCEPTED[kind])) for kind in kinds)),
        Group(SETTLED, tuple(rollout(SETTLED, 0, True) for _ in range(settled))),
    ]


def norms(drawn: Sequence[Group]) -> list[np.ndarray]:
    return [np.ones(len(group.rollouts)) for group in drawn]


def estimates(mode: str) -> Iterator[tuple[StepEstimate, float]]:
    """What a step can know of its prompts, and how likely that is."""
    if mode == "cross_fit":
        for (first, chance), (second, other) in itertools.product(outcomes(2), outcomes(2)):
            pilots = groups(first + second, 4)
            yield cross_fit(pilots, norms(pilots)), chance * other
        return
    for kinds, chance in outcomes(3):
        known = groups(kinds, 3)
        if mode == "pilot":
            yield undivided(pilot_statistics(known, norms(known)), [OPEN, SETTLED]), chance
        else:
            history = History(5.0)
            history.add(known, norms(known), 1)
            yield undivided(history.statistics(["open", "settled"], 2), [OPEN, SETTLED]), chance


@pytest.fixture(autouse=True)
def fitted_once(monkeypatch):
    """The same few statistics come back again and again."""

    def remembered(stats: PromptStats) -> Posterior:
        key = (*np.asarray(stats.trials).tolist(), *np.asarray(stats.successes).tolist())
        if key not in FITTED:
            FITTED[key] = fit_posterior(stats)
        return FITTED[key]

    monkeypatch.setattr(problem_module, "fit_posterior", remembered)


@dataclass(frozen=True)
class Part:
    """Of a part of a step: counts of both prompts, deciding completions in its baseline, its problem."""

    counts: np.ndarray
    beside: int
    problem: AllocationProblem


def parts(config: Config) -> Iterator[tuple[Part, np.ndarray, float]]:
    """Every part that a step can have, its expected gradient, and how likely it is."""
    for estimate, chance in estimates(config.estimate.mode):
        problems = allocation_problems(estimate, config)
        allocations = [Allocation(p.stats.prompt_ids, hungry(p), "hungry") for p in problems]
        missing = missing_counts(allocations, estimate.parts)
        for index, own in enumerate(estimate.parts):
            expected = np.zeros(3)
            for kinds, likely in outcomes(int(missing[index][0])):
                # What the other part gets is of no matter to this one.
                drawn = [kinds if i == index else (0,) * int(m[0]) for i, m in enumerate(missing)]
                fresh = groups(sum(drawn, ()), int(np.sum(missing, axis=0)[1]))
                dealt = assign_rollouts(fresh, missing, estimate.parts)
                examples = weighted_examples(dealt, estimate.parts, problems, config)
                start = sum(len(g.rollouts) for each in dealt[:index] for g in each)
                for example in examples[start : start + len(dealt[index][0].rollouts)]:
                    assert example.context_ids == OPEN.token_ids
                    score = SCORES[example.completion_ids[0]]
                    expected += likely * example.weight * example.advantage * score
            beside = len(own.baseline_only[0].rollouts)
            found = Part(allocations[index].counts, beside, problems[index])
            yield found, expected * len(estimate.parts), chance / len(estimate.parts)


def configured(mode: str, **algorithm: Any) -> Config:
    order = {"order": ORDER} if algorithm.get("estimator") == "order_k" else {}
    return Config.model_validate(
        {
            "algorithm": {**algorithm, **order},
            "estimate": {"mode": mode, "num_pilots": 4 if mode == "cross_fit" else 3},
            "allocate": {"num_generations": 6},
            "train": {"prompts_per_step": 2},
        }
    )


def group_size(part: Part) -> int:
    return int(part.counts[0]) + part.beside


def mean_deviation(part: Part) -> float:
    """E of a group's deviation over p (1 - p), for groups without completions beside them."""
    n = int(part.counts[0])
    share = np.arange(n + 1) / n
    chances = np.array([math.comb(n, s) * RATE**s * (1 - RATE) ** (n - s) for s in range(n + 1)])
    return float(chances @ np.sqrt(share * (1 - share))) / (RATE * (1 - RATE))


def one(part: Part) -> float:
    return 1.0


def shrunk(part: Part) -> float:
    return 1 - 1 / group_size(part)


def known_rate(part: Part) -> float:
    return float(1 / part.problem.posterior.accept_rate[0])


def known_deviation(part: Part) -> float:
    return float(1 / expected_deviations(part.problem.posterior, Target("grpo", "mean"))[0])


def truncated(order: int) -> float:
    return (1 - (1 - RATE) ** order) / RATE


FACTORS: list[tuple[dict[str, str], Callable[[Part], float], bool, bool]] = [
    ({"objective": "expected_reward"}, one, True, True),
    ({"objective": "expected_reward", "baseline": "leave_one_out"}, one, True, True),
    ({"objective": "expected_reward", "baseline": "mean"}, shrunk, False, True),
    (
        {"objective": "expected_reward", "estimator": "flat"},
        lambda part: 2 * part.counts[0] / part.counts.sum(),
        False,
        True,
    ),
    ({"estimator": "order_k"}, lambda part: truncated(ORDER), True, True),
    ({"estimator": "order_k", "baseline": "mean"}, lambda part: truncated(ORDER), True, True),
    ({"estimator": "self_normalized"}, lambda part: truncated(part.counts[0]), False, True),
    (
        {"estimator": "self_normalized", "baseline": "mean"},
        lambda part: truncated(part.counts[0] - 1),
        False,
        False,
    ),
    ({"estimator": "prompt_mean"}, known_rate, False, True),
    (
        {"estimator": "prompt_mean", "baseline": "mean"},
        lambda part: known_rate(part) * shrunk(part),
        False,
        True,
    ),
    ({"objective": "grpo"}, mean_deviation, False, False),
    ({"objective": "grpo", "deviation": "expected"}, known_deviation, False, True),
    *(
        each
        for baseline in ("history", "shrinkage")
        for each in (
            ({"objective": "expected_reward", "baseline": baseline}, one, True, True),
            ({"estimator": "prompt_mean", "baseline": baseline}, known_rate, False, True),
            (
                {"objective": "grpo", "deviation": "expected", "baseline": baseline},
                known_deviation,
                False,
                True,
            ),
        )
    ),
]
"""What multiplies the gradient of the accept rate in expectation, given what decided the counts; whether
it is one number; and whether it is known for mode cross_fit too."""


@pytest.mark.parametrize("mode", ["pilot", "cross_fit", "online"])
@pytest.mark.parametrize(("algorithm", "factor", "constant", "crossed"), FACTORS)
def test_the_expected_gradient_of_a_step(mode, algorithm, factor, constant, crossed):
    if mode == "cross_fit" and not crossed:
        pytest.skip("the baseline's deciding half enters the divisor too")
    everything = list(parts(configured(mode, **algorithm)))
    assert sum(chance for *_, chance in everything) == pytest.approx(1)
    assert len({int(part.counts[0]) for part, *_ in everything}) > 1
    total = np.zeros(3)
    for _, gradient, chance in everything:
        total += chance * gradient
    expected = sum(chance * factor(part) for part, _, chance in everything)
    np.testing.assert_allclose(2 * total, expected * GRADIENT, atol=1e-12)
    assert (len({round(factor(part), 9) for part, *_ in everything}) == 1) is constant


@pytest.mark.parametrize("mode", ["pilot", "online"])
def test_an_expected_deviation_is_one_factor_whatever_the_counts(mode):
    """For every outcome of the completions that decide, and the counts that it leads to."""
    config = configured(mode, objective="grpo", deviation="expected")
    for part, gradient, _ in parts(config):
        np.testing.assert_allclose(2 * gradient, known_deviation(part) * GRADIENT, atol=1e-12)
