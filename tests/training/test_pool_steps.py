"""Whole steps over a pool, from the parts that the loop puts together: unbiased, and biased unweighted.

Six prompts have three kinds of completions each, with probabilities softmax(theta_i), so the gradient of
the pool is a finite sum. What earlier steps saw makes expected counts differ by a factor of five. Claims
are means over many steps, within five standard errors in every coordinate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dibs.allocation import problem as problem_module
from dibs.allocation.choice import Choice, choose
from dibs.allocation.cross_fit import (
    allocation_problems,
    assign_rollouts,
    cross_fit,
    missing_counts,
    pooled,
)
from dibs.allocation.history import History
from dibs.allocation.pool import expected_of_rows
from dibs.allocation.posterior import Posterior, fit_posterior
from dibs.config import Config
from dibs.training.examples import weighted_examples
from dibs.types import Completion, Group, PromptStats, Rollout
from tiny_groups import make_prompt

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(0, 1, (6, 3))
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
RIGHT = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]], dtype=bool)
RATES = (PROBABILITIES * RIGHT).sum(1)
SCALES = np.array([1.0, 1.0, 2.0, 4.0, 8.0, 8.0])
SCORES = SCALES[:, None, None] * (np.eye(3) - PROBABILITIES[:, None])
LENGTHS = (1, 2, 8, 1, 2, 8)
PROMPTS = [make_prompt(f"{i:02x}", (i,)) for i in range(6)]
REWARDED = np.einsum("ik,ik,ikd->id", PROBABILITIES, RIGHT, SCORES) / 6
"""Of the mean accept rate, a row a prompt."""
ORDER = 2
TRUNCATED = ((1 - (1 - RATES) ** ORDER) / RATES)[:, None] * REWARDED
FITTED: dict[tuple[float, ...], Posterior] = {}


@pytest.fixture(autouse=True)
def fitted_once(monkeypatch):
    """The same few statistics come back again and again."""

    def remembered(stats: PromptStats) -> Posterior:
        norms = np.nan_to_num(np.asarray(stats.grad_norm)).tolist()
        key = (*np.asarray(stats.trials).tolist(), *np.asarray(stats.successes).tolist(), *norms)
        if key not in FITTED:
            FITTED[key] = fit_posterior(stats)
        return FITTED[key]

    monkeypatch.setattr(problem_module, "fit_posterior", remembered)


def draw(prompts, counts, rng, failing: float = 0.0) -> list[Group]:
    """Completions of each prompt; a share of them gets no verdict."""
    groups = []
    for prompt, n in zip(prompts, counts, strict=True):
        i = prompt.token_ids[0]
        rollouts = []
        for kind in rng.choice(3, n, p=PROBABILITIES[i]):
            completion = Completion((int(kind),) * LENGTHS[i], "", (-0.1,) * LENGTHS[i], True)
            right = bool(RIGHT[i, kind])
            rollouts.append(Rollout(prompt, completion, float(right), "", right))
        kept = rng.random(n) >= failing
        judged = tuple(r for r, keep in zip(rollouts, kept, strict=True) if keep)
        groups.append(Group(prompt, judged, ("timeout",) * int(n - len(judged))))
    return groups


def norms(groups) -> list[np.ndarray]:
    sizes = np.linalg.norm(SCORES, axis=2)
    return [
        np.array([sizes[g.prompt.token_ids[0], r.completion.token_ids[0]] for r in g.rollouts])
        for g in groups
    ]


def history() -> History:
    """What a hundred completions of five of the prompts showed; the sixth was never seen."""
    seen = History(20.0)
    groups = draw(PROMPTS[:5], [100] * 5, np.random.default_rng(1))
    seen.add(groups, norms(groups), 0)
    return seen


def configured(algorithm: dict[str, Any], **sections: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "algorithm": {"name": "raft", "estimator": "prompt_mean", **algorithm},
            "estimate": {"mode": "online"},
            "select": {"pool": "all", "uniform_share": 0.2},
            "allocate": {"num_generations": 2},
            "train": {"prompts_per_step": 2},
            **sections,
        }
    )


def gradient(choice: Choice, fresh: list[Group], config: Config) -> np.ndarray:
    """The step's gradient, a row a prompt of the pool."""
    missing = missing_counts(choice.allocations, choice.parts)
    dealt = assign_rollouts(fresh, missing, choice.parts)
    total = np.zeros((6, 3))
    for example in weighted_examples(dealt, choice.parts, choice.problems, config):
        i, kind = example.context_ids[0], example.completion_ids[0]
        total[i] += example.weight * example.advantage * SCORES[i, kind]
    return total


def steps(config: Config, times: int, failing: float = 0.0) -> tuple[np.ndarray, np.ndarray, set]:
    """Gradients of steps with their weights and with equal ones, and the spent budgets."""
    known, rng = history(), np.random.default_rng(2)
    weighted, flat, spent = [], [], set()
    for step in range(1, times + 1):
        if config.estimate.mode == "cross_fit":
            pilots = draw(PROMPTS, [config.estimate.num_pilots] * 6, rng)
            estimate = cross_fit(pilots, norms(pilots))
        else:
            estimate = pooled(*known.pool_statistics([p.prompt_id for p in PROMPTS], 1))
        choice = choose(PROMPTS, estimate, config, step)
        counts = np.sum(missing_counts(choice.allocations, choice.parts), axis=0)
        spent.add(int(choice.allocation.counts.sum()))
        fresh = draw(choice.prompts, counts, rng, failing)
        weighted.append(gradient(choice, fresh, config))
        shares = [each.counts / each.counts.sum() for each in choice.allocations]
        parts = [replace(p, shares=s) for p, s in zip(choice.parts, shares, strict=True)]
        flat.append(gradient(replace(choice, parts=parts), fresh, config))
    return np.array(weighted), np.array(flat), spent


def sigmas_off(found: np.ndarray, wanted: np.ndarray) -> float:
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    return float((np.abs(found.mean(0) - wanted) / np.maximum(error, 1e-12)).max())


REWARD = {"objective": "expected_reward"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], np.ndarray]] = {
    "single completions": ({**REWARD, "baseline": "none"}, {}, REWARDED),
    "pairs": ({**REWARD, "baseline": "leave_one_out"}, {}, REWARDED),
    "history": ({**REWARD, "baseline": "history"}, {}, REWARDED),
    "shrinkage": (
        {**REWARD, "baseline": "shrinkage"},
        {"select": {"pool": "all", "group": 2, "uniform_share": 0.2}},
        REWARDED,
    ),
    "order_k": ({"estimator": "order_k", "order": ORDER}, {}, TRUNCATED),
    "tokens": (
        {**REWARD, "baseline": "none"},
        {"allocate": {"budget": 16, "budget_unit": "tokens"}},
        REWARDED,
    ),
    "tokens read and written": (
        {**REWARD, "baseline": "leave_one_out"},
        {"allocate": {"budget": 48, "budget_unit": "tokens", "prompt_cost": 4.0}},
        REWARDED,
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        each
        if each in ("single completions", "pairs")
        else pytest.param(each, marks=pytest.mark.slow)
        for each in CASES
    ],
)
def test_a_step_over_a_pool_is_unbiased_and_without_weights_it_is_not(case):
    algorithm, sections, wanted = CASES[case]
    config = configured(algorithm, **sections)
    weighted, flat, spent = steps(config, 1200)
    assert sigmas_off(weighted, wanted) < 5
    assert sigmas_off(flat, wanted) > 5
    if case.startswith("tokens"):
        assert len(spent) > 1
    else:
        assert spent == {4}


@pytest.mark.slow
def test_completions_without_a_verdict_leave_it_unbiased():
    """Where a group has one completion at least: one that lost all of them teaches nothing."""
    config = configured({**REWARD, "baseline": "none"}, select={"pool": "all", "group": 4})
    config = config.model_copy(
        update={"allocate": config.allocate.model_copy(update={"num_generations": 4})}
    )
    chance_of_none = 0.25**4
    weighted, *_ = steps(config, 2500, failing=0.25)
    assert sigmas_off(weighted, (1 - chance_of_none) * REWARDED) < 5


@pytest.mark.parametrize(
    "algorithm",
    [
        {**REWARD, "baseline": "none"},
        pytest.param({**REWARD, "baseline": "leave_one_out"}, marks=pytest.mark.slow),
        pytest.param({**REWARD, "baseline": "shrinkage"}, marks=pytest.mark.slow),
    ],
)
def test_cross_fit_over_a_pool_is_unbiased(algorithm):
    config = configured(
        algorithm,
        estimate={"mode": "cross_fit", "num_pilots": 2},
        select={"pool": 6, "uniform_share": 0.2},
        allocate={"num_generations": 12},
    )
    weighted, _, spent = steps(config, 300)
    assert spent == {24}
    assert sigmas_off(weighted, REWARDED) < 5


def test_reading_counts_in_a_budget_of_tokens():
    """Six prompts of one token; a uniform step of 2 prompts x 4 completions sets the budget."""
    names = [p.prompt_id for p in PROMPTS]
    estimate = pooled(*history().pool_statistics(names, 1))
    assert estimate.rows is not None
    multiplicity = np.bincount(estimate.rows).astype(float)
    allocate = {"num_generations": 4, "budget_unit": "tokens"}
    costs, expected = {}, {}
    for reading in (0.0, 20.0):
        own = {**allocate, "prompt_cost": reading}
        config = configured({**REWARD, "baseline": "none"}, allocate=own)
        assert choose(PROMPTS, estimate, config, 1).problems[0].cost.min() > reading
        problem = allocation_problems(estimate, config, np.full(len(estimate.stats), reading))[0]
        expected[reading] = expected_of_rows(problem, multiplicity, "min_variance", 0.2)[0]
        costs[reading] = problem.budget
        spent = expected[reading] @ (problem.cost * multiplicity)
        assert spent == pytest.approx(problem.budget)
    assert costs[20.0] == pytest.approx(costs[0.0] + 2 * 20)
    # Single completions need a reading each, so fewer of them can be had than the 8 of the shape.
    assert expected[20.0].sum() < 0.6 * expected[0.0].sum()


def test_expected_counts_follow_what_was_seen_and_keep_their_floor():
    config = configured({**REWARD, "baseline": "none"})
    names = [p.prompt_id for p in PROMPTS]
    choices = [
        choose(PROMPTS, pooled(*history().pool_statistics(names, 1)), config, step)
        for step in range(1, 40)
    ]
    expected: dict[str | int, float] = {}
    for choice in choices:
        assert choice.allocation.expected is not None
        expected |= dict(
            zip(choice.allocation.prompt_ids, choice.allocation.expected.tolist(), strict=True)
        )
    assert sum(expected.values()) == pytest.approx(4)
    assert min(expected.values()) >= 0.2 * 4 / 6 - 1e-12
    assert expected["04"] > 4 * expected["00"]
    assert choices[0].metrics["pool_size"] == 6
    assert 1 < choices[0].metrics["largest_weight"] <= 5
    assert choices[0].metrics["expected_gain"] > 1.1


def test_a_choice_depends_on_the_seed_and_the_step_alone():
    config = configured({**REWARD, "baseline": "none"})
    estimate = pooled(*history().pool_statistics([p.prompt_id for p in PROMPTS], 1))

    def chosen(step: int, seed: int = 0) -> list[str]:
        own = config.model_copy(update={"seed": seed})
        found = choose(PROMPTS, estimate, own, step)
        return [str(name) for name in found.allocation.prompt_ids]

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(step)) for step in range(20)}) > 5
    assert [chosen(step) for step in range(5)] != [chosen(step, 1) for step in range(5)]
