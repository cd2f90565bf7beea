"""Rules that draw in rounds, and rules for which completions are kept: by hand, and degenerate cases."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dibs.allocation import rules
from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.drawn import Drawn
from dibs.allocation.rounds import StepInRounds, keeper, named_rules, rounds_rule
from dibs.types import InputError


def drawn(groups: list[str], rounds: int = 1, group: int = 8, wanted: int = 2) -> Drawn:
    """Completions of each prompt: ``+`` accepted, ``-`` rejected, ``?`` without a verdict."""
    judged = [[each == "+" for each in text if each != "?"] for text in groups]
    accepted = [np.array(each, dtype=bool) for each in judged]
    return Drawn(
        rounds,
        np.array([len(text) for text in groups]),
        [each.astype(np.float64) for each in accepted],
        accepted,
        group,
        wanted,
    )


NOTHING = drawn(["", "", ""], rounds=0)


@pytest.mark.parametrize(
    ("name", "so_far", "expected"),
    [
        ("reinforce_ada_pos", NOTHING, [8, 8, 8]),
        ("reinforce_ada_pos", drawn(["-" * 8, "-" * 7 + "+", "?" * 8]), [8, 0, 8]),
        ("reinforce_ada_balance", NOTHING, [8, 8, 8]),
        ("reinforce_ada_balance", drawn(["++++----", "+++-----", "+" * 8]), [0, 8, 8]),
        ("reinforce_ada_balance", drawn(["++---"], group=5), [0]),  # two right, three wrong
        ("ar3po", NOTHING, [4, 4, 4]),
        ("ar3po", drawn(["----", "---+", "????"]), [4, 0, 4]),
        ("speed", NOTHING, [2, 2, 2]),
        ("speed", drawn(["++", "+-", "--", "-+", "+-"]), [0, 6, 0, 6, 0]),
        ("speed", drawn(["++", "+-" * 4, "--", "-+" * 4, "+-"], rounds=2), [0, 0, 0, 0, 0]),
        ("pilot_commit", NOTHING, [2, 2, 2]),
        # 2 x 8 in all; 5 pilot pairs are 10, and 6 are left: enough for one.
        ("pilot_commit", drawn(["++", "+-", "--", "-+", "?+"]), [0, 6, 0, 0, 0]),
        # Half of 2 x 8 is enough for four pilot pairs.
        ("pilot_commit", drawn([""] * 6, rounds=0), [2, 2, 2, 2, 0, 0]),
        ("pilot_commit", drawn(["", ""], rounds=0, group=2, wanted=1), [2, 0]),  # one at least
        ("pilot_commit", drawn(["+---", "----"], group=16, wanted=2), [12, 0]),  # p = 1/4 is in
        ("dapo", NOTHING, [8, 8, 0]),
        ("dapo", drawn(["+" * 8, "+" + "-" * 7, ""]), [0, 0, 8]),
        ("dapo", drawn(["+" * 8, "-" * 8, ""]), [0, 0, 8]),  # one is missing, but none is left
        ("dapo", drawn(["+-", "-+", ""]), [0, 0, 0]),
    ],
)
def test_what_the_next_round_draws(name, so_far, expected):
    assert rounds_rule(name).more(so_far).tolist() == expected


@pytest.mark.parametrize(
    ("name", "so_far", "expected"),
    [
        ("reinforce_ada_pos", drawn(["--", "", "??"]), [True, False, True]),
        ("ar3po", drawn(["--", "+", ""]), [True, True, False]),
        (
            "speed",
            drawn(["++", "+-------", "--", "-+------", "+-"]),
            [False, True, False, True, False],
        ),
        ("pilot_commit", drawn(["++", "+-------", "+-"]), [False, True, False]),
        ("pilot_commit", drawn(["++", "+-", "", "-+"], group=2), [False, True, False, True]),
        ("dapo", drawn(["+" * 8, "+-", "-+", "-+"]), [False, True, True, False]),
        ("dapo", drawn(["+" * 8, "-" * 8]), [False, False]),
    ],
)
def test_which_prompts_are_trained_on(name, so_far, expected):
    assert rounds_rule(name).trained(so_far).tolist() == expected


@pytest.mark.parametrize("name", rules.ROUNDS)
@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["+", "-", "?", "+-"])
def test_every_rule_ends_or_asks_for_more_of_what_it_may(name, group, kind):
    """One prompt and five: all right, all wrong, nothing judged, and both by turns."""
    rule = rounds_rule(name)
    for prompts in (1, 5):
        texts = [""] * prompts
        for done in range(6):
            state = drawn(texts, rounds=done, group=group, wanted=2)
            more = rule.more(state)
            assert more.min() >= 0
            assert more.max(initial=0) <= group
            texts = [
                text + (kind * group)[:n] for text, n in zip(texts, more.tolist(), strict=True)
            ]
        trained = rule.trained(state)
        assert trained.shape == (prompts,)
        assert not trained[state.asked == 0].any()
        if rule.chooses:
            assert trained.sum() <= 2


@pytest.mark.parametrize(
    ("name", "rewards", "count", "expected"),
    [
        ("pods", [1, 0, 0, 0, 1, 1], 4, [1, 2, 4, 5]),  # two of each
        ("pods", [1, 0, 0, 1, 1, 0], 3, [1, 3, 4]),  # one more that is right
        ("pods", [0, 0, 0, 1], 2, [0, 3]),
        ("pods", [0.5, 0.1, 0.9, 0.4], 2, [1, 2]),
        ("pods", [1, 1, 1], 2, [0, 1]),
        ("pods", [1], 3, [0]),
        ("pods", [], 3, []),
        ("balanced", [1, 0, 0, 0, 1, 1], 4, [0, 1, 2, 4]),
        ("balanced", [0, 0, 0, 0, 0, 1], 4, [0, 1, 2, 5]),
        ("balanced", [1, 1, 1, 1, 1, 0], 4, [0, 1, 2, 5]),
        ("balanced", [1, 1, 1, 1], 3, [0, 1, 2]),
        ("balanced", [0, 1], 4, [0, 1]),
        ("balanced", [], 4, []),
    ],
)
def test_which_completions_are_kept(name, rewards, count, expected):
    values = np.array(rewards, dtype=np.float64)
    assert keeper(name).keep(values, values >= 1, count).tolist() == expected


def test_pods_keeps_the_subset_of_largest_variance_of_all():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(2, 9))
        count = int(rng.integers(1, n + 1))
        rewards = rng.choice([0.0, 0.25, 0.5, 1.0], n) if rng.random() < 0.5 else rng.random(n)
        kept = keeper("pods").keep(rewards, rewards >= 1, count)
        best = max(np.var(rewards[list(each)]) for each in combinations(range(n), count))
        assert len(kept) == count
        assert np.var(rewards[kept]) == pytest.approx(best, abs=1e-12)


@pytest.fixture
def own(own_rules):
    """Makes a function importable as ``own_rules:rule``."""
    return lambda function: own_rules(rule=function)


def test_rules_of_others(own):
    rule = rounds_rule(own(lambda so_far: np.full(len(so_far), 3)))
    assert rule.more(NOTHING).tolist() == [3, 3, 3]
    assert not rule.chooses
    mine = keeper(own(lambda rewards, accepted, count: np.arange(count)[::-1]))
    assert mine.keep(np.zeros(4), np.zeros(4, dtype=bool), 2).tolist() == [0, 1]


def test_a_rule_of_others_may_choose_and_bring_a_keeper(own_rules):
    name = own_rules(
        rule=lambda so_far: np.full(len(so_far), 4),
        trained=lambda so_far: so_far.spread,
        KEEP="balanced",
    )
    rule, kept = named_rules(BudgetConfig(mode="none", allocator="uniform", rounds=name))
    assert rule is not None
    assert kept is not None
    assert rule.chooses
    assert rule.trained(drawn(["+-", "++", "-+"])).tolist() == [True, False, True]
    assert kept.name == "balanced"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([True], r"shape \(1,\); it must be yes or no for each of 3 prompts"),
        ([0, 1, 2], "numbers other than 0 and 1"),
        (None, "returned NoneType, not yes or no"),
    ],
)
def test_what_trained_may_not_return_is_one_line(own_rules, returned, said):
    rule = rounds_rule(own_rules(rule=lambda so_far: 0, trained=lambda so_far: returned))
    with pytest.raises(InputError, match=f"trained of rounds own_rules:rule.*{said}"):
        rule.trained(drawn(["+-", "++", "-+"]))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda so_far: [1, 2], r"shape \(2,\); it must be one count for each of 3 prompts"),
        (lambda so_far: [1, 2, -1], "other than whole ones from 0 to 2"),
        (lambda so_far: [1, 2, 0.5], "other than whole ones from 0 to 2"),
        (lambda so_far: [1, 2, 1e300], "other than whole ones from 0 to 2"),
        (lambda so_far: [1, 2, np.nan], "other than whole ones from 0 to 2"),
        (lambda so_far: None, "shape|NoneType"),
        (lambda so_far: "many", "returned str, not whole numbers"),
    ],
)
def test_what_a_rule_for_rounds_may_not_return_is_one_line(own, returned, said):
    with pytest.raises(InputError, match=said) as refused:
        rounds_rule(own(returned)).more(NOTHING)
    assert "\n" not in str(refused.value)


def test_a_first_round_that_draws_nothing_is_one_line(own):
    rule = rounds_rule(own(lambda so_far: np.where(so_far.accept_rate < 0.5, 4, 0)))
    step = StepInRounds(rule, 2, group=4, wanted=2, most=4)
    with pytest.raises(
        InputError, match=r"rounds own_rules:rule asked for no completion in its first"
    ):
        step.more([np.zeros(0)] * 2, [np.zeros(0, dtype=bool)] * 2)


def test_a_round_that_no_machine_holds_is_one_line(own):
    step = StepInRounds(rounds_rule(own(lambda so_far: [2**50])), 1, group=4, wanted=1, most=4)
    with pytest.raises(
        InputError, match=r"the counts of a step = 1,125,\S+ completions .* do not fit"
    ):
        step.more([np.zeros(0)], [np.zeros(0, dtype=bool)])


def test_a_rule_that_raises_is_one_line_that_names_the_place(own):
    def failing(*given):
        raise KeyError("nothing")

    for ask in (
        lambda: rounds_rule(own(failing)).more(NOTHING),
        lambda: keeper(own(failing)).keep(np.zeros(4), np.zeros(4, dtype=bool), 2),
    ):
        with pytest.raises(InputError, match=r"failed with KeyError: 'nothing' in line \d+ of"):
            ask()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([0, 1, 2], "returned 3 positions; it must return at most 2, each once"),
        ([1, 1], "each once"),
        ([0, 4], "returned position 4 of 4 completions"),
        ([1e300], "other than whole ones from 0 to 2"),
        ([-1, 0], "other than whole ones from 0 to 2"),
        (None, "shape|NoneType"),
    ],
)
def test_what_a_keeper_may_not_return_is_one_line(own, returned, said):
    mine = keeper(own(lambda rewards, accepted, count: returned))
    with pytest.raises(InputError, match=said):
        mine.keep(np.zeros(4), np.zeros(4, dtype=bool), 2)


@pytest.mark.parametrize(
    ("find", "name", "said"),
    [
        (rounds_rule, "dapo2", "unknown rule for rounds 'dapo2'; known: ar3po, dapo"),
        (
            rounds_rule,
            "no_such_module:rule",
            "rounds 'no_such_module:rule' cannot be imported",
        ),
        (keeper, "best", "unknown keeper 'best'; known: balanced, pods"),
        (keeper, "math:pi", "keep 'math:pi' is not a function"),
    ],
)
def test_names_that_are_no_rules(find, name, said):
    with pytest.raises(InputError, match=said):
        find(name)
