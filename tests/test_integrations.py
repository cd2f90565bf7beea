"""The three-call use of per-prompt budgets."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from conftest import make_group, make_prompt
from dibs import objectives
from dibs.estimate import completion_sums, group_sums
from dibs.integrations.any import BudgetConfig, PromptBudget
from dibs.types import InputError

NAMES = [f"p{i}" for i in range(6)]
REWARDS = [
    [1.0] * 8,
    [0.0] * 8,
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 0, 0, 0, 0],
    [0] * 8,
    [1] * 8,
]


def test_nothing_known_is_uniform_and_what_is_learnt_counts():
    budget = PromptBudget(BudgetConfig(objective="expected_reward", baseline="leave_one_out"))
    assert budget.allocate(NAMES).tolist() == [8] * 6
    budget.update(NAMES, REWARDS)
    counts = budget.allocate(NAMES)
    assert counts.sum() == 48
    assert counts[3] == counts.max() > counts[0]
    assert budget.metrics()["count_max"] == counts.max()
    assert budget.metrics()["expected_gain"] > 1


def test_the_budget_is_exact_whatever_it_is():
    budget = PromptBudget(BudgetConfig(num_generations=4, upper=9))
    budget.update(NAMES, REWARDS)
    for total in (0, 1, 13, 54):
        counts = budget.allocate(NAMES, total)
        assert counts.sum() == total
        assert counts.max() <= 9
    with pytest.raises(InputError, match="budget"):
        budget.allocate(NAMES, 55)


def test_a_prompt_may_occur_twice():
    budget = PromptBudget(BudgetConfig(objective="expected_reward", baseline="leave_one_out"))
    for _ in range(3):
        budget.update(NAMES, REWARDS)
    counts = budget.allocate(["p3", "p0", "p1", "p3", "p4", "p5"])
    assert counts.sum() == 48
    assert abs(counts[0] - counts[3]) <= 1
    assert counts[3] > counts[1]


@pytest.mark.parametrize("objective", ["expected_reward", "grpo", "log_likelihood"])
@pytest.mark.parametrize("estimator", ["prompt_mean", "self_normalised", "flat"])
def test_weights_are_those_of_the_trainer(objective, estimator):
    baseline = objectives.BASELINES[objective][0]
    budget = PromptBudget(BudgetConfig(objective=objective, baseline=baseline, estimator=estimator))
    budget.allocate(NAMES[:3])
    rewards = [[1.0, 0.0, 1.0], [0.0], []]
    groups = [make_group(values, make_prompt(n)) for n, values in zip(NAMES, rewards, strict=False)]
    expected = objectives.weigh(
        groups,
        objective=objective,
        baseline=baseline,
        estimator=estimator,
        accept_rates=budget._problem.posterior.accept_rate,
    )
    for found, wanted in zip(budget.weights(rewards), expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_deviation_is_the_trainers():
    budget = PromptBudget(BudgetConfig(deviation="sample", deviation_epsilon=0.5))
    budget.allocate(["a"])
    advantages, _ = budget.weights([[1.0, 0.0]])
    np.testing.assert_allclose(advantages[0], np.array([0.5, -0.5]) / (np.sqrt(0.5) + 0.5))
    assert budget.metrics()["count_min"] == budget.metrics()["count_max"] == 8


def test_a_group_of_one_has_no_advantage():
    budget = PromptBudget(BudgetConfig())
    budget.allocate(["a"])
    advantages, _ = budget.weights([[1.0]])
    assert advantages[0].tolist() == [0.0]


def test_arrays_sum_up_as_rollouts_do():
    group = make_group([1.0, 0.0, 0.5])
    norms = np.array([2.0, 0.0, 3.0])
    lengths = np.array([len(r.completion.token_ids) for r in group.rollouts])
    logprobs = np.array([sum(r.completion.sampling_logprobs) for r in group.rollouts])
    found = completion_sums(group.accepted, group.rewards, lengths, logprobs, norms)
    np.testing.assert_array_equal(found, group_sums(group, norms))


def test_state_goes_on():
    one, other = PromptBudget(BudgetConfig()), PromptBudget(BudgetConfig())
    for _ in range(3):
        one.update(NAMES, REWARDS, lengths=[[5] * 8] * 6, grad_norms=[[2.0] * 8] * 6)
    other.load_state(json.loads(json.dumps(one.state())))
    assert other.step == 3
    assert other.allocate(NAMES).tolist() == one.allocate(NAMES).tolist()
    assert other.metrics() == one.metrics()


def test_pilots_decide_once_and_are_counted():
    budget = PromptBudget(
        BudgetConfig(mode="pilot", allocator="gvm", objective="log_likelihood", baseline="none")
    )
    budget.take_pilots(NAMES, REWARDS)
    # Norms of 1: weights 1 / sqrt(p + alpha / p) are 0.9995, 2.742 and 1.411 at p = 1, 1/8 and 1/2.
    assert budget.allocate(NAMES).tolist() == [8, 0, 21, 11, 0, 8]
    assert budget.metrics()["pilots"] == 48
    budget.update(NAMES, REWARDS)
    assert len(budget.history) == 0
    with pytest.raises(InputError, match="pilots of 0 prompts, but 6 to allocate"):
        budget.allocate(NAMES)
    with pytest.raises(InputError, match="pilots are of no use in mode online"):
        PromptBudget(BudgetConfig()).take_pilots(NAMES, REWARDS)


def test_mode_none_remembers_nothing():
    budget = PromptBudget(BudgetConfig(mode="none", allocator="uniform"))
    for _ in range(2):
        assert budget.allocate(NAMES).tolist() == [8] * 6
        budget.update(NAMES, REWARDS)
    assert (len(budget.history), budget.step) == (0, 2)


def test_bad_input():
    budget = PromptBudget(BudgetConfig())
    with pytest.raises(InputError, match="rewards of 1 prompts, but 0 allocated"):
        budget.weights([[1.0]])
    with pytest.raises(InputError, match=r"prompt 'a': a reward is nan"):
        budget.update(["a"], [[float("nan")]])
    with pytest.raises(InputError, match=r"rewards of 1 prompts, but 2 prompt ids"):
        budget.update(["a", "b"], [[1.0]])
    with pytest.raises(InputError, match=r"prompt 'a': 1 numbers for 2 completions"):
        budget.update(["a"], [[1.0, 0.0]], lengths=[[3]])
    for bad, why in (
        ({"objective": "grpo", "baseline": "none"}, "has no baseline none"),
        ({"allocator": "best"}, "unknown allocator 'best'"),
        ({"allocator": "gvm"}, "needs pilots"),
        ({"mode": "none"}, "needs accept rates"),
        ({"lower": 9}, "num_generations 8 is not between lower 9"),
        ({"number": 9}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=why):
            BudgetConfig(**bad)


def test_the_example_learns():
    script = Path(__file__).parents[1] / "examples" / "any_trainer.py"
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    lines = said.stdout.splitlines()
    rates = [float(line.split()[5].rstrip(",")) for line in lines[:3]]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0] + 0.05
    assert json.loads(lines[-1])["count_sum"] == 256


@pytest.mark.skipif(find_spec("trl") is not None, reason="TRL is installed")
def test_without_trl_one_line_names_the_extra_and_the_versions():
    done = subprocess.run(
        [sys.executable, "-c", "import dibs.integrations.trl"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1] == (
        "ImportError: dibs.integrations.trl needs TRL 1.16 or later, below 2, and found none; run: "
        "pip install 'dibs-rl[trl]'"
    )
