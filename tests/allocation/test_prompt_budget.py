"""The three-call use of per-prompt budgets."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.estimators import weigh
from dibs.allocation.prompt_budget import PromptBudget
from dibs.allocation.statistics import completion_sums, group_sums
from dibs.allocation.target import BASELINES, Target
from dibs.types import InputError
from tiny_groups import make_group, make_prompt

NAMES = [f"p{i}" for i in range(6)]
REWARDS: list[list[float]] = [
    [1.0] * 8,
    [0.0] * 8,
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 0, 0, 0, 0],
    [0] * 8,
    [1] * 8,
]
ORDER_K: dict[str, Any] = {
    "objective": "log_likelihood",
    "baseline": "none",
    "estimator": "order_k",
}


def test_nothing_known_is_uniform_and_what_is_learned_counts():
    budget = PromptBudget(BudgetConfig(objective="expected_reward", baseline="leave_one_out"))
    assert budget.allocate(NAMES).tolist() == [8] * 6
    for _ in range(3):
        budget.update(NAMES, REWARDS)
    counts = budget.allocate(NAMES)
    assert counts.sum() == 48
    assert counts[3] == counts.max() > counts[0]
    assert budget.metrics()["count_max"] == counts.max()
    gain = budget.metrics()["expected_gain"]
    assert isinstance(gain, float)
    assert gain > 1


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
@pytest.mark.parametrize("estimator", ["prompt_mean", "self_normalized", "flat"])
def test_weights_are_those_of_the_trainer(objective, estimator):
    baseline = BASELINES[objective][0]
    budget = PromptBudget(BudgetConfig(objective=objective, baseline=baseline, estimator=estimator))
    budget.allocate(NAMES[:3])
    rewards = [[1.0, 0.0, 1.0], [0.0], []]
    groups = [make_group(values, make_prompt(n)) for n, values in zip(NAMES, rewards, strict=False)]
    assert budget._problem is not None
    expected = weigh(
        groups,
        target=Target(objective, baseline),
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


def test_order_k_needs_groups_of_its_order_and_weighs_by_subsets():
    budget = PromptBudget(BudgetConfig(**ORDER_K))
    budget.update(["a", "b"], [[1.0] * 8, [0.0] * 7 + [1.0]])
    assert budget.allocate(["a", "b"]).min() >= 4
    advantages, weights = budget.weights([[1.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    # 1/|D| times the pass@4 of 2 in 5; and the order of 3 where only 3 came.
    np.testing.assert_allclose(advantages[0] * weights[0] * 2, [0.5, 0, 0, 0, 0.5])
    np.testing.assert_allclose(advantages[1] * weights[1] * 2, [0, 0, 1])
    with pytest.raises(InputError, match="its order, 4"):
        budget.allocate(["a", "b"], 7)


def test_an_expected_deviation_is_that_of_earlier_completions():
    budget = PromptBudget(BudgetConfig(deviation="expected", half_life=1e9))
    budget.update(["a", "b"], [[1.0, 0.0] * 5000, [1.0] + [0.0] * 9999])
    budget.allocate(["a", "b"])
    advantages, weights = budget.weights([[1.0, 0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(advantages[0], [2, -1, -1], rtol=1e-3)
    assert advantages[1][1] == -advantages[1][0]
    assert 60 < advantages[1][1] < 140
    np.testing.assert_allclose(weights[0], 1 / 6)
    found, _ = budget.weights([[1.0], [1.0, 1.0]])
    assert [each.tolist() for each in found] == [[0.0], [0.0, 0.0]]


def test_real_rewards_have_an_expected_deviation_too():
    budget = PromptBudget(BudgetConfig(deviation="expected", half_life=1e9))
    budget.update(["a", "b"], [[3.0, -1.0] * 5000, [3.0, -1.0] * 5000])
    budget.allocate(["a", "b"])
    advantages, _ = budget.weights([[3.0, -1.0], [3.0]])
    np.testing.assert_allclose(advantages[0], [2, -2], rtol=1e-3)


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


def test_pilots_are_matched_by_name():
    budget = PromptBudget(BudgetConfig(mode="pilot", objective="expected_reward"))
    budget.take_pilots(["a", "b"], [[0] * 8, [1, 0] * 4])
    with pytest.raises(InputError, match="pilots of prompt 'a' where 'b' is to be allocated"):
        budget.allocate(["b", "a"])


@pytest.mark.parametrize(
    ("rewards", "counts"),
    [
        # Pooled over the others: p = 1/2, so that 1/sqrt(p + 0.001/p) is 0.9995 and 1.411.
        ([[1.0, 1.0], [], [0.0, 0.0]], [10, 14, 0]),
        ([[], [0.0], []], [8, 8, 8]),
        ([[], [], []], [8, 8, 8]),
    ],
)
def test_a_prompt_without_a_judged_pilot_is_an_average_one(rewards, counts):
    budget = PromptBudget(
        BudgetConfig(mode="pilot", allocator="gvm", objective="log_likelihood", baseline="none")
    )
    names = ["a", "b", "c"]
    budget.take_pilots(names, rewards)
    assert budget.allocate(names).tolist() == counts


def test_a_threshold_is_met_in_float32():
    budget = PromptBudget(
        BudgetConfig(objective="log_likelihood", baseline="none", accept_threshold=0.9)
    )
    budget.allocate(["a"])
    reward = float(np.float32(0.9))
    assert reward < 0.9
    advantages, _ = budget.weights([[reward, 0.89]])
    assert advantages[0][0] > 0
    assert advantages[0][1] == 0
    budget.update(["a"], [[reward, 0.89]])
    assert budget.history.sums(["a"], 0)[0, :2].tolist() == [2, 1]


def test_names_that_look_like_numbered_ones():
    budget = PromptBudget(BudgetConfig())
    assert budget.allocate(["a", "a#2", "a", "a at 0"]).tolist() == [8] * 4


def test_counts_are_the_callers_own():
    budget = PromptBudget(BudgetConfig())
    counts = budget.allocate(["a", "b"])
    counts -= 3
    assert budget.metrics()["count_sum"] == 16


def visit(budget: PromptBudget, names: list[str], rewards: list[list[float]]) -> None:
    budget.allocate(names)
    budget.update(names, rewards)


def test_prompts_that_come_back_too_late_are_told_once(caplog):
    """Completions halve every step: of 8, one is left after 3 steps and half a one after 4."""
    known = [[1.0, 0.0] * 4] * 2
    budget = PromptBudget(BudgetConfig(half_life=1, objective="expected_reward"))
    visit(budget, ["a", "b"], known)
    assert budget.metrics()["returning_trials"] is None
    for step in range(2):
        visit(budget, [f"c{step}"], known[:1])
    visit(budget, ["a"], known[:1])
    assert budget.metrics()["returning_trials"] == 1
    assert not caplog.records
    assert budget.metrics()["known_prompts"] == 4
    visit(budget, ["b"], known[:1])
    visit(budget, ["c0"], known[:1])
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert "0.5 completions left" in said
    assert "half_life is 1 steps" in said
    assert "raise half_life" in said
    assert "\n" not in said


def test_prompts_that_never_come_back_are_told_too(caplog):
    loud = PromptBudget(BudgetConfig(half_life=1))
    others = [
        PromptBudget(BudgetConfig(half_life=1), warns=False),
        PromptBudget(BudgetConfig(half_life=1, allocator="uniform")),
    ]
    for step in range(20):
        for budget in (loud, *others):
            visit(budget, [f"p{step}"], [[1.0, 0.0]])
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "prompts are forgotten before they come back"
    ]
    assert len(loud.history) == 14
    assert loud.metrics()["known_prompts"] == 2


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
    with pytest.raises(InputError, match=r"prompt 'a': 1 lengths for 2 completions"):
        budget.update(["a"], [[1.0, 0.0]], lengths=[[3]])
    with pytest.raises(InputError, match="grad_norms of 3 prompts, but 1 prompt ids"):
        budget.update(["a"], [[1.0]], grad_norms=[[1.0]] * 3)
    with pytest.raises(InputError, match=r"rewards have shape \(\); give a sequence"):
        budget.update(["a"], [1.0])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"a length is -1\.0; it must be at least 0"):
        budget.update(["a"], [[1.0]], lengths=[[-1]])
    for what in ("lengths", "logprobs", "grad_norms"):
        for bad in (np.nan, np.inf):
            reported: dict[str, Any] = {what: [[bad]]}
            with pytest.raises(InputError, match=f"prompt 'a': a {what[:-1]} is {bad}; leave out"):
                budget.update(["a"], [[1.0]], **reported)
    assert len(budget.history) == 0
    budget.allocate(["a"])
    for reward in (np.nan, np.inf, None):
        with pytest.raises(InputError, match=r"prompt 'a': a reward is (nan|inf)"):
            budget.weights([[1.0, reward]])  # type: ignore[list-item]
    with pytest.raises(InputError, match="a reward is no number"):
        budget.weights([["good"]])  # type: ignore[list-item]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"objective": "grpo", "baseline": "none"}, "has no baseline none"),
        ({"allocator": "best"}, "unknown allocator 'best'"),
        ({"allocator": "gvm"}, "needs pilots"),
        ({"mode": "none"}, "needs accept rates"),
        ({"estimator": "order_k"}, "order_k is for objective log_likelihood, not grpo"),
        (
            {**ORDER_K, "order": 9},
            "order 9 needs groups of 9 completions, but num_generations is 8",
        ),
        ({**ORDER_K, "upper": 3}, "order 4 needs groups of 4 .* upper 3; lower order"),
        ({"order": 3}, "order 3 needs estimator: order_k"),
        ({"deviation": "expected", "objective": "log_likelihood"}, "is for objective grpo"),
        (
            {"deviation": "expected", "mode": "none", "allocator": "uniform"},
            "deviation expected needs accept rates",
        ),
        (
            {
                "objective": "expected_reward",
                "baseline": "history",
                "mode": "none",
                "allocator": "uniform",
            },
            "baseline history needs accept rates",
        ),
        ({"baseline": "history"}, "set deviation to expected"),
        ({"lower": 9}, "num_generations 8 is not between lower 9"),
        ({"number": 9}, "Extra inputs"),
    ]
    for options, why in refused:
        with pytest.raises(ValidationError, match=why):
            BudgetConfig(**options)


def test_the_example_learns():
    script = Path(__file__).parents[2] / "examples" / "any_trainer.py"
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    lines = said.stdout.splitlines()
    rates = [float(line.split()[5].rstrip(";")) for line in lines[:3]]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0] + 0.05
    last = json.loads(lines[-1])
    assert last["count_sum"] == 128
    assert last["expected_gain"] > 1.1


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


def test_measured_norms_and_the_constant_one_are_kept_apart(caplog):
    norms = [[30.0] * 8] * 4
    first, second = NAMES[:4], NAMES[2:]
    budget = PromptBudget(BudgetConfig(objective="expected_reward", baseline="none"))
    budget.update(first, [[1.0] * 4 + [0.0] * 4] * 4, grad_norms=norms)
    resumed = PromptBudget(budget.config)
    resumed.load_state(json.loads(json.dumps(budget.state())))
    resumed.update(first, [[1.0] * 8] * 4, grad_norms=norms)
    assert not caplog.records
    for each in (budget, resumed):
        each.update(second, [[1.0] * 4 + [0.0] * 4] * 4)
        assert each.metrics()["known_prompts"] == 4  # those of the second call
        assert "4 prompts is forgotten: it came with gradient norms" in caplog.text
        caplog.clear()
        each.update(first, [[1.0] * 8] * 4)
        assert each.metrics()["known_prompts"] == 6
        assert not caplog.records


def test_norms_of_losses_that_divide_otherwise_are_kept_apart(caplog):
    config = BudgetConfig(objective="expected_reward", baseline="none")
    budget = PromptBudget(config, length_normalization="sequence")
    budget.update(NAMES[:4], [[1.0] * 8] * 4, grad_norms=[[0.3] * 8] * 4)
    state = json.loads(json.dumps(budget.state()))
    resumed = PromptBudget(config, length_normalization="sequence")
    resumed.load_state(state)
    assert resumed.state() == budget.state()
    assert not caplog.records
    other = PromptBudget(config)
    other.load_state(state)
    assert other.metrics()["known_prompts"] == 0
    assert "4 prompts is forgotten: its gradient norms are of another loss" in caplog.text


GIVEN: dict[str, Any] = {"objective": "expected_reward", "baseline": "none", "advantages": "given"}


def test_a_trainers_own_advantages_are_in_its_norms():
    """Accept rates all alike, so that only the norms of the whole terms tell the prompts apart."""
    budget = PromptBudget(BudgetConfig(**GIVEN))
    norms = [[2.0**i] * 8 for i in range(6)]
    for _ in range(3):
        budget.allocate(NAMES)
        budget.update(NAMES, [[1.0, 0.0] * 4] * 6, grad_norms=norms)
    counts = budget.allocate(NAMES)
    assert counts.tolist() == [1, 2, 3, 6, 12, 24]  # in proportion to the norms
    advantages, weights = budget.weights([[0.5] * int(n) for n in counts])
    assert np.concatenate(advantages).tolist() == [1.0] * 48
    assert sum(each.sum() for each in weights) == pytest.approx(1)


def test_norms_with_advantages_are_not_mixed_with_norms_without(caplog):
    own, given = PromptBudget(BudgetConfig()), PromptBudget(BudgetConfig(**GIVEN))
    own.update(["a"], [[1.0, 0.0]], grad_norms=[[1.0, 2.0]])
    given.load_state(own.state())
    assert "of another loss" in caplog.text
    assert given.metrics()["known_prompts"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"objective": "grpo", "baseline": "mean"}, "has subtracted its own baseline"),
        ({"allocator": "gvm", "mode": "pilot"}, "gvm takes norms without advantages"),
    ],
)
def test_what_given_advantages_do_not_go_with(more, said):
    with pytest.raises(ValidationError, match=said):
        BudgetConfig(**{**GIVEN, **more})
