"""What arms cost beside a reference: speed-ups by hand, and intervals that cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dibs.config.load import load_config
from dibs.files import to_json
from dibs.report.costs import (
    Evaluations,
    Goal,
    MeanEvaluations,
    compare_evaluations,
    mean_evaluations,
    read_evaluations,
    verdicts,
)
from dibs.study.make_runs import Outcome
from tiny_curves import curve


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.1, 0.0),  # where it began
        (0.3, 100.0),  # at an evaluation
        (0.4, 150.0),  # half way between two
        (0.5, 200.0),  # the first time, though it falls again
        (0.9, None),
    ],
)
def test_crossings_by_hand(target, expected):
    mean = MeanEvaluations(
        {"rollouts": np.array([[0.0, 100, 200, 300]] * 2)},
        {"value": np.array([[0.1, 0.3, 0.5, 0.4], [0.0, 0.0, 0.0, 1.0]])},
    )
    levels = np.array([[target, 0.5], [0.5, 1.0]])
    found = mean.costs_until(mean.scores["value"], levels)["rollouts"]
    first = np.nan if expected is None else expected
    np.testing.assert_allclose(found, np.array([[first, 200], [250, 300]]))


def test_scores_are_smoothed_by_the_nearest_rising_curve():
    mean = MeanEvaluations({}, {"value": np.array([[0.0, 0.6, 0.4, 0.8, 0.7, 0.6]])})
    np.testing.assert_allclose(mean.smoothed("value"), [[0, 0.5, 0.5, 0.7, 0.7, 0.7]])


def speed_ups(reference: list[Evaluations], arm: list[Evaluations]):
    (found,) = compare_evaluations(reference, arm)
    return found.speed_up


def test_targets_by_hand():
    """Both went from 0.2 to 0.6, along straight lines; half of the way is 0.4."""
    reference = [curve([0, 100, 200], [0.2, 0.4, 0.6])] * 2
    arm = [curve([0, 100, 200], [0.2, 0.6, 0.6])] * 2
    targets = [
        Goal(),
        Goal(share=0.5),
        Goal("accuracy", level=0.5),
        Goal("pass_at_k", level=0.9),
    ]
    found = compare_evaluations(reference, arm, targets)
    assert [each.target for each in found] == pytest.approx([0.56, 0.4, 0.5, 0.9])
    assert [each.to_target["rollouts"] for each in found] == [
        *(pytest.approx(cost) for cost in (90, 50, 75)),
        None,
    ]
    speed_up = [each.speed_up["rollouts"] for each in found]
    assert [each.value for each in speed_up] == [*([pytest.approx(2)] * 3), None]
    assert (speed_up[1].low, speed_up[1].high) == (pytest.approx(2), pytest.approx(2))
    assert (speed_up[3].low, speed_up[3].high) == (None, None)


def test_speed_ups_by_hand():
    uniform = [curve([0, 100, 200], [0.0, 0.2, 0.4]), curve([0, 100, 200], [0.0, 0.3, 0.6])]
    twice = [curve([0, 50, 100], each.value.tolist()) for each in uniform]
    found = speed_ups(uniform, twice)["rollouts"]
    assert [found.value, found.low, found.high] == pytest.approx([2, 2, 2])
    same = speed_ups(uniform, uniform)["tokens"]
    assert [same.value, same.low, same.high] == pytest.approx([1, 1, 1])


def test_exchanged_arms_have_the_inverse_speed_up():
    rng = np.random.default_rng(0)
    noisy = rng.normal(0, 0.05, (2, 5, 6)) + np.linspace(0, [0.8, 1.0], 6).T[:, None]
    one, other = ([curve([0.0, 1, 2, 3, 4, 5], v.tolist()) for v in arm] for arm in noisy)
    (there,), (back,) = compare_evaluations(one, other), compare_evaluations(other, one)
    forth, inverse = there.speed_up["rollouts"], back.speed_up["rollouts"]
    assert forth.low is not None
    assert inverse.high is not None
    assert forth.low * inverse.high == pytest.approx(1)
    assert forth.value is not None
    assert inverse.value is not None
    assert forth.value * inverse.value == pytest.approx(1)
    assert there.p_value == pytest.approx(back.p_value)


def test_an_arm_that_learns_less_is_compared_by_what_both_learned():
    """To .2 of .5 a line takes two fifths of the cost: half of the other's, at every level."""
    uniform = [curve([0, 100], [0.0, 0.5])] * 2
    slow = [curve([0, 100], [0.0, 0.25])] * 2
    found = speed_ups(uniform, slow)["rollouts"]
    assert [found.value, found.low, found.high] == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("reference", "arm"),
    [
        ([[0.5, 0.4]] * 3, [[0.0, 1.0]] * 3),  # the reference learned nothing
        ([[0.0, 0.4]] * 3, [[0.5, 1.0]] * 3),  # the arm begins above the lowest level
        ([[0.0, 0.0]] * 3, [[0.0, 0.0]] * 3),
    ],
)
def test_what_cannot_be_measured_has_no_speed_up(reference, arm):
    references, arms = ([curve([0, 100], v) for v in each] for each in (reference, arm))
    (found,) = compare_evaluations(references, arms)
    assert found.p_value is None
    for each in found.speed_up.values():
        assert (each.value, each.low, each.high) == (None, None, None)


def test_no_interval_where_one_seed_decides_or_there_is_one():
    learns = [curve([0, 100], [0.0, value]) for value in (2.0, -0.2, -0.2, -0.2, -0.2)]
    arm = [curve([0, 50], [0.0, 1.0])] * 5
    found = speed_ups(learns, arm)["tokens"]
    assert found.value is not None
    assert (found.low, found.high) == (None, None)
    one = speed_ups([curve([0, 100], [0.0, 0.5])], [curve([0, 50], [0.0, 0.5])])["tokens"]
    assert (one.value, one.low, one.high) == (pytest.approx(2), None, None)


def test_intervals_cover_arms_that_do_not_differ():
    """400 A/A tests with 5 seeds: 95%, within 3 standard errors (3.3%)."""
    rng = np.random.default_rng(1)
    steps = np.arange(8)

    def runs() -> list[Evaluations]:
        scales = 3 * np.exp(rng.normal(0, 0.2, 5))
        noise = rng.normal(0, 0.03, (5, 8))
        values = 1 - np.exp(-steps / scales[:, None]) + noise
        return [curve(steps.tolist(), row.tolist()) for row in values]

    inside = 0
    for _ in range(400):
        found = speed_ups(runs(), runs())["rollouts"]
        inside += found.low <= 1 <= found.high
    assert 0.917 <= inside / 400 <= 0.983


def test_verdicts_by_hand():
    """Holm: the least of four p-values against .05 / 4, the next against .05 / 3, until one fails."""
    p_values = [0.012, 0.03, 0.001, 0.04, None]
    found = verdicts(["sums"] * 5, p_values, [2.0, 2.0, 0.5, 0.5, None])
    unclear = "no difference shown"
    assert found == ["faster", unclear, "slower", unclear, None]
    assert verdicts([], [], []) == []


def test_other_tasks_do_not_change_a_verdict():
    """Of two comparisons, .0165 is below .05 / 2, though not below .05 / 3."""
    alone = verdicts(["rare"] * 3, [None, 0.3, 0.0165], [None, 1.6, 3.0])
    assert alone == [None, "no difference shown", "faster"]
    tasks = ["rare", "large", "rare", "large", "rare"]
    both = verdicts(tasks, [None, 0.001, 0.3, 0.04, 0.0165], [None, 1.2, 1.6, 1.2, 3.0])
    assert [both[0], both[2], both[4]] == alone
    assert [both[1], both[3]] == ["faster", "faster"]


def test_evaluations_without_a_verdict_are_left_out_of_all_seeds():
    whole = curve([0, 100, 200], [0.0, 0.5, 1.0])
    gap = whole.at(np.array([0, 2]))
    mean = mean_evaluations([whole, gap])
    assert mean.scores["value"].tolist() == [[0, 1]]
    assert mean.costs["rollouts"].tolist() == [[0, 200]]
    (found,) = compare_evaluations([whole, gap], [gap, whole])
    assert found.speed_up["rollouts"].value == pytest.approx(1)
    assert gap.is_curve
    assert not whole.at(np.array([2])).is_curve


def test_means_are_taken_evaluation_by_evaluation():
    mean = mean_evaluations([curve([0, 100], [0.0, 0.2]), curve([0, 300], [0.4, 0.8])])
    np.testing.assert_allclose(mean.costs["tokens"], [[0, 200]])
    np.testing.assert_allclose(mean.scores["value"], [[0.2, 0.5]])


def written(folder: Path, accuracies: list[float | None]) -> Path:
    """A finished run that spends 10 completions a step."""
    folder.mkdir()
    lines = [
        {
            "step": step,
            "rollouts": 10 * step,
            "completion_tokens": 20 * step,
            "pilot_rollouts": 0,
            "step_seconds": 1.0,
            **dict.fromkeys(("accuracy", "pass_at_k", "log_accept_rate"), accuracy),
        }
        for step, accuracy in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{to_json(line)}\n" for line in lines))
    (folder / "summary.json").write_text("{}")
    return folder


def test_an_evaluation_without_a_verdict_is_left_out(tmp_path):
    """One seed has no score at step 1, the other at step 2: steps 0 and 3 are left for both."""
    each = [
        read_evaluations(written(tmp_path / str(i), values), "accuracy", pilots_thrown_away=True)
        for i, values in enumerate(([0.1, None, 0.3, 0.4], [0.1, 0.2, None, 0.6]))
    ]
    np.testing.assert_array_equal(each[0].steps, [0, 2, 3])
    np.testing.assert_array_equal(each[0].costs["rollouts"], [0, 20, 30])
    np.testing.assert_array_equal(each[0].value, [0.1, 0.3, 0.4])
    assert each[0].mean_value == pytest.approx(0.35)
    mean = mean_evaluations(each)
    np.testing.assert_allclose(mean.costs["rollouts"], [[0, 30]])
    np.testing.assert_allclose(mean.scores["value"], [[0.1, 0.5]])
    found = speed_ups(each, each)["rollouts"]
    assert found.value == pytest.approx(1)


@pytest.mark.parametrize("accuracies", [[None, None, None], [0.1, None, None]])
def test_a_run_with_fewer_than_two_scores_failed(tmp_path, accuracies):
    config = load_config(None, {"output_dir": str(written(tmp_path / "run", accuracies))})
    outcome = Outcome(cell=None)  # type: ignore[arg-type]
    assert outcome.read(config, "seed 0", None) is None
    assert "of its evaluations had any verdict" in outcome.failures["seed 0"]
