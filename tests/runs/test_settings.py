"""Single settings in whole runs: each does what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from dibs.config.load import load_config, split_config
from dibs.files import read_lines
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.types import InputError
from tiny_runs import ONLINE, PILOT_FREE, options, run, untimed


def test_a_kl_penalty_is_measured_and_holds_the_policy_back(tmp_path):
    words = ("--algorithm.name=grpo", "--train.steps=8", "--update.schedule=constant")
    ends = []
    for beta in (0, 0.001, 5):
        run(tmp_path / str(beta), *words, f"--algorithm.beta={beta}")
        kl = [line["kl"] for line in untimed(tmp_path / str(beta))[1:]]
        assert min(kl) > 0 if beta else max(kl) == 0
        ends.append(sum(kl[4:]))
    assert 0 < ends[2] < 0.5 * ends[1]


def test_the_ratio_is_clipped_on_both_sides_as_configured(tmp_path):
    for high, pair in (("null", (0.1, 0.1)), ("0.3", (0.1, 0.3))):
        more = ("--algorithm.epsilon=0.1", f"--algorithm.epsilon_high={high}")
        config = load_config(*split_config(options(tmp_path / "run", *more)))
        trainer = build_trainer(config, PlainView(Console(quiet=True)))
        assert trainer.updater.loss.clip == pair
        trainer.source.close()


def test_without_grad_norms_accept_rates_alone_decide_within_the_bounds(tmp_path):
    bounds = ("--allocate.lower=3", "--allocate.upper=5")
    run(tmp_path / "run", "--estimate.grad_norm=none", *bounds, "--allocate.allocator=gvm")
    spread = set()
    for line in read_lines(tmp_path / "run" / "allocations.jsonl"):
        assert line["grad_norm"] == [1.0] * 8
        assert sum(line["count"]) == 32
        assert 3 <= min(line["count"]) <= max(line["count"]) <= 5
        spread |= set(line["count"])
        # Equal evidence gets equal counts, up to the remainder of whole numbers.
        for rate in set(line["accept_rate"]):
            same = [n for n, p in zip(line["count"], line["accept_rate"], strict=True) if p == rate]
            assert max(same) - min(same) <= 1
    assert len(spread) > 1


@pytest.mark.parametrize(
    ("more", "group"),
    [
        ([*ONLINE, "--select.pool=all"], 2),
        (["--estimate.mode=cross_fit", "--estimate.num_pilots=2", "--select.pool=12"], 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ([*ONLINE, "--select.pool=20", "--select.group=4"], 4),
                ([*ONLINE, "--select.pool=all", "--allocate.budget_unit=tokens"], 2),
                (["--estimate.mode=none", "--allocate.allocator=uniform", "--select.pool=all"], 2),
            )
        ),
    ],
    ids=["all", "cross_fit", "a pool", "tokens", "nothing known"],
)
def test_prompts_and_counts_are_chosen_from_a_pool(tmp_path, more, group):
    out = tmp_path / "run"
    summary = run(out, *more, "--train.steps=3", "--variance.interval=1")
    tokens = "--allocate.budget_unit=tokens" in more
    assert tokens or summary["rollouts"] == 3 * 32
    crossed = "--estimate.mode=cross_fit" in more
    for line in read_lines(out / "allocations.jsonl"):
        assert tokens or sum(line["count"]) == 32
        assert crossed or {count % group for count in line["count"]} == {0}
        assert min(line["count"]) > 0
        assert min(line["expected_count"]) > 0
        assert len(set(line["prompt_id"])) == len(line["prompt_id"])
    last = untimed(out)[-1]
    assert (
        last["pool_size"]
        == {"all": 64, "20": 20, "12": 12}[
            next(word for word in more if "pool=" in word).partition("=")[2]
        ]
    )
    assert 1 <= last["largest_weight"] <= 4 + 1e-9
    assert last["learned"] > 0


def test_a_pool_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"select.pool is 65, but there are 64 training prompts"):
        run(tmp_path / "run", *ONLINE, "--select.pool=65")


@pytest.mark.parametrize("budget", [0, 17])
def test_a_given_budget_is_spent_exactly(tmp_path, budget):
    out = tmp_path / "run"
    summary = run(out, f"--allocate.budget={budget}", "--estimate.interval=2", "--train.steps=3")
    assert summary["optimizer_updates"] == 2 * 3
    assert summary["rollouts"] == 3 * budget + summary["pilot_rollouts"]
    assert [sum(line["count"]) for line in read_lines(out / "allocations.jsonl")] == [budget] * 3
    for line in untimed(out)[1:]:
        assert line["count_sum"] == budget
        assert (line["update_grad_norm"] > 0) == (budget > 0)


def test_one_prompt_with_one_completion_is_a_step(tmp_path):
    one = ("--train.prompts_per_step=1", "--allocate.num_generations=1")
    summary = run(tmp_path / "run", *PILOT_FREE, *one)
    assert summary["rollouts"] == 2
    assert summary["optimizer_updates"] == 2 * 2
    for line, metrics in zip(
        read_lines(tmp_path / "run" / "allocations.jsonl"),
        untimed(tmp_path / "run")[1:],
        strict=True,
    ):
        assert line["count"] == [1]
        assert (metrics["update_grad_norm"] > 0) == (line["accepted"] == [1])


@pytest.mark.parametrize("mode", ["pilot", "cross_fit"])
def test_a_budget_of_tokens_is_kept_about(tmp_path, mode):
    out = tmp_path / "run"
    unit = ("--allocate.budget_unit=tokens",)
    for name, more in (("even", ()), ("given", ("--allocate.budget=250",))):
        run(out / name, f"--estimate.mode={mode}", "--estimate.num_pilots=2", *unit, *more)
        lines = untimed(out / name)
        spent = [line["completion_length"] * line["count_sum"] for line in lines[1:]]
        aim = 250 if more else 32 * lines[1]["completion_length"]
        assert np.mean(spent) == pytest.approx(aim, rel=0.3)


def test_an_online_run_learns_what_tokens_a_completion_costs(tmp_path):
    """A completion of a prompt never seen is taken to have 12 tokens; later its length is known."""
    out = tmp_path / "run"
    online = ("--estimate.mode=online", "--allocate.budget_unit=tokens", "--data.size=16")
    for name, more in (("even", ()), ("given", ("--allocate.budget=250",))):
        run(out / name, *online, *more, "--train.steps=4")
        # The sixteen prompts come for the first time in steps 1 and 2, for the second in 3 and 4.
        counts = [line["count_sum"] for line in untimed(out / name)[1:]]
        spent = [line["completion_length"] * line["count_sum"] for line in untimed(out / name)[1:]]
        assert counts[:2] == ([20, 20] if more else [32, 32])
        if more:
            assert np.mean(spent[2:]) == pytest.approx(250, rel=0.1)


@pytest.mark.parametrize(
    ("objective", "baseline"),
    [("log_likelihood", "mean"), ("expected_reward", "none"), ("expected_reward", "leave_one_out")],
)
def test_a_group_learns_unless_its_baseline_leaves_nothing(tmp_path, objective, baseline):
    """With a baseline a group must hold both kinds; without one, every accepted completion teaches."""
    out = tmp_path / "run"
    summary = run(out, f"--algorithm.objective={objective}", f"--algorithm.baseline={baseline}")
    learned = 0
    for line in read_lines(out / "allocations.jsonl"):
        for judged, accepted in zip(line["judged"], line["accepted"], strict=True):
            mixed = 0 < accepted < judged
            learned += accepted if baseline == "none" else judged * mixed
    assert summary["learned_rollouts"] == learned > 0
