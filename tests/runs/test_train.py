"""The whole loop on tiny policies: totals, determinism, every algorithm, faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from dibs.config.load import load_config, split_config
from dibs.files import read_lines
from dibs.report.figures import draw_figures
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.runs.trackers import Trackers
from dibs.runs.train_run import run_training
from dibs.types import InputError
from tiny_runs import PILOT_FREE, options, run, untimed


def test_a_run_leaves_what_it_promises(tmp_path):
    summary = run(
        tmp_path / "run",
        "--tracking.samples_interval=1",
        "--tracking.samples=5",
        "--checkpoint.interval=1",
    )
    out = tmp_path / "run"
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["optimizer_updates"] == 4
    assert summary["rollouts"] == 2 * 8 * (4 + 4)
    assert summary["pilot_rollouts"] == 2 * 8 * 4
    assert summary["algorithm"] == "raft++"
    assert summary["allocator"] == "min_variance"
    assert summary["seed"] == 0
    assert summary["wall_seconds"] > 0
    lines = read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["accuracy"] == summary["accuracy_before"]
    assert lines[2]["accuracy"] == summary["accuracy_after"]
    assert lines[2]["completion_tokens"] == summary["completion_tokens"] > 128
    for line in read_lines(out / "allocations.jsonl"):
        assert sum(line["count"]) == 32
        assert line["trials"] == [4] * 8
        assert len(line["accept_rate"]) == 8
    for sample in read_lines(out / "samples.jsonl"):
        assert sample["count"] > 0
        assert sample["prompt"].endswith("=")
    assert len(read_lines(out / "samples.jsonl")) == 2 * 5
    (session,) = read_lines(out / "sessions.jsonl")
    assert session["versions"]["torch"] == torch.__version__
    assert session["local"] == []
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert (out / "model" / "config.json").is_file()
    assert load_config(out / "config.yaml").train.steps == 2


def test_pilots_that_decide_nothing_are_pointed_out(tmp_path):
    for more, wasted in (
        ((), True),
        (("--algorithm.estimator=prompt_mean",), False),
        (("--algorithm.prompt_weight=curverl",), False),
    ):
        console = Console(record=True, width=200)
        words = options(tmp_path / "run", "--allocate.allocator=uniform", *more)
        build_trainer(load_config(*split_config(words)), PlainView(console))
        assert ("The estimates decide nothing here" in console.export_text()) == wasted


def test_a_temperature_that_falls_is_announced(tmp_path):
    anneal = ("--sampling.anneal_from=1.2", "--algorithm.importance_sampling=token_truncate")
    for more, said in (
        ((), "Sampling at temperature 0.5, no"),
        (anneal, "Sampling at a temperature that falls along a completion from 0.6, to 0.05 at"),
    ):
        console = Console(record=True, width=200)
        words = options(tmp_path / "run", "--sampling.temperature=0.5", *more)
        build_trainer(load_config(*split_config(words)), PlainView(console))
        assert said in console.export_text()


def test_online_estimates_say_when_prompts_come_back(tmp_path):
    for more, said in (
        (("--train.steps=40",), "comes back after 8 steps; until then"),
        (("--train.steps=40", "--estimate.half_life=1"), "raise estimate.half_life (1) towards 8"),
        (("--train.steps=8",), "No prompt comes back within 8 steps"),
        (("--train.steps=1",), "No prompt comes back within 1 step, a pass takes 8"),
    ):
        console = Console(record=True, width=200)
        words = options(
            tmp_path / "run",
            "--estimate.mode=online",
            "--data.size=64",
            "--train.prompts_per_step=8",
            *more,
        )
        build_trainer(load_config(*split_config(words)), PlainView(console))
        assert said in console.export_text()


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, f"--seed={seed}")
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert untimed(tmp_path / "a") != untimed(tmp_path / "c")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("algorithm", ["raft", "raft++", "grpo"])
@pytest.mark.parametrize("allocator", ["gvm", "uniform"])
@pytest.mark.parametrize("estimator", ["prompt_mean", "self_normalized", "flat"])
def test_every_algorithm_works_with_every_allocator_and_estimator(
    tmp_path, algorithm, allocator, estimator
):
    summary = run(
        tmp_path / "run",
        f"--algorithm.name={algorithm}",
        f"--allocate.allocator={allocator}",
        f"--algorithm.estimator={estimator}",
        "--train.steps=1",
    )
    assert summary["optimizer_updates"] == 2
    line = untimed(tmp_path / "run")[1]
    assert np.isfinite(line["update_grad_norm"])
    assert line["update_grad_norm"] > 0


@pytest.mark.parametrize(
    "more",
    [
        ("--algorithm.estimator=order_k", "--algorithm.order=2", "--estimate.mode=online"),
        ("--algorithm.name=grpo", "--algorithm.deviation=expected", "--estimate.mode=pilot"),
    ],
)
def test_targets_that_no_count_changes_are_trained_on(tmp_path, more):
    run(tmp_path / "run", *more, "--train.steps=2", "--variance.interval=1")
    for line in untimed(tmp_path / "run")[1:3]:
        assert line["update_grad_norm"] > 0
        assert line["count_min"] >= (2 if "--algorithm.order=2" in more else 0)
        assert line["measured_gain"] is None or line["measured_gain"] > 0


def test_cross_fit_spends_no_more_than_the_budget_and_trains_on_all_of_it(tmp_path):
    out, pilots = tmp_path / "run", 2
    more = ("--estimate.mode=cross_fit", "--algorithm.objective=expected_reward")
    summary = run(out, *more, f"--estimate.num_pilots={pilots}", "--algorithm.baseline=none")
    assert summary["rollouts"] == 2 * 32
    assert summary["pilot_rollouts"] == 2 * 8 * pilots
    for line in read_lines(out / "allocations.jsonl"):
        assert sum(line["count"]) == 32
        assert min(line["count"]) >= pilots
        assert line["trials"] == [pilots] * 8
    # Every accepted completion has an advantage here, pilots among them.
    assert summary["learned_rollouts"] == summary["accepted_rollouts"] > 0


@pytest.mark.parametrize("bound", ["upper=5", "lower=5"])
def test_cross_fit_divides_odd_bounds_and_budgets(tmp_path, bound):
    run(
        tmp_path / "run",
        "--estimate.mode=cross_fit",
        "--estimate.num_pilots=2",
        "--allocate.num_generations=5",
        "--train.prompts_per_step=3",
        f"--allocate.{bound}",
    )
    for line in read_lines(tmp_path / "run" / "allocations.jsonl"):
        assert line["count"] == [5, 5, 5]


def test_online_runs_draw_no_pilots_and_remember_prompts(tmp_path):
    out = tmp_path / "run"
    summary = run(
        out,
        "--estimate.mode=online",
        "--data.size=16",
        "--train.steps=4",
        "--checkpoint.interval=4",
    )
    assert summary["pilot_rollouts"] == 0
    assert summary["rollouts"] == 4 * 32
    # 16 training prompts: steps 1 and 2 see each for the first time, 3 and 4 for the second.
    allocations = read_lines(out / "allocations.jsonl")
    assert allocations[0]["trials"] == allocations[1]["trials"] == [0] * 8
    assert allocations[0]["count"] == [4] * 8
    seen = dict(zip(allocations[0]["prompt_id"], allocations[0]["count"], strict=True))
    faded = 0.5 ** (2 / 20)
    for name, trials in zip(allocations[2]["prompt_id"], allocations[2]["trials"], strict=True):
        assert name not in seen or trials == pytest.approx(seen[name] * faded)
    metrics = read_lines(out / "metrics.jsonl")
    assert metrics[1]["expected_gain"] is None
    assert metrics[3]["expected_gain"] >= 1
    state = torch.load(out / "checkpoints" / "step-000004" / "trainer.pt", weights_only=True)
    assert len(state["history"]["prompts"]) == 16


def test_pilots_at_intervals_measure_all_prompts_up_to_the_next(tmp_path):
    summary = run(tmp_path / "run", "--estimate.interval=2", "--train.steps=3")
    lines = untimed(tmp_path / "run")
    assert [line["pilot_rollouts"] for line in lines] == [0, 64, 64, 96]
    assert summary["rollouts"] == 3 * 32 + 96


def test_pilots_of_one_phase_are_all_different_draws(tmp_path, monkeypatch):
    words = ["--estimate.interval=2", "--data.size=8", "--train.steps=2"]
    config = load_config(*split_config(options(tmp_path / "run", *words)))
    trainer = build_trainer(config, PlainView(Console(quiet=True)))
    seeds: list[int] = []
    inner = trainer.source.sampler.sample

    def stream(requests, temperature=None):
        seeds.extend(request.seed for request in requests)
        return inner(requests, temperature)

    monkeypatch.setattr(trainer.source.sampler, "sample", stream)
    next(trainer.run())
    # Two batches of pilots over the same 8 prompts, one of training, one of evaluation.
    assert len(seeds) == len(set(seeds)) == 32


@pytest.mark.parametrize("mode", ["pilot", "cross_fit", "online", "none"])
def test_completions_that_do_not_come_are_counted_and_done_without(tmp_path, monkeypatch, mode):
    """Every fifth completion is lost on the way; one prompt's are lost altogether."""
    uniform = ["--allocate.allocator=uniform"] if mode == "none" else []
    words = [f"--estimate.mode={mode}", "--allocate.num_generations=8", *uniform]
    config = load_config(*split_config(options(tmp_path / "run", *words)))
    trainer = build_trainer(config, PlainView(Console(quiet=True)))
    inner = trainer.source.sampler.sample
    lost = [0]

    def stream(requests, temperature=None):
        for sampled in inner(requests, temperature):
            if temperature is None and (sampled.request == 2 or sampled.number % 5 == 4):
                lost[0] += 1
                continue
            yield sampled

    monkeypatch.setattr(trainer.source.sampler, "sample", stream)
    total = 0
    for record in trainer.run():
        total += record.metrics["missing_completions"]
        sampled = sum(len(group.rollouts) for group in record.groups)
        assert sampled < record.metrics["count_sum"]
        assert not record.groups[2].rollouts
        assert np.isfinite(record.metrics["loss"])
    assert total == lost[0] > 0
    trainer.source.close()


def test_uniform_without_pilots_counts_none(tmp_path):
    summary = run(tmp_path / "run", *PILOT_FREE)
    assert summary["pilot_rollouts"] == 0
    assert summary["rollouts"] == 64
    for line in read_lines(tmp_path / "run" / "allocations.jsonl"):
        assert line["count"] == [4] * 8


def real_data(byte_model: Path, math_file: Path) -> list[str]:
    return [
        f"--policy.model={byte_model}",
        f"--data.train={math_file}",
        "--data.prompt_column=problem",
        "--sampling.max_completion_length=16",
    ]


def test_nothing_accepted_is_said_and_the_run_goes_on(tmp_path, byte_model, math_file):
    console = Console(record=True, width=200)
    words = options(tmp_path / "run", *real_data(byte_model, math_file), "--train.steps=3")
    config = load_config(*split_config(words))
    summary = run_training(config, PlainView(console))
    assert summary["accepted_rollouts"] == 0
    assert summary["rollouts"] == 3 * 64
    assert summary["accuracy_after"] == 0
    said = console.export_text()
    assert said.count("nothing was accepted, so there is nothing to learn from it") == 3
    assert "No completion of the whole run gave anything to learn from: 0 were accepted" in said
    before = (byte_model / "model.safetensors").read_bytes()
    after = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert before == after


def test_gvm_runs_to_its_end_where_completions_get_no_verdict(tmp_path):
    summary = run(
        tmp_path / "run",
        "--allocate.allocator=gvm",
        "--estimate.grad_norm=last_layer",
        "--verify.verifier=own_verifiers:partial",
        "--verify.workers=1",
        "--train.steps=1",
    )
    draw_figures({"gvm": tmp_path / "run"}, tmp_path / "figures")
    assert summary["rollouts"] == 64
    assert summary["accuracy_after"] is not None


def test_a_policy_that_cannot_read_the_data_is_one_clear_line(tmp_path, math_file):
    more = [f"--data.train={math_file}", "--data.prompt_column=problem"]
    with pytest.raises(InputError, match="tokenizer cannot encode the prompt 'What is 0/7"):
        run(tmp_path / "run", *more)


def test_a_model_in_bfloat16_trains(tmp_path, byte_model, math_file):
    more = [*real_data(byte_model, math_file), "--policy.dtype=bfloat16", "--train.steps=1"]
    assert run(tmp_path / "run", *more)["optimizer_updates"] == 2


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(
        InputError,
        match=r"stopped at step 1: update 2 of 2: the .*nan, .* in a row; the last .*step-000000",
    ):
        run(
            tmp_path / "run",
            "--update.learning_rate=1e30",
            "--update.max_grad_norm=null",
            "--update.max_skipped=0",
        )
    kept = tmp_path / "run" / "checkpoints" / "step-000000"
    assert json.loads((kept / "state.json").read_text())["step"] == 0
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "model").exists()
    again = run(tmp_path / "again", f"--policy.model={kept}", "--train.steps=1")
    assert again["accuracy_before"] == untimed(tmp_path / "run")[0]["accuracy"]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_policy_that_broke_is_noticed_at_the_next_sampling(tmp_path, steps):
    """One huge update leaves weights that are finite and logits that are not."""
    with pytest.raises(InputError, match=r"stopped at step [12]: .* NaN or infinite"):
        run(
            tmp_path / "run",
            "--update.learning_rate=1e25",
            "--update.max_grad_norm=null",
            "--update.updates_per_step=1",
            "--evaluate.interval=0",
            f"--train.steps={steps}",
        )
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--allocate.allocator=best"],
            "unknown allocator 'best'; known: cero, cures, ",
        ),
        (["--algorithm.baseline=leave_one_out"], "objective log_likelihood has no baseline"),
        (["--tracking.trackers=[nothing]"], "unknown tracker 'nothing'; known: .*tensorboard"),
        (["--tracking.trackers=[mlflow]"], "mlflow is not installed; pip install mlflow"),
        (["--train.prompts_per_step=65"], "prompts_per_step is 65, but there are 64"),
        (["--data.train=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--policy.model=./nowhere"], "policy.model ./nowhere: no such folder"),
        (["--sampling.max_completion_length=1024"], "leaves no room for a prompt in the 1024"),
        (["--policy.device=tpu9"], "policy.device"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, more, message):
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "run", *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def tensorboard_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = {event.parent for event in folder.rglob("events.out.*")}
    scalars = {}
    for each in folders:
        accumulator = EventAccumulator(str(each))
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            scalars[tag] = [(point.step, point.value) for point in accumulator.Scalars(tag)]
    return scalars


def test_tensorboard_gets_the_numbers(tmp_path):
    run(tmp_path / "run", "--tracking.trackers=[tensorboard]")
    scalars = tensorboard_scalars(tmp_path / "run" / "trackers")
    lines = untimed(tmp_path / "run")
    assert [step for step, _ in scalars["accuracy"]] == [0, 1, 2]
    assert [value for _, value in scalars["rollouts"]] == [line["rollouts"] for line in lines]


def test_a_resumed_run_goes_on_in_its_trackers(tmp_path, monkeypatch):
    """Stopped after step 3, it goes on from step 2: no step is logged twice."""
    words = ("--tracking.trackers=[tensorboard]", "--checkpoint.interval=2", "--train.steps=4")
    logged = Trackers.log

    def log(self, metrics):
        logged(self, metrics)
        if metrics["step"] == 3:
            raise RuntimeError("the machine died")

    monkeypatch.setattr(Trackers, "log", log)
    with pytest.raises(RuntimeError, match="died"):
        run(tmp_path / "run", *words)
    monkeypatch.setattr(Trackers, "log", logged)
    run(tmp_path / "run", *words, "--resume=yes")
    scalars = tensorboard_scalars(tmp_path / "run" / "trackers")
    assert [step for step, _ in scalars["rollouts"]] == [0, 1, 2, 3, 4]
