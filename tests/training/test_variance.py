"""The variance meter: formulas by hand and by Monte Carlo, the measurement against plain autograd."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from dibs.allocation.intervals import Interval
from dibs.allocation.problem import pose
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.target import Target
from dibs.allocation.variance import (
    fewer_steps,
    gain,
    noise_scale,
    rescaled_gain,
    variance_shares,
)
from dibs.cli import main
from dibs.config import Config
from dibs.config.load import load_config, split_config
from dibs.report.terminal import (
    estimator_table,
    variance_findings,
    variance_table,
    variance_title,
)
from dibs.rollouts.source import Purpose
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.training.measured_gradients import GradientSource
from dibs.training.shape_advice import advice, recommended
from dibs.training.variance_meter import measure_variance
from dibs.types import Allocation, Group, InputError
from tiny_runs import options, run, untimed


def test_shares_by_hand():
    sigma_squared = np.array([8.0, 0.0, 2.0])
    assert variance_shares(sigma_squared, [np.array([4, 0, 1])]).tolist() == [2, 0, 2]
    # two streams: (8/4 + 8/2) / 4, (2/1 + 2/2) / 4
    streams = [np.array([4, 0, 1]), np.array([2, 3, 2])]
    assert variance_shares(sigma_squared, streams).tolist() == [1.5, 0, 0.75]
    assert variance_shares(sigma_squared, [np.array([0, 0, 1])]).tolist() == [np.inf, 0, 2]


def test_gains_by_hand():
    assert gain(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]])).value == pytest.approx(2)
    # What is infinite is handed on as NaN.
    assert gain(np.array([[1.0, 3.0]]), np.array([[1.0, np.nan]])).value is None
    assert gain(np.zeros((1, 2)), np.zeros((1, 2))).value is None
    # Two draws: (1 + 3 + 2 + 2) / (1 + 1 + 1 + 1)
    uniform, chosen = np.array([[1.0, 3], [2, 2]]), np.ones((2, 2))
    found = gain(uniform, chosen)
    assert found.value == pytest.approx(2)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 2 < found.high
    assert gain(uniform, chosen, 0.5).value == pytest.approx(1)
    assert gain(uniform, uniform) == Interval(1, 1, 1)
    for nothing in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        assert gain(uniform, nothing) == gain(nothing, uniform) == Interval(None, None, None)
    assert gain(uniform, chosen, 0.0) == Interval(None, None, None)
    assert gain(np.ones((1, 1)), np.ones((1, 1))) == Interval(1, None, None)
    # Half the variance, and a third of the gradient.
    third = rescaled_gain(uniform, uniform / 2, np.ones((2, 2)), np.full((2, 2), 3.0))
    assert third.value == pytest.approx(2 / 9)


def test_gain_intervals_cover_where_few_prompts_hold_the_variance():
    """Shares of 24 prompts with tails of which the mean hardly converges; the truth is 2."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        above = rng.lognormal(0, 1.5, 24) * rng.lognormal(-0.125, 0.5, 24)
        below = above * rng.lognormal(-0.125, 0.5, 24) / 2
        found = gain(above[None], below[None])
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 2 <= found.high
    assert inside >= 279


def test_noise_estimates_are_unbiased_and_their_intervals_cover():
    """Prompts with random mean gradients about g, halves with noise: every part is known."""
    rng = np.random.default_rng(0)
    m, dimension, per_half, step = 30, 40, 4, 50
    g = rng.normal(0, 1, dimension)
    draws, inside = [], np.zeros(2)
    uniform = np.full(m, 9 * dimension / 8)
    truth = 9 * dimension * step / (g @ g) / step, 9 / (9 + 8 * 4)
    for _ in range(400):
        means = g + rng.normal(0, 2, (m, dimension))
        halves = means[:, None] + rng.normal(0, 3, (m, 2, dimension)) / np.sqrt(per_half)
        average = halves.mean(1)
        own = (halves[:, 0] * halves[:, 1]).sum(1)
        found = noise_scale(uniform, average @ average.T, own, 8 * m, step)
        draws.append((found.square, own.mean()))
        for i, each in enumerate((found.rollouts, found.completion_share)):
            low, high = each.low or 0.0, np.inf if each.high is None else each.high
            inside[i] += low <= truth[i] <= high
    told = np.array(draws)
    error = told.std(0, ddof=1) / np.sqrt(len(told))
    exact = np.array([g @ g, g @ g + 4 * dimension])
    assert (np.abs(told.mean(0) - exact) < 5 * error).all()
    assert (inside >= 368).all()
    # The last draw's ratios, from its own numbers.
    square = draws[-1][0]
    completions = 9 * dimension / 8 / step / square
    prompts = (own.mean() - square) / step / square
    assert found.completions == pytest.approx(completions)
    assert found.prompts == pytest.approx(prompts)
    assert found.completion_share.value == pytest.approx(completions / (completions + prompts))
    assert found.rollouts.value == pytest.approx(completions * 8 * step)


def test_a_gradient_that_noise_drowns_has_no_noise_scale():
    """Mean gradients that point every way: the square is negative, and only a lower end is known."""
    away = np.eye(4) - 0.3
    found = noise_scale(np.ones(4), away @ away.T, np.ones(4), 8, 4)
    assert found.square < 0
    assert found.rollouts.value is found.rollouts.high is None
    assert found.completions is None
    assert found.prompts is None
    still = noise_scale(np.zeros(4), np.eye(4), np.ones(4), 8, 4)
    assert still.rollouts == Interval(None, None, None)


SMALL = ("--variance.num_generations=8", "--train.prompts_per_step=6")


def build(tmp_path, *more):
    config = load_config(*split_config(options(tmp_path / "run", *SMALL, *more)))
    trainer = build_trainer(config, PlainView(Console(quiet=True)))
    source = GradientSource(config, trainer.policy, trainer.source, trainer.gradients)
    return source, trainer.prompts.train


@pytest.mark.parametrize(
    ("objective", "baseline"),
    [("log_likelihood", "none"), ("expected_reward", "mean"), ("grpo", "mean")],
)
def test_the_measurement_matches_plain_autograd(tmp_path, objective, baseline):
    meter, prompts = build(
        tmp_path,
        f"--algorithm.objective={objective}",
        f"--algorithm.baseline={baseline}",
        "--estimate.grad_norm=last_layer",
        "--algorithm.length_normalization=sequence",
    )
    measured = meter.measure(prompts[:6])
    model, means = meter.policy.model, []
    for i, group in enumerate(measured.groups):
        r = group.accepted.astype(float)
        p = r.mean()
        a = {
            "log_likelihood": r / max(p, 1e-9),
            "expected_reward": r - p,
            "grpo": (r - p) / max(np.sqrt(p * (1 - p)), 1e-9),
        }[objective]
        rows = []
        for rollout in group.rollouts:
            model.zero_grad()
            meter.policy.logprobs(meter.policy.collate([rollout.example()])).sum().backward()
            whole = torch.cat([q.grad.flatten() for q in model.parameters()]).double()
            rows.append(whole / len(rollout.completion.token_ids))
        s = torch.stack(rows).numpy()
        np.testing.assert_allclose(measured.squares[i], (s**2).sum(1), rtol=1e-4, atol=1e-8)
        means.append(a @ s / len(a))
        both = [s[r == each].sum(0) for each in (0, 1)]
        for each in (0, 1):
            if (r == each).sum() < 2 or (objective == "log_likelihood" and each == 0):
                continue
            chosen, n = s[r == each], (r == each).sum()
            pairs = (both[each] @ both[each] - (chosen**2).sum()) / (n * (n - 1))
            found = measured.prompts[i].products
            level = found.sum() if each else found[0, 0]
            assert level == pytest.approx(pairs, rel=1e-2, abs=1e-4)
        assert measured.wanted[i] == pytest.approx(
            {
                "log_likelihood": 1 - p,
                "expected_reward": r.var(ddof=1),
                "grpo": 8 * r.std() - 7 * np.mean([np.delete(r, j).std() for j in range(8)]),
            }[objective]
        )
    inner = np.array([[a @ b for a in means] for b in means])
    np.testing.assert_allclose(measured.products, inner, rtol=1e-3, atol=1e-5)
    model.zero_grad()


@pytest.mark.parametrize("objective", ["log_likelihood", "grpo"])
@pytest.mark.parametrize("tokens", [60, 16384])
def test_projected_gradients_give_the_same_measurement(tmp_path, objective, tokens, monkeypatch):
    """Folded onto a fifth of the entries, means over projections are within 5 standard errors."""
    meter, prompts = build(
        tmp_path, f"--algorithm.objective={objective}", f"--update.micro_batch_tokens={tokens}"
    )
    exact = meter.measure(prompts[:6])
    entries = sum(p.numel() for p in meter.policy.model.parameters())
    width = 1 + meter.gradients.target.has_baseline
    monkeypatch.setattr("dibs.training.measured_gradients._NUMBERS_HELD", entries // 5 * width * 6)
    products, own = [], []
    for seed in range(12):
        seeded = replace(meter, config=meter.config.model_copy(update={"seed": seed}))
        found = seeded.measured(exact.groups)
        np.testing.assert_allclose(found.squares, exact.squares, rtol=1e-5)
        products.append(found.products)
        own.append(found.own)
    for many, truth in ((products, exact.products), (own, exact.own)):
        error = np.std(many, axis=0, ddof=1) / np.sqrt(12)
        assert (np.abs(np.mean(many, axis=0) - truth) <= 5 * error + 1e-9).all()
        assert error.max() > 0


def test_progress_begins_with_nothing_done(tmp_path):
    source, prompts = build(tmp_path)
    heard = []
    GradientSource(
        source.config, source.policy, source.source, source.gradients, lambda *it: heard.append(it)
    ).measure(prompts[:3])
    assert heard == [(w, d, 3) for w in ("sampling", "gradients") for d in range(4)]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--estimate.mode=cross_fit", "--estimate.num_pilots=2"),
        ("--estimate.mode=online", "--allocate.budget_unit=tokens"),
        ("--allocate.budget=30", "--variance.prompts=8"),
        ("--estimate.mode=none", "--allocate.allocator=uniform"),
        ("--algorithm.name=grpo",),
    ],
)
def test_everything_is_told(tmp_path, more):
    result = measure_variance(*build(tmp_path, *more))
    json.dumps(result, allow_nan=False)
    rows = result["allocations"]
    uniform = rows["uniform"]
    assert uniform["gain"] == uniform["gain_per_token"] == {"value": 1, "low": 1, "high": 1}
    name = result["allocator"]
    assert next(iter(rows)) == "uniform"
    assert set(rows) == {"uniform", name}
    best = result["achievable_gain"]["value"]
    assert (best is None) == (result["achievable_prompts"] < 3)
    assert best is None or best >= 1
    assert next(iter(result["estimators"])) == result["estimator"]
    kept = result["estimators"][result["estimator"]]["kept_uniform"]["value"]
    assert 0 < kept < 1.5
    if "--allocate.budget=30" in more:
        assert uniform["rollouts"] == 40  # 30 for 6 prompts, 8 measured
        assert result["step_rollouts"] == 30
    if "--estimate.mode=cross_fit" in more or not more:
        assert rows[name]["rollouts"] == pytest.approx(24)
    pilots = 24 if not more or more[0].startswith("--algorithm") else None
    if pilots:
        assert rows[name]["pilot_rollouts"] == pilots
        value = rows[name]["gain"]["value"]
        assert rows[name]["gain_per_rollout"]["value"] == pytest.approx(value / 2)
    console = Console(record=True, width=80)
    console.print(variance_title(result), variance_table(result), estimator_table(result))
    console.print(*variance_findings(result))
    assert "noise scale: " in " ".join(console.export_text().split()).lower()


def test_an_allocator_that_drops_prompts_has_no_variance(tmp_path):
    result = measure_variance(
        *build(tmp_path, "--allocate.allocator=gvm", "--estimate.num_pilots=2")
    )
    row = result["allocations"]["gvm"]
    assert row["variance"] is None
    assert row["gain"]["value"] is None
    assert any("leaves out prompts" in sentence for sentence in variance_findings(result))


@pytest.mark.parametrize(
    "more",
    [
        ("--verify.accept_threshold=2",),
        ("--variance.prompts=2", "--seed=1"),
        ("--estimate.mode=cross_fit", "--estimate.num_pilots=2", "--allocate.upper=5"),
        (
            "--allocate.budget_unit=tokens",
            "--allocate.budget=0",
            "--estimate.num_pilots=2",
        ),
        ("--allocate.budget_unit=tokens", "--allocate.budget=30", "--allocate.lower=4"),
        ("--algorithm.estimator=order_k", "--algorithm.order=2"),
    ],
)
def test_odd_configurations_are_measured_at_one_budget(tmp_path, more):
    result = measure_variance(*build(tmp_path, *more))
    rows = result["allocations"]
    for row in rows.values():
        assert row["rollouts"] == pytest.approx(rows["uniform"]["rollouts"], abs=8)
    list(variance_findings(result))
    json.dumps(result, allow_nan=False)


def test_estimators_of_one_target_have_rows_of_their_own(tmp_path):
    """By the same completions: what is unbiased keeps more than what a small group cuts off."""
    rows = measure_variance(*build(tmp_path, "--estimate.num_pilots=4"))["estimators"]
    assert list(rows) == ["self_normalized", "prompt_mean", "order_k"]
    assert len({row["gain"]["value"] for row in rows.values()}) == 3
    assert rows["self_normalized"]["kept"]["value"] <= 1
    assert rows["order_k"]["kept"]["value"] < 1
    again = measure_variance(
        *build(tmp_path, "--estimate.num_pilots=4", "--algorithm.estimator=prompt_mean")
    )
    assert set(again["estimators"]) == set(rows)
    assert again["estimators"] == rows
    assert again["allocations"]["min_variance"]["gain"] == rows["prompt_mean"]["gain"]


def test_too_few_completions_are_refused(tmp_path):
    with pytest.raises(InputError, match="leaves 0 completions beside the 8 that play the pilots"):
        measure_variance(*build(tmp_path, "--estimate.num_pilots=8"))


@pytest.mark.parametrize(
    "more",
    [
        ("--estimate.mode=online", "--algorithm.estimator=prompt_mean"),
        ("--algorithm.name=grpo", "--estimate.mode=online", "--allocate.num_generations=2"),
        *(
            pytest.param(case, marks=pytest.mark.slow)
            for case in (
                (
                    "--algorithm.name=grpo",
                    "--algorithm.deviation=expected",
                    "--estimate.mode=online",
                ),
                ("--allocate.allocator=uniform", "--estimate.mode=none"),
            )
        ),
    ],
)
def test_shapes_are_compared_at_equal_rollouts(tmp_path, more):
    words = ("--variance.num_generations=16", *more)
    found = measure_variance(*build(tmp_path, *words), shapes=True)["shapes"]
    uniform = [row for row in found["shapes"] if row["rule"] == "uniform"]
    for row in found["shapes"]:
        assert row["prompts"] * row["completions"] == found["rollouts"]
    configured = next(
        row for row in uniform if row["completions"] == found["configured"]["completions"]
    )
    assert configured["gain"] == {"value": 1, "low": 1, "high": 1}
    assert len({row["completions"] for row in uniform}) == len(uniform)
    assert {row["rule"] for row in found["shapes"]} >= {"uniform", "pool"}
    assert found["advice"].endswith(".")


def test_shapes_are_compared_at_equal_cost(tmp_path):
    """Where a prompt costs as much as 50 tokens, shapes of few completions have fewer prompts."""
    words = (
        "--estimate.mode=online",
        "--algorithm.estimator=prompt_mean",
        "--variance.num_generations=16",
        "--allocate.budget_unit=tokens",
        "--select.pool=all",
    )
    policy, *parts = build(tmp_path / "free", *words)
    free = measure_variance(policy, *parts, shapes=True)["shapes"]
    read = build(tmp_path / "read", *words, "--allocate.prompt_cost=10")
    costly = measure_variance(*read, shapes=True)["shapes"]
    own = free["configured"]
    for found in (free, costly):
        assert found["unit"] == "tokens"
        assert found["advice"].endswith(".")
    by_size = [
        {row["completions"]: row for row in found["shapes"] if row["rule"] == "uniform"}
        for found in (free, costly)
    ]
    for each in by_size:
        assert each[own["completions"]]["prompts"] == own["prompts"]
    assert by_size[0][1]["prompts"] == own["prompts"] * own["completions"]
    assert by_size[1][1]["prompts"] < 0.75 * by_size[0][1]["prompts"]
    assert by_size[1][1]["gain"]["value"] < by_size[0][1]["gain"]["value"]


def test_what_shapes_cannot_be_measured_is_one_line(tmp_path):
    for more, why in (
        (("--allocate.num_generations=4",), "set variance.num_generations to 16 or more"),
        (("--algorithm.estimator=flat", "--variance.num_generations=16"), "estimator flat"),
        (
            ("--allocate.budget_unit=tokens", "--allocate.budget=64"),
            "set allocate.num_generations in place of allocate.budget",
        ),
    ):
        words = ("--estimate.mode=online", *more)
        with pytest.raises(InputError, match=why):
            measure_variance(*build(tmp_path, *words), shapes=True)


BATCH = Config.model_validate({"train": {"prompts_per_step": 16}})


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({"uniform": (1.0, 1.0), "pool": (1.05, 0.9)}, "Nothing is clearly less noisy than 16 x 8"),
        ({"uniform": (2.0, 1.5), "pool": (2.1, 1.5)}, "Use train.prompts_per_step 64, allocate."),
        ({"uniform": (2.0, 1.5), "pool": (4.0, 2.5)}, "Use select.pool all, select.group 2 and"),
        ({"uniform": (1.2, 0.9), "counts": (3.0, 2.0)}, "2 and estimate.mode online: 3 (2-"),
    ],
)
def test_the_advice(gains, words):
    rows = [
        {
            "rule": rule,
            "prompts": 64,
            "completions": 2,
            "gain": {"value": value, "low": low, "high": 2 * value},
        }
        for rule, (value, low) in gains.items()
    ]
    assert words in advice(recommended(rows), BATCH)


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (0.04, "times less noisy than uniform 16 x 8 at the same rollouts. It will hardly show"),
        (3.0, "Expect about 2.3 times fewer steps, since the noise of an update is 3 times its"),
        (
            np.inf,
            "Expect about 4 times fewer steps, since the noise of an update drowns its gradient",
        ),
    ],
)
def test_the_advice_says_what_it_is_worth(noise, words):
    """A gain of 4: (1 + 3) / (1 + 3/4) = 2.29."""
    best = {
        "rule": "pool",
        "prompts": 64,
        "completions": 2,
        "gain": {"value": 4.0, "low": 3.0, "high": 5.0},
    }
    assert words in advice(best, BATCH, noise)


def test_fewer_steps_by_hand():
    assert fewer_steps(4.0, 0.0) == 1
    assert fewer_steps(4.0, 1.0) == pytest.approx(1.6)
    assert fewer_steps(4.0, 1e12) == pytest.approx(4)
    assert fewer_steps(4.0, np.inf) == 4
    assert fewer_steps(1.0, 5.0) == 1


def test_one_prompt_is_refused(tmp_path):
    with pytest.raises(InputError, match="the spread between prompts takes two or more"):
        measure_variance(*build(tmp_path, "--train.prompts_per_step=1"))


def test_prompts_that_are_weighed_are_refused(tmp_path):
    weighed = ("--algorithm.prompt_weight=curverl", "--allocate.allocator=uniform")
    for more in ((), ("--allocate.keep=pods", "--allocate.keep_count=2")):
        with pytest.raises(InputError, match=r"dibs variance knows no algorithm.prompt_weight"):
            measure_variance(*build(tmp_path, *weighed, *more))


def test_baselines_that_are_not_the_groups_are_refused(tmp_path):
    options = ("--algorithm.objective=expected_reward", "--algorithm.baseline=history")
    with pytest.raises(
        InputError, match=r"set algorithm.baseline to leave_one_out in place of his"
    ):
        measure_variance(*build(tmp_path, *options))


def test_the_command_prints_one_object(tmp_path, capsys):
    words = options(tmp_path / "run", *SMALL)
    assert main(["variance", "--json", *words]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["prompts"] == 6
    assert "gradients: 6/6" in printed.err
    assert not (tmp_path / "run").exists()
    assert main(["variance", *words, "--variance.prompts", "1000"]) == 2
    assert "prompts" in capsys.readouterr().err
    assert main(["variance", *words]) == 0
    assert "Achievable gain" in capsys.readouterr().out
    plain = [
        "--estimate.mode=none",
        "--allocate.allocator=uniform",
        "--algorithm.estimator=self_normalized",
    ]
    words = [*words, *plain, "--allocate.rounds=reinforce_ada_pos"]
    assert main(["variance", *words, "--shapes"]) == 2
    assert "leave allocate.rounds reinforce_ada_pos out" in capsys.readouterr().err
    assert main(["variance", *words]) == 0
    printed = capsys.readouterr()
    assert "Steps of reinforce_ada_pos for log_likelihood" in printed.out
    assert "steps: 2000/2000" in printed.err


def test_the_gain_measured_in_training_matches_its_definition(tmp_path):
    """Counts 1, 3, 2 against uniform 2, 2, 2, with norms over all parameters."""
    meter, prompts = build(
        tmp_path, "--algorithm.objective=expected_reward", "--algorithm.baseline=mean"
    )
    pilots, _ = meter.source.draw(prompts[:3], [8] * 3, Purpose.PILOT, 0)
    stats = pilot_statistics(pilots, meter.gradients.norms(pilots, 0))
    problem = pose(stats, 6, Target("expected_reward", "mean"))
    groups = [
        Group(group.prompt, group.rollouts[:n]) for group, n in zip(pilots, (1, 3, 2), strict=True)
    ]
    counts = np.array([1, 3, 2])
    allocation = Allocation(stats.prompt_ids, counts, "uniform")
    told = meter.gradients.gain([groups], [problem], [allocation])
    of_step = np.concatenate([group.rewards for group in groups]).mean()
    moments = []
    for group, norms in zip(groups, meter.gradients.exact_norms(groups), strict=True):
        n = len(group.rewards)
        # The baseline of a completion: the prompt's others, and one that is the mean of the step.
        others = [(group.rewards.sum() - r + of_step) / n for r in group.rewards]
        moments.append(np.mean(((group.rewards - others) * norms) ** 2))
    uniform, chosen = np.sum(np.array(moments) / 2), np.sum(np.array(moments) / counts)
    assert told["measured_variance_uniform"] == pytest.approx(uniform / 9)
    assert told["measured_variance"] == pytest.approx(chosen / 9)
    assert told["measured_gain"] == pytest.approx(uniform / chosen)
    # A second step joins the first; one that left a prompt out leaves the window without a gain.
    again = meter.gradients.gain(
        [groups], [problem], [Allocation(stats.prompt_ids, np.full(3, 2), "")]
    )
    assert again["measured_gain"] == pytest.approx(2 * uniform / (chosen + uniform))
    starved = [Group(groups[0].prompt, ()), *groups[1:]]
    nobody = Allocation(stats.prompt_ids, np.array([0, 3, 2]), "uniform")
    found = meter.gradients.gain([starved], [problem], [nobody])
    assert found["measured_gain"] is None
    assert found["measured_variance"] is None


def test_training_measures_at_its_interval(tmp_path):
    run(tmp_path / "run", "--variance.interval=2", "--train.steps=3", "--allocate.lower=1")
    lines = untimed(tmp_path / "run")
    assert ["measured_gain" in line for line in lines] == [False, False, True, False]
    assert lines[2]["measured_gain"] > 0
    assert lines[2]["measured_gain_low"] is None  # one step has no interval
    totals = [line["omega"] for line in lines]
    assert totals == sorted(totals)
    assert lines[3]["delta"] == pytest.approx(
        sum(2 * line["gradient_square"] for line in lines[1:])
    )
    noise_term = sum(line["gradient_variance"] * line["learning_rate"] for line in lines[1:])
    assert lines[3]["bound_noise"] == pytest.approx(noise_term)
