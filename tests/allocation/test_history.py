"""The online estimate: discounted sums by prompt id."""

from __future__ import annotations

import json

import numpy as np

from dibs.allocation.history import History
from dibs.allocation.statistics import group_sums, pilot_statistics
from tiny_groups import assert_equal_arrays, make_group, make_prompt

NORMS = [np.array([2.0, 8.0, 3.0]), np.array([0.0, 5.0])]


def groups():
    return [make_group([1, 1, 0], make_prompt("a")), make_group([0, 1], make_prompt("b"))]


def same(left, right):
    for name in ("trials", "successes", "grad_norm", "grad_norm_rejected", "mean_tokens"):
        assert_equal_arrays(getattr(left, name), getattr(right, name))
    for name in ("accepted", "rejected"):
        for field in ("count", "log_norm", "log_norm_scatter", "effective_count", "logprob"):
            assert_equal_arrays(
                getattr(getattr(left, name), field), getattr(getattr(right, name), field)
            )


def test_one_step_says_what_pilots_would():
    history = History(half_life=5)
    history.add(groups(), NORMS, step=3)
    same(history.statistics(["a", "b"], step=3), pilot_statistics(groups(), NORMS))


def test_steps_add_up_and_old_ones_count_less():
    history = History(half_life=2)
    history.add(groups(), NORMS, step=1)
    history.add([make_group([0], make_prompt("a"))], [np.array([9.0])], step=5)
    stats = history.statistics(["a", "b", "new"], step=5)
    # After two half-lives a's three completions count 3/4, two of them accepted; b's two count 1/2.
    assert_equal_arrays(stats.trials, [3 / 4 + 1, 1 / 2, 0])
    assert_equal_arrays(stats.successes, [1 / 2, 1 / 4, 0])
    assert_equal_arrays(stats.grad_norm, [5, 5, np.nan])
    assert_equal_arrays(stats.grad_norm_rejected, [(3 / 4 + 9) / (1 / 4 + 1), 0, np.nan])
    assert stats.accepted is not None
    assert_equal_arrays(stats.accepted.log_norm, [np.log(16) / 2, np.log(5), np.nan])
    later = history.statistics(["a"], step=7)
    assert_equal_arrays(later.trials, [(3 / 4 + 1) / 2])
    assert_equal_arrays(later.accept_rate, stats.accept_rate[:1])


def test_streaks_are_of_groups_that_could_have_differed():
    history = History(half_life=5)

    def streak_after(rewards, step) -> list[int]:
        history.add([make_group(rewards, make_prompt("a"))], [np.ones(len(rewards))], step)
        return np.asarray(history.statistics(["a"], step).streak).tolist()

    groups_of_a = [[1], [], [1, 1], [0], [0, 0], [], [0, 1], [1]]
    found = [streak_after(rewards, step) for step, rewards in enumerate(groups_of_a)]
    assert found == [[0], [0], [1], [1], [2], [2], [0], [0]]


def test_groups_of_none_and_prompts_never_seen():
    history = History(half_life=1)
    history.add([make_group([], make_prompt("a"))], [np.array([])], step=1)
    stats = history.statistics(["a", "b"], step=1)
    assert stats.trials.tolist() == [0, 0]
    assert np.isnan(stats.accept_rate).all()
    assert len(history.statistics([], step=1)) == 0


def test_the_state_survives_json():
    history = History(half_life=3)
    history.add(groups(), NORMS, step=2)
    again = History(half_life=3)
    again.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert len(again) == len(history) == 2
    same(again.statistics(["b", "a"], step=4), history.statistics(["b", "a"], step=4))


def test_norms_of_gradients_that_were_divided_otherwise_are_left_out():
    history = History(3, "sequence")
    history.add(groups(), NORMS, step=2)
    state = json.loads(json.dumps(history.state_dict()))
    again, other = History(3, "sequence"), History(3)
    assert (again.load_state_dict(state), len(again)) == (0, 2)
    assert (other.load_state_dict(state), len(other)) == (2, 0)
    del state["length_normalization"]  # as states were that had plain sums only
    assert (again.load_state_dict(state), len(again)) == (2, 0)
    assert (other.load_state_dict(state), len(other)) == (0, 2)


def test_what_is_very_old_is_forgotten():
    history = History(half_life=1)
    history.add(groups(), NORMS, step=0)
    assert history.statistics(["a"], step=13).trials[0] > 0
    assert history.statistics(["a"], step=14).trials[0] == 0
    assert history.statistics(["a"], step=10**6).trials[0] == 0


def test_the_forgotten_leave_the_state():
    history = History(half_life=1)
    one = [make_group([1, 0], make_prompt("a"))], [np.array([1.0, 1.0])]
    other = [make_group([1, 0], make_prompt("b"))], [np.array([1.0, 1.0])]
    history.add(*one, step=0)
    history.add(*other, step=1)
    history.add(*one, step=13)
    history.add([], [], step=14)
    assert list(history.state_dict()["prompts"]) == ["b", "a"]
    assert (history.known(14), history.known(15), history.known(16)) == (1, 1, 0)
    again = History(half_life=1)
    prompts = dict(reversed(history.state_dict()["prompts"].items()))
    again.load_state_dict({"prompts": prompts})
    for each in (history, again):
        assert each.forget(15) == 1
        assert list(each.state_dict()["prompts"]) == ["a"]
        assert each.returning(["b", "a", "c"], 14).tolist() == [1 + 2**-13]


def test_discounting_does_not_change_how_precise_a_mean_is():
    """Only evidence is discounted: one group of three has an effective count of three at any age."""
    history = History(half_life=1)
    norms = np.array([1.0, 2.0, 4.0])
    history.add([make_group([1, 1, 1], make_prompt("a"))], [norms], step=0)
    fresh, old = history.statistics(["a"], step=0), history.statistics(["a"], step=2)
    assert fresh.accepted is not None
    assert old.accepted is not None
    assert_equal_arrays(old.accepted.count, [3 / 4])
    assert_equal_arrays(old.accepted.effective_count, [3])
    assert_equal_arrays(old.accepted.log_norm_scatter, fresh.accepted.log_norm_scatter / 4)
    history.add([make_group([1, 1, 1], make_prompt("a"))], [norms], step=1)
    mixed = history.statistics(["a"], step=1)
    assert mixed.accepted is not None
    # Weights 1/2 and 1, three each: (3/2 + 3)^2 / (3/4 + 3).
    assert_equal_arrays(mixed.accepted.effective_count, [4.5**2 / 3.75])


def test_a_pool_has_the_same_rows_after_a_resume():
    """Whatever order prompts were visited in: sums over the rows are then rounded alike."""
    whole = History(10.0)
    for step, name in enumerate(["a", "b", "c", "a", "d", "b"]):
        whole.take_in(name, group_sums(make_group([1, 0, step % 2]), np.ones(3)), step)
    resumed = History(10.0)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    names = ["x", "d", "c", "y", "b", "a", "d"]
    (stats, rows), (again, rows_again) = (h.pool_statistics(names, 6) for h in (whole, resumed))
    assert rows.tolist() == rows_again.tolist() == [0, 1, 2, 0, 3, 4, 1]  # 0: never seen
    assert stats.trials.tolist() == again.trials.tolist()


def test_a_checkpoint_of_before_knows_that_all_norms_were_measured():
    """It has 11 numbers a class: those of a history of now without the last two."""
    history = History(half_life=5)
    history.add(groups(), NORMS, step=0)
    state = history.state_dict()
    older = {
        name: [step, *sums[:14], *sums[16:27]] for name, (step, *sums) in state["prompts"].items()
    }
    again = History(half_life=5)
    again.load_state_dict({**state, "prompts": older})
    assert again.state_dict() == state
