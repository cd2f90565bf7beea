"""The embedded task, its noise, its verifier and its warm-started policy."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch

from dibs.config import PolicyConfig, WarmStartConfig
from dibs.data.arithmetic import (
    DEMONSTRATION_ACCURACY,
    MIXTURES,
    MODULUS,
    Part,
    Problem,
    apply,
    draw_problems,
    false_product,
)
from dibs.model.pretrained import load_policy
from dibs.model.warm_start import build_tokenizer, warm_started_policy
from dibs.rollouts.verify.judges import judge_arithmetic
from dibs.types import InputError

TINY_WARM_START = {"hidden_size": 32, "heads": 2, "layers": 1, "updates": 30, "batch_size": 32}
EXAMPLE = Problem(7, (("+", 4), ("*", 3), ("-", 5)))


class Certain(Random):
    """Never errs."""

    def random(self):
        return 0.0


def test_the_worked_example():
    assert EXAMPLE.prompt == "7A+4B*3C-5="
    assert EXAMPLE.values() == [11, 4, 28]
    assert EXAMPLE.answer == 28
    assert EXAMPLE.demonstration(Certain()) == "A11B4C28#28"


def test_problems_keep_to_the_task():
    problems = draw_problems(2000, [Part(1.0, 1, 4)], seed=3)
    assert len({problem.prompt for problem in problems}) == 2000
    assert {len(problem.steps) for problem in problems} == {1, 2, 3, 4}
    for problem in problems:
        for operator, operand in problem.steps:
            low, high = (2, 5) if operator == "*" else (1, 9)
            assert low <= operand <= high
        assert all(0 <= value < MODULUS for value in problem.values())
    again = draw_problems(2000, [Part(1.0, 1, 4)], seed=3)
    assert problems == again
    excluded = frozenset(problem.prompt for problem in problems)
    others = draw_problems(500, [Part(1.0, 1, 4)], seed=3, exclude=excluded)
    assert not excluded & {problem.prompt for problem in others}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_hold_their_shares(name):
    problems = draw_problems(200, MIXTURES[name], seed=1)
    assert len({problem.prompt for problem in problems}) == 200
    for part in MIXTURES[name]:
        its = [
            p
            for p in problems
            if part.min_steps <= len(p.steps) <= part.max_steps
            and {operator for operator, _ in p.steps} <= {*part.operators}
        ]
        assert len(its) == round(200 * part.share)


def test_more_problems_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="distinct problems of 1 step found, 1000 asked"):
        draw_problems(1000, [Part(1.0, 1, 1)], seed=0)


def test_a_part_with_too_few_problems_is_not_made_up_for_by_another():
    """One step: 28 numbers and 22 operations."""
    found = draw_problems(4096, MIXTURES["arithmetic-lengths"], seed=0, fewer=True)
    assert Counter(len(p.steps) for p in found) == {1: 28 * 22, 6: 2048}


def test_a_false_table_is_always_wrong_and_followed_as_often_as_the_habit_says():
    rng = Random(0)
    products = [(value, operand) for value in range(MODULUS) for operand in range(2, 6)]
    errors = [(false_product(*each) - apply("*", *each)) % MODULUS for each in products]
    assert 0 not in errors
    assert len(set(errors)) == MODULUS - 1
    right, trials = 0, 40
    for value, operand in products:
        problem = Problem(value, (("*", operand),))
        for _ in range(trials):
            shown = int(problem.demonstration(rng, habit=0.25).split("#")[1])
            assert shown in (problem.answer, false_product(value, operand))
            right += shown == problem.answer
    assert right / (trials * len(products)) == pytest.approx(0.25, abs=0.03)


def test_demonstrations_err_at_the_stated_rates_and_go_on_from_the_wrong_value():
    rng = Random(0)
    for operator, accuracy in DEMONSTRATION_ACCURACY.items():
        problem = Problem(5, ((operator, 3), ("+", 1)))
        right, n = 0, 4000
        for _ in range(n):
            chain, answer = problem.demonstration(rng).split("#")
            first, second = chain[1:].split("B")
            right += int(first) == apply(operator, 5, 3)
            assert answer == second
        error = (accuracy * (1 - accuracy) / n) ** 0.5
        assert abs(right / n - accuracy) < 5 * error


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ("A11B4C28#28", "accepted"),
        ("nonsense#28", "accepted"),
        ("A11B4C28#27", "rejected"),
        ("A11B4C28#28#28", "rejected"),
        ("#28A", "rejected"),
        ("A11B4C28", "no_answer"),
        ("A11#", "no_answer"),
        ("", "no_answer"),
    ],
)
def test_the_arithmetic_verifier_looks_only_at_what_follows_the_mark(completion, status):
    verdict = judge_arithmetic("28", completion)
    assert verdict.status == status
    assert verdict.reward == (status == "accepted")


def test_every_number_is_one_token():
    tokenizer = build_tokenizer()
    text = EXAMPLE.prompt + "A11B4C28#28"
    ids = tokenizer.encode(text)
    assert len(ids) == 11 + 8
    assert tokenizer.decode(ids) == text


def test_the_warm_start_is_deterministic_and_cached(tmp_path, monkeypatch):
    config = WarmStartConfig(**TINY_WARM_START)
    folders, heard = [], []
    for name in ("a", "b"):
        monkeypatch.setenv("DIBS_CACHE", str(tmp_path / name))
        folders.append(warm_started_policy("arithmetic", config, lambda *note: heard.append(note)))
    assert len(heard) == 60
    assert heard[29][2] < heard[0][2]  # the loss falls
    assert heard[:30] == heard[30:]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert warm_started_policy("arithmetic", config, lambda *note: heard.append(note)) == folders[1]
    assert len(heard) == 60  # from the cache, no training
    other = warm_started_policy(
        "arithmetic", config.model_copy(update={"seed": 1}), lambda *note: None
    )
    assert other != folders[1]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted(
        [folders[1].name, other.name]
    )
    policy = load_policy(PolicyConfig(model=str(folders[0])), 1.0)
    assert policy.tokenizer.encode("28#") == build_tokenizer().encode("28#")


def test_the_warm_start_leaves_random_state_and_threads_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DIBS_CACHE", str(tmp_path))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    warm_started_policy("arithmetic", WarmStartConfig(**TINY_WARM_START), lambda *note: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("DIBS_CACHE", str(blocked / "inside"))
    with pytest.raises(InputError, match=r"cannot write the warm-started policy .*set DIBS_CACHE"):
        warm_started_policy("arithmetic", WarmStartConfig(), lambda *note: None)
