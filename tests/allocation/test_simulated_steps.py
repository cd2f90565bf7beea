"""Simulated steps against steps whose gradients are really made, of any rule, and degenerate cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dibs import BudgetConfig, PromptBudget
from dibs.allocation.group_variance import PromptGradients, features, mean_products
from dibs.allocation.simulated_steps import MeasuredPrompt, StepRule, simulated_steps
from dibs.allocation.target import Target

RATES = np.array([0.0, 0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 0.97, 1.0])
SIZE, KNOWN = 12, 300
GROUPS = {"mode": "none", "allocator": "uniform", "num_generations": 4}


class World:
    """Prompts of known accept rates, whose completions have gradients with a mean for each reward."""

    def __init__(self, seed: int = 0, rates: np.ndarray = RATES) -> None:
        rng = np.random.default_rng(seed)
        self.rates = rates
        # The gradients of a prompt's completions have the mean 0, as those of log-probabilities do.
        steepest = rng.normal(size=(len(rates), SIZE)) + rng.normal(size=SIZE)
        self.means = np.array([-rates, 1 - rates]).T[:, :, None] * 3 * steepest[:, None]

    def draw(self, row: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rewards [n] and gradients [n, D]."""
        rewards = rng.binomial(1, self.rates[row], count)
        noise = (1 + rewards[:, None]) / 2 * rng.normal(size=(count, SIZE))
        return rewards.astype(float), self.means[row][rewards] + noise

    def wanted(self, target: Target) -> np.ndarray:
        """The target's gradient over all prompts."""
        total = np.zeros(SIZE)
        for p, means in zip(self.rates, self.means, strict=True):
            if p > 0:
                a = target.expected_advantages(np.array([0.0, 1.0]), p, np.sqrt(p * (1 - p)))
                total += (1 - p) * a[0] * means[0] + p * a[1] * means[1]
        return total / len(self.rates)

    def measured(
        self, target: Target, count: int = KNOWN, seed: int = 1
    ) -> tuple[list[MeasuredPrompt], np.ndarray]:
        rng = np.random.default_rng(seed)
        drawn = [self.draw(row, count, rng) for row in range(len(self.rates))]
        bases = [features(rewards, target) for rewards, _ in drawn]
        sums = [basis.T @ own for basis, (_, own) in zip(bases, drawn, strict=True)]
        known = [
            np.linalg.pinv(basis.T @ basis) @ each for basis, each in zip(bases, sums, strict=True)
        ]
        between = np.einsum("ifd,jgd->ifjg", known, known)
        prompts = []
        for i, ((rewards, own), basis, each) in enumerate(zip(drawn, bases, sums, strict=True)):
            squares = (own**2).sum(1)
            products = mean_products(each @ each.T, basis, squares)
            between[i, :, i] = products
            unknown = np.zeros(count)
            gradients = PromptGradients(rewards, squares, products)
            prompts.append(
                MeasuredPrompt(rewards, unknown + 3, unknown, np.sqrt(squares), gradients)
            )
        return prompts, between


def made(
    world: World, rule: StepRule, available: int, steps: int, seed: int = 5
) -> tuple[np.ndarray, float]:
    """Gradients of steps that are really made, [S, D], and completions of each on average."""
    rng = np.random.default_rng(seed)
    m, config = len(world.rates), rule.budget
    gradients, spent = [], 0
    for number in range(steps):
        if number % 50 == 0:  # what decides is drawn anew
            budget = PromptBudget(config, warns=False)
            data = np.resize(rng.permutation(m), available)
            if rule.deciding and config.mode == "online":
                drawn = [world.draw(i, rule.deciding, rng) for i in data.tolist()]
                norms = [np.linalg.norm(own, axis=1) for _, own in drawn]
                every = [f"q{place}" for place in range(available)]
                budget.update(every, [rewards for rewards, _ in drawn], grad_norms=norms)
        places = rng.permutation(available)
        places = places[: rule.prompts if rule.pool is None else (rule.pool or available)]
        rows, names = data[places], [f"q{place}" for place in places]
        if config.mode == "pilot":
            drawn = [world.draw(i, rule.deciding, rng) for i in rows]
            norms = [np.linalg.norm(own, axis=1) for _, own in drawn]
            budget.take_pilots(names, [rewards for rewards, _ in drawn], grad_norms=norms)
        if rule.pool is not None and config.rounds is None:
            chosen = budget.choose(
                names,
                rule.prompts * config.num_generations,
                group=rule.group,
                correct=rule.correct,
                seed=number,
            )
            rows, counts = rows[chosen.positions], chosen.counts
        else:
            counts = budget.allocate(names, wanted=rule.prompts)
        rewards = [np.zeros(0) for _ in rows]
        own = [np.zeros((0, SIZE)) for _ in rows]
        while counts.any():
            for i, count in enumerate(counts):
                more, vectors = world.draw(rows[i], count, rng)
                rewards[i], own[i] = np.append(rewards[i], more), np.vstack([own[i], vectors])
            counts = budget.more(rewards) if config.rounds is not None else np.zeros(1)
        spent += sum(map(len, rewards))
        pairs = zip(*budget.weights(rewards), own, strict=True)
        gradients.append(sum((a * w) @ each for a, w, each in pairs))
    return np.array(gradients), spent / steps


EXPECTED = {"objective": "expected_reward", "baseline": "leave_one_out", "num_generations": 4}
ONLINE = {"mode": "online", "half_life": 1e9}
RULES = {
    "uniform": StepRule(BudgetConfig(**GROUPS), 5),
    "accepted": StepRule(
        BudgetConfig(
            **GROUPS, objective="log_likelihood", baseline="none", estimator="self_normalized"
        ),
        5,
    ),
    "balance": StepRule(BudgetConfig(**GROUPS, rounds="reinforce_ada_balance"), 5),
    "dapo": StepRule(BudgetConfig(**GROUPS, rounds="dapo"), 4, pool=12),
    "pods": StepRule(BudgetConfig(**GROUPS, keep="pods", keep_count=2), 5),
    "counts": StepRule(BudgetConfig(**EXPECTED, **ONLINE), 5, deciding=6),
    "gvm": StepRule(
        BudgetConfig(
            mode="pilot",
            allocator="gvm",
            objective="log_likelihood",
            baseline="none",
            estimator="self_normalized",
            num_generations=4,
        ),
        5,
        deciding=4,
    ),
    "pool": StepRule(BudgetConfig(**EXPECTED, **ONLINE), 5, pool=0, group=2, deciding=6),
    "single": StepRule(
        BudgetConfig(**{**EXPECTED, "baseline": "history"}, **ONLINE),
        5,
        pool=0,
        group=1,
        deciding=6,
    ),
    "nearest_half": StepRule(
        BudgetConfig(**EXPECTED, **ONLINE, allocator="nearest_half"),
        5,
        pool=0,
        group=4,
        correct=False,
        deciding=6,
    ),
}


QUICK = ("balance", "pods", "pool")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RULES]
)
def test_steps_are_as_noisy_long_and_costly_as_those_that_are_made(name):
    """Tolerances are four standard errors, over worlds, of a world's measured completions."""
    rule, available, world = RULES[name], 40, World()
    target = Target.of(rule.budget)
    gradients, rollouts = made(world, rule, available, 1500)
    prompts, between = world.measured(target)
    found = simulated_steps(rule, prompts, between, available=available, steps=800)
    mean, wanted = gradients.mean(0), world.wanted(target)
    variance = float(gradients.var(0, ddof=1).sum())
    along = float(mean @ wanted / (wanted @ wanted))
    cosine = along * np.linalg.norm(wanted) / np.linalg.norm(mean)
    assert found.noise.variance[0] == pytest.approx(variance, rel=0.15)
    assert found.noise.length[0] == pytest.approx(along, rel=0.1)
    assert found.cosine[0] == pytest.approx(cosine, abs=0.03)
    assert found.rollouts == pytest.approx(rollouts, rel=0.02)


def test_an_unbiased_rule_expects_the_gradient_of_its_target():
    rule = RULES["pool"]
    prompts, between = World().measured(Target.of(rule.budget))
    found = simulated_steps(rule, prompts, between, available=40, steps=800)
    assert found.noise.length[0] == pytest.approx(1, abs=0.08)
    assert found.cosine[0] == pytest.approx(1, abs=0.01)
    biased = simulated_steps(RULES["nearest_half"], prompts, between, available=40, steps=300)
    assert biased.noise.length[0] > 1.3  # prompts in the middle count for more


def test_leaving_a_prompt_out_is_as_without_it():
    """The other prompts alone, simulated, are as noisy as the first prompts' sums say."""
    rule = RULES["uniform"]
    world = World()
    prompts, between = world.measured(Target.of(rule.budget))
    whole = simulated_steps(rule, prompts, between, available=500, steps=2000)
    for left in (4,):
        rest = [i for i in range(len(prompts)) if i != left]
        alone = simulated_steps(
            rule,
            [prompts[i] for i in rest],
            between[np.ix_(rest, (0, 1), rest, (0, 1))],
            available=450,
            steps=2000,
        )
        assert whole.noise.variance[1 + left] == pytest.approx(alone.noise.variance[0], rel=0.1)
        assert whole.noise.length[1 + left] == pytest.approx(alone.noise.length[0], rel=0.1)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_prompts_without_any_gradient(rate):
    world = World(rates=np.full(3, rate))
    prompts, between = world.measured(Target.of(BudgetConfig(**GROUPS)), count=8)
    for rule in (RULES["uniform"], RULES["balance"], RULES["dapo"]):
        found = simulated_steps(rule, prompts, between, available=20, steps=3)
        assert found.noise.variance[0] == 0
        assert np.isnan(found.noise.length[0])
        assert np.isnan(found.cosine[0])
    assert found.rollouts > 0


def test_one_prompt():
    world = World(rates=np.array([0.5]))
    prompts, between = world.measured(Target.of(BudgetConfig(**GROUPS)))
    found = simulated_steps(RULES["uniform"], prompts, between, available=9, steps=500)
    # Deviations of groups of 4 over 1/2: 8/16 of sqrt(3)/4 and 6/16 of 1/2.
    rate = prompts[0].rewards.mean()
    assert rate == pytest.approx(0.5, abs=0.1)
    assert found.noise.length[0] == pytest.approx(np.sqrt(3) / 4 + 3 / 8, abs=0.02)
    assert found.rollouts == 20
    assert found.tokens == 60


def test_pilots_are_counted():
    rule = replace(RULES["gvm"], deciding=3)
    prompts, between = World().measured(Target.of(rule.budget))
    found = simulated_steps(rule, prompts, between, available=40, steps=10)
    assert (found.rollouts, found.pilots, found.tokens) == (20, 15, 105)
