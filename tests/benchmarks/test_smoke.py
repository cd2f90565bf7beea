"""Every benchmark, example and study runs to its end at a tiny size; what it finds is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dibs.cli import main
from tiny_studies import FOLDER, LEFT_OUT, tiny_study

ROOT = Path(__file__).parents[2]
FEW_UPDATES = "--warm-start-updates=5"
BENCHMARKS = {
    "accept_rates": "--steps=2",
    "allocation": "--prompts=4 --samples=6 --repeats=2 --timed-prompts=1000",
    "check": "warm_start grad_norms --fresh=benchmarks/results",
    "count_factors": "--replicates=2",
    "gpu": "--device=cpu --size=tiny --dtype=float32 --prompts=2 --generations=2 --context=8 --length=8 "
    "--rounds=1",
    "grad_norms": "--preset=short --samples=4 --rounds=1 --threads=1",
    "held_prompts": "--shapes embedded --rounds=1 --generations=4",
    "length_normalization": "--lengths 2 4 --prompts=2 --samples=40 --pool=8 --groups=5 --repeats=1 "
    "--policies=1",
    "logprobs": "--vocabulary=100 --rows=2 --length=8 --hidden-size=8 --threads=1",
    "measured_gain": "--prompts=6 --samples=4 --per-step=3 --window=2 --windows=2",
    "meter_coverage": "--runs=2 --estimators prompt_mean",
    "never_worse": "--prompts=4 --samples=6 --steps=2 --policies arithmetic",
    "norm_share": "--prompts=4 --samples=6 --steps=2 --policies arithmetic",
    "online_overhead": "--shapes embedded --rounds 2 --warmup-rounds 1",
    "paired_interval": "--runs=2",
    "plug_in": "--replicates=3",
    "pool_choice": "--largest=512 --repeats=1",
    "pool_variance": "--policies arithmetic --prompts=128 --samples=2 --steps=2 --filling=1",
    "rules_meter": "--tasks polar --prompts=4 --completions=12 --steps=2",
    "sampling": "--prompts=3 --rounds=1",
    "saving": "--steps=1",
    "shape_order": "--prompts=8",
    "soak": "--steps=4 --kill-every=4 --verifier-every=4 --full-disks=0",
    "shared_prefixes": "--shapes short --rounds=1 --layers=1 --width=16",
    "study_aa": "--tests=3",
    "step": "--without-trl --rounds=1 --steps=1 --warmup-steps=0 --prompts=4 --generations=4 --length=8",
    "verifier": "--rounds=1",
    "variance_cost": "--size=tiny --prompts=2 --generations=4 --rounds=1 --threads=1",
    "warm_start": "--adamw-updates=2 --updates=2 --problems=4",
}
"""Those that run in this environment, with options that make them tiny."""
WARM_STARTED = {
    *("held_prompts", "norm_share", "online_overhead"),
    *("allocation", "measured_gain", "never_worse", "pool_variance", "sampling", "saving"),
    *("rules_meter", "shape_order", "soak", "step"),
}
OTHER_ENVIRONMENTS = {
    "step": (".venv-trl", "--rounds=1 --steps=1 --warmup-steps=0 --prompts=4 --generations=4"),
    "trl_overhead": (
        ".venv-trl",
        "--prompts=2 --generations=2 --length=4 --hidden-size=16 --steps=1 --rounds=1",
    ),
    "verl_overhead": (".venv-verl", "--steps=6"),
}
"""Those that need another: its folder and the options."""
PARTS = {
    "shared",
    "gpu_trl",
    "gradient_tables",
    "long_prompts",
    "measured_policies",
    "step_tasks",
    "soak_processes",
    "step_trl",
    "two_lengths",
    "verifier_cases",
    "verl_alternate",
}
"""Files that belong to one of the others."""


def run(*words: str | Path, python: str | Path = sys.executable) -> str:
    """What a command prints, which must succeed."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [python, *words],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def prints_both(name: str, words: list[str], python: str | Path = sys.executable) -> None:
    """The table by default, and one JSON value where that is asked for."""
    script = ROOT / "benchmarks" / f"{name}.py"
    assert len(run(script, *words, python=python)) > 20
    assert json.loads(run(script, *words, "--json", python=python))


def test_no_benchmark_example_or_study_is_left_out():
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert names == {*BENCHMARKS, *OTHER_ENVIRONMENTS, *PARTS}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*LEFT_OUT}
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert examples == {"any_trainer", "demo", "demo_comparison", "demo_llm", "trl_counts"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs(name, math_file):
    words = BENCHMARKS[name].split()
    if name in WARM_STARTED:
        words.append(FEW_UPDATES)
    if name == "verifier":
        words += ["--data", str(math_file)]
    prints_both(name, words)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_ENVIRONMENTS)
def test_a_benchmark_of_another_environment_runs(name):
    environment, options = OTHER_ENVIRONMENTS[name]
    python = ROOT / environment / "bin/python"
    if not python.is_file():
        pytest.skip(
            f"there is no {environment}; `make test{environment.removeprefix('.venv')}` builds it"
        )
    words = options.split()
    if name == "step":  # runs here and starts TRL there
        prints_both(name, [*words, FEW_UPDATES])
    else:
        prints_both(name, words, python)


@pytest.mark.slow
def test_the_example_of_a_trainer_of_your_own_runs():
    *steps, metrics = run(ROOT / "examples/any_trainer.py").splitlines()
    assert len(steps) == 3
    assert json.loads(metrics)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_study_can_be_planned_as_it_is_and_tiny(name, tmp_path):
    out = f"--compare.output_dir={tmp_path}"
    assert main(["compare", str(FOLDER / f"{name}.yaml"), out, "--dry-run"]) == 0
    assert main(["compare", *tiny_study(name), out, "--dry-run"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_study_runs(name, tmp_path):
    run("-m", "dibs", "compare", *tiny_study(name), f"--compare.output_dir={tmp_path}")
    assert list(tmp_path.glob("runs/**/summary.json"))
