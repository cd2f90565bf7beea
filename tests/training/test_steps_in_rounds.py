"""Steps whose completions are drawn in rounds, and that train on some of what was drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dibs import BudgetConfig, PromptBudget
from dibs.allocation.choice import Choice, choose
from dibs.allocation.cross_fit import StepEstimate, undivided
from dibs.allocation.statistics import no_statistics
from dibs.config import Config
from dibs.config.load import load_config
from dibs.files import read_lines
from dibs.runs.check_config import check_config
from dibs.training.examples import weighted_examples
from dibs.training.rounds import draw_in_rounds, left_in
from dibs.types import Completion, Group, InputError, Rollout
from tiny_groups import make_prompt
from tiny_runs import run

PROMPTS = [make_prompt(f"{i:02x}", (i,)) for i in range(4)]
RUN = ["--estimate.mode=none", "--allocate.allocator=uniform", "--algorithm.name=grpo"]
RULES = {
    "reinforce_ada_pos": [],
    "reinforce_ada_balance": [],
    "ar3po": [],
    "speed": ["--select.pool=16"],
    "pilot_commit": ["--select.pool=16"],
    "dapo": ["--select.pool=16"],
}


def config(**allocate: Any) -> Config:
    return Config.model_validate(
        {
            "algorithm": {"name": "grpo"},
            "estimate": {"mode": "none"},
            "train": {"prompts_per_step": 2},
            "allocate": {"allocator": "uniform", "num_generations": 4, **allocate},
        }
    )


def script(*texts: str):
    """Draws what the texts say: ``+`` accepted, ``-`` rejected, ``?`` without a verdict."""
    calls: list[tuple[list[int], list[int]]] = []

    def draw(counts: np.ndarray, first: np.ndarray) -> list[Group]:
        calls.append((counts.tolist(), first.tolist()))
        groups = []
        for prompt, text, start, count in zip(PROMPTS, texts, first, counts, strict=False):
            now = text[start : start + count]
            rollouts = [
                Rollout(
                    prompt,
                    Completion((int(start) + i,), "", (-0.1,), finished=True),
                    float(kind == "+"),
                    "",
                    kind == "+",
                )
                for i, kind in enumerate(now)
                if kind != "?"
            ]
            groups.append(Group(prompt, tuple(rollouts), ("timeout",) * now.count("?")))
        return groups

    return draw, calls


def candidates(own: Config, n: int) -> Choice:
    estimate: StepEstimate = undivided(no_statistics(PROMPTS[:n]), PROMPTS[:n])
    return choose(PROMPTS[:n], estimate, own, 1)


def step(own: Config, *texts: str):
    """Counts, shares, and the examples of a step that draws what the texts say."""
    draw, calls = script(*texts)
    choice, groups = draw_in_rounds(candidates(own, len(texts)), own, draw)
    kept, parts = left_in([groups], choice.parts, own)
    return choice, weighted_examples(kept, parts, choice.problems, own), calls


def numbers(examples) -> list[tuple[int, int]]:
    """The prompt and the number of the completion of each example."""
    return [(each.context_ids[0], each.completion_ids[0]) for each in examples]


def test_half_groups_until_something_is_accepted():
    choice, examples, calls = step(config(rounds="ar3po"), "--+", "---+")
    assert calls == [([2, 2], [0, 0]), ([2, 2], [2, 2])]
    assert choice.allocation.counts.tolist() == [4, 4]
    assert choice.metrics["rounds"] == 2
    # "--+" has three completions in all: asking for a fourth got none.
    assert numbers(examples) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    # Weight 1/(2 n), advantage (r - mean) / deviation: 2/3 over sqrt(2)/3, 3/4 over sqrt(3)/4.
    assert [e.weight for e in examples] == pytest.approx([1 / 6] * 3 + [1 / 8] * 4)
    assert examples[2].advantage == pytest.approx(np.sqrt(2))
    assert examples[6].advantage == pytest.approx(np.sqrt(3))


def test_no_more_rounds_than_allowed():
    choice, _, calls = step(config(rounds="ar3po", max_rounds=3), "-" * 12)
    assert len(calls) == 3
    assert choice.allocation.counts.tolist() == [6]


def test_reinforce_ada_keeps_half_of_each_and_normalizes_over_all():
    """Five completions: -, -, -, -, then ++-- : kept 2 + 2 of 8, mean 2/8 over all of them."""
    own = config(rounds="reinforce_ada_pos")
    choice, examples, _ = step(own, "----++--", "++--")
    assert choice.allocation.counts.tolist() == [8, 4]
    assert numbers(examples)[:4] == [(0, 0), (0, 1), (0, 4), (0, 5)]
    deviation = np.sqrt(0.25 * 0.75)
    assert [e.advantage for e in examples[:4]] == pytest.approx(
        [-0.25 / deviation] * 2 + [0.75 / deviation] * 2
    )
    assert [e.weight for e in examples] == pytest.approx([1 / 8] * 8)


def test_pods_normalizes_over_what_it_keeps():
    own = config(keep="pods", keep_count=2)
    (group,) = script("+---")[0](np.array([4]), np.array([0]))
    choice = candidates(own, 1)
    kept, parts = left_in([[group]], choice.parts, own)
    examples = weighted_examples(kept, parts, choice.problems, own)
    assert numbers(examples) == [(0, 0), (0, 1)]
    assert [e.advantage for e in examples] == pytest.approx([1, -1])


def test_dapo_fills_up_with_further_prompts_and_trains_on_those_that_differ():
    own = config(rounds="dapo")
    choice, examples, calls = step(own, "++++", "+---", "----", "-++-")
    assert calls == [
        ([4, 4, 0, 0], [0, 0, 0, 0]),
        ([0, 0, 4, 0], [4, 4, 0, 0]),
        ([0, 0, 0, 4], [4, 4, 4, 0]),
    ]
    assert choice.allocation.counts.tolist() == [4, 4, 4, 4]
    assert choice.parts[0].shares.tolist() == [0, 0.5, 0, 0.5]
    assert {prompt for prompt, _ in numbers(examples)} == {1, 3}
    assert choice.metrics["trained_prompts"] == 2


def test_dapo_leaves_candidates_that_are_not_needed_undrawn():
    choice, _, _ = step(config(rounds="dapo"), "+---", "+---", "", "")
    assert [prompt.prompt_id for prompt in choice.prompts] == ["00", "01"]


def test_a_step_in_which_nothing_qualifies_has_no_examples():
    choice, examples, _ = step(config(rounds="dapo"), "++++", "++++", "++++", "++++")
    assert examples == []
    assert choice.metrics["trained_prompts"] == 0


def test_completions_without_a_verdict_are_not_drawn_for_ever():
    choice, examples, calls = step(config(rounds="reinforce_ada_pos"), "?" * 16)
    assert len(calls) == 4
    assert choice.allocation.counts.tolist() == [16]
    assert examples == []


def test_selectors_of_the_user_choose_in_the_loop(own_rules):
    name = own_rules(
        rule=lambda so_far: np.where(so_far.asked == 0, 4, 0), trained=lambda so_far: so_far.spread
    )
    choice, examples, _ = step(config(rounds=name), "++++", "+---", "----", "-++-")
    assert choice.parts[0].shares.tolist() == [0, 0.5, 0, 0.5]
    assert {prompt for prompt, _ in numbers(examples)} == {1, 3}
    weighing = own_rules(rule=lambda problem, rng: [1, 1e-9, 1e-9, 1e-9])
    own = Config.model_validate(
        {
            "algorithm": {"name": "grpo"},
            "train": {"prompts_per_step": 2},
            "select": {"pool": 4, "uniform_share": 0.01},
            "allocate": {"allocator": weighing, "num_generations": 4},
            "estimate": {"mode": "online"},
        }
    )
    found = choose(PROMPTS, undivided(no_statistics(PROMPTS), PROMPTS), own, 1)
    assert found.prompts[0] is PROMPTS[0]
    assert found.allocation.counts[0] > 4
    check_config(own)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_a_budget_weighs_completions_as_the_loop_does(rule, seed):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(["+", "-"], 16, p=[p, 1 - p])) for p in (0.1, 0.5, 0.9, 0.3)]
    _, examples, calls = step(config(rounds=rule), *texts)

    names = [prompt.prompt_id for prompt in PROMPTS]
    options = BudgetConfig(
        mode="none", allocator="uniform", num_generations=4, rounds=rule, objective="grpo"
    )
    budget = PromptBudget(options)
    rewards: list[list[float]] = [[] for _ in names]
    counts = budget.allocate(names, wanted=2)
    for asked, _ in calls:
        assert counts.tolist() == asked
        for group, text, count in zip(rewards, texts, counts, strict=True):
            group += [float(kind == "+") for kind in text[len(group) : len(group) + count]]
        counts = budget.more(rewards)
    assert not counts.any()
    advantages, weights = budget.weights(rewards)
    found = {
        (i, int(j)): (each[j], advantages[i][j])
        for i, each in enumerate(weights)
        for j in np.flatnonzero(each * advantages[i])
    }
    expected = {
        number: (example.weight, example.advantage)
        for number, example in zip(numbers(examples), examples, strict=True)
        if example.advantage
    }
    assert found.keys() == expected.keys()
    for number, pair in found.items():
        assert pair == pytest.approx(expected[number])


def test_a_keeper_does_not_touch_small_groups():
    own = config(keep="balanced", keep_count=2)
    groups = script("+", "")[0](np.array([1, 0]), np.array([0, 0]))
    kept, _ = left_in([groups], candidates(own, 2).parts, own)
    assert [len(group.rollouts) for group in kept[0]] == [1, 0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"allocate.allocator": "vip"},
            "decides the counts itself; set allocate.allocator to uniform",
        ),
        ({"estimate.mode": "pilot"}, "pilots of mode pilot have no use"),
        ({"allocate.budget": 64}, "so it has no budget"),
        ({"allocate.lower": 1}, "knows no allocate.lower"),
        ({"select.pool": "all"}, "every training prompt a candidate"),
        ({"select.pool": 8}, "select.pool 8 is smaller than train.prompts_per_step"),
        ({"select.pool": 64, "select.correct": False}, "belong to expected counts"),
        ({"algorithm.estimator": "flat"}, "estimator flat weighs completions alike"),
        ({"train.shape": "auto"}, "train.shape auto measures counts"),
        ({"allocate.keep_count": 1}, "allocate.keep_count 1 is below 2"),
        ({"allocate.max_rounds": 0}, "allocate.max_rounds"),
    ],
)
def test_settings_that_contradict_rounds(more, said):
    values = {
        "algorithm.name": "grpo",
        "allocate.allocator": "uniform",
        "estimate.mode": "none",
        "allocate.rounds": "dapo",
    } | more
    with pytest.raises(InputError, match=said):
        load_config(None, {key: str(value) for key, value in values.items()})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--allocate.rounds=dap"], "unknown rule for rounds 'dap'"),
        (["--allocate.keep=best", "--allocate.keep_count=2"], "unknown keeper 'best'"),
        (["--allocate.keep=pods"], "allocate.keep pods needs allocate.keep_count"),
        (["--allocate.keep_count=2"], "allocate.keep_count 2 needs allocate.keep"),
        (["--allocate.rounds=ar3po", "--allocate.keep_count=2"], "ar3po keeps all completions"),
        (["--allocate.rounds=ar3po", "--select.pool=16"], "trains on all prompts of a batch"),
        (
            ["--allocate.allocator=knapsack", "--estimate.mode=online", "--select.pool=all"],
            "allocator knapsack decides counts of a fixed batch; leave select.pool out",
        ),
        (
            ["--allocate.allocator=greso", "--estimate.mode=pilot", "--select.pool=16"],
            "greso needs the history of earlier steps; set estimate.mode to online, in place of pilot",
        ),
        (
            ["--allocate.allocator=mopps", "--estimate.mode=online"],
            "allocator mopps draws at random, so it needs a pool: select.pool",
        ),
        (
            ["--allocate.allocator=dapo", "--estimate.mode=online"],
            "dapo draws in rounds; name it as allocate.rounds",
        ),
    ],
)
def test_names_and_settings_that_have_no_use(tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path / "run", *RUN, *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "dapo" else pytest.mark.slow) for n in RULES]
)
def test_every_rollout_of_every_round_is_counted(tmp_path, name):
    """Of a real run: in the totals and in each step's counts; and updates are those of uniform."""
    summary = run(tmp_path / "run", *RUN, *RULES[name], f"--allocate.rounds={name}")
    steps = list(read_lines(tmp_path / "run" / "metrics.jsonl"))[1:]
    counted = list(read_lines(tmp_path / "run" / "allocations.jsonl"))
    assert [line["count_sum"] for line in steps] == [sum(line["count"]) for line in counted]
    assert summary["rollouts"] == sum(line["count_sum"] for line in steps)
    assert all(line["judged"] == line["count"] for line in counted)
    assert summary["optimizer_updates"] == 2 * len(steps)  # update.updates_per_step
    assert max(line["rounds"] for line in steps) > 1
    assert all(line["trained_prompts"] <= 8 for line in steps)


def test_completions_of_later_rounds_are_new_ones(tmp_path):
    run(
        tmp_path / "run",
        *RUN,
        "--allocate.rounds=reinforce_ada_balance",
        "--tracking.samples=10000",
        "--tracking.samples_interval=1",
        "--train.steps=1",
        "--allocate.num_generations=16",
        "--allocate.max_rounds=2",
    )
    (line,) = read_lines(tmp_path / "run" / "allocations.jsonl")
    assert 32 in line["count"]
    samples = list(read_lines(tmp_path / "run" / "samples.jsonl"))
    for name, count in zip(line["prompt_id"], line["count"], strict=True):
        own = [each["completion"] for each in samples if each["prompt_id"] == name]
        assert len(own) == count
        assert count == 16 or own[:16] != own[16:]


def test_uniform_counts_are_a_rule_that_draws_one_round():
    """A rule that asks for a group once gives the examples of a uniform step, weight by weight."""
    own = config(rounds="reinforce_ada_pos", max_rounds=1)
    texts = "+--+", "-+--"
    _, examples, _ = step(own, *texts)
    plain = config()
    choice = candidates(plain, 2)
    groups = script(*texts)[0](choice.allocation.counts, np.zeros(2, dtype=np.int64))
    expected = weighted_examples([groups], choice.parts, choice.problems, plain)
    assert [replace(each) for each in examples] == expected
