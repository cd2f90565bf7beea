"""DIBS in a script or a notebook."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import dibs
from dibs.api import read_config
from dibs.config import Config
from dibs.runs.read import Run
from tiny_runs import EASY, EASY_WARM_START, PILOT_FREE, options


def keys(out: Path) -> dict[str, str]:
    """A run of two steps, dotted keys to texts as on the command line."""
    words = options(out)
    pairs = dict(word.removeprefix("--").split("=", 1) for word in words)
    return pairs | dict(zip([w[2:] for w in PILOT_FREE[::2]], PILOT_FREE[1::2], strict=True))


def trained(out: Path, **how: Any) -> Run:
    return dibs.train(keys(out), progress=False, **how)


def test_a_run_from_a_dictionary_and_its_steps(tmp_path):
    heard: list[dict] = []
    run = trained(tmp_path / "run", on_step=lambda metrics: heard.append(dict(metrics)))
    assert [step["step"] for step in heard] == [0, 1, 2]
    written = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert list(run.metrics) == written
    assert [step["rollouts"] for step in heard] == [step["rollouts"] for step in written]
    assert run.summary is not None
    assert run.summary["optimizer_updates"] == 4
    assert run.setting("allocate.allocator") == "uniform"
    # The loop has been imported now, and the name is still that of the function.
    again = trained(tmp_path / "again")
    assert again.summary is not None
    assert again.summary["accuracy_after"] == run.summary["accuracy_after"]


def test_a_file_with_overrides_is_the_same_run(tmp_path):
    nested: dict[str, Any] = {}
    for key, value in keys(tmp_path / "a").items():
        section = nested
        *names, last = key.split(".")
        for name in names:
            section = section.setdefault(name, {})
        section[last] = value
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(nested))
    ways = [
        dibs.train(path, {"output_dir": tmp_path / "b"}, progress=False),
        dibs.train(nested, {"output_dir": str(tmp_path / "c")}, progress=False),
        dibs.train(read_config(str(path)), {"output_dir": tmp_path / "d"}, progress=False),
    ]
    first, *others = [
        [{k: v for k, v in line.items() if "second" not in k} for line in run.metrics]
        for run in ways
    ]
    assert all(each == first for each in others)


def test_an_error_in_on_step_stops_a_run_that_goes_on_later(tmp_path):
    def stop(metrics):
        if metrics["step"] == 1:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        trained(tmp_path / "run", overrides={"checkpoint.interval": 1}, on_step=stop)
    assert dibs.load_run(tmp_path / "run").state != "finished"
    run = trained(tmp_path / "run", overrides={"checkpoint.interval": 1, "resume": "yes"})
    assert [line["step"] for line in run.metrics] == [0, 1, 2]
    assert run.state == "finished"


def test_the_metrics_are_a_table(tmp_path):
    run = trained(tmp_path / "run")
    frame = run.frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame["step"].tolist() == [0, 1, 2]
    assert frame["accuracy"].iloc[-1] == run.metrics[-1]["accuracy"]


def test_verdicts():
    verdicts = dibs.verify(["1/2", "7", "7"], [r"so \boxed{0.5}", r"\boxed{8}", "seven"], workers=1)
    assert [(each.reward, each.status) for each in verdicts] == [
        (1.0, "accepted"),
        (0.0, "rejected"),
        (0.0, "no_answer"),
    ]
    (loose,) = dibs.verify(["7"], ["the answer is 7"], "exact", answer_from="anywhere")
    assert loose.status == "accepted"
    assert dibs.verify([], []) == []


def test_the_variance_is_measured(tmp_path):
    more = {"variance.prompts": 4, "variance.num_generations": 8}
    result = dibs.measure_variance(keys(tmp_path), more, progress=False)
    assert result["prompts"] == 4
    assert not list(tmp_path.iterdir())


def test_a_model_is_evaluated(tmp_path):
    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"{i}A+1=", "answer": str(i + 1)} for i in range(1, 5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "policy": {"warm_start": EASY_WARM_START, "device": "cpu"},
        "data.template": "plain",
        "verify.verifier": "arithmetic",
        "sampling.max_completion_length": 12,
    }
    result = dibs.evaluate(EASY, file, k=2, samples=4, overrides=settings, progress=False)
    (row,) = result["benchmarks"]
    assert (row["prompts"], row["completions"]) == (4, 16)
    assert (
        dibs.evaluate(EASY, [str(file)], overrides=settings, progress=False)["settings"]["k"] == 1
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dibs.train({"train.step": 3}),
            "configuration: unknown key train.step; nearest is",
        ),
        (lambda: dibs.train("none.yaml"), "cannot read config none.yaml"),
        (lambda: dibs.train(7), "got a int; give a dibs.config.Config, a dictionary"),  # type: ignore[arg-type]
        (lambda: dibs.train({"train": {"steps": "many"}}), "train.steps: .*got 'many'"),
        (lambda: dibs.train({}, {"seed": 2, "seed.x": 1}), "seed is a value, not a section"),
        (lambda: dibs.verify(["1"], []), "1 answers and 0 completions"),
        (lambda: dibs.verify(["1"], ["2"], "abacus"), "unknown verifier 'abacus'"),
        (lambda: dibs.verify(["1"], ["2"], worker=1), "dibs.verify: unknown key worker"),
        (lambda: dibs.evaluate(EASY, []), "nothing to evaluate on"),
        (lambda: dibs.evaluate(EASY, "x.jsonl", k=2, samples=1), "1 <= k <= samples"),
        (lambda: dibs.load_run("nowhere"), "nowhere: does not exist"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(dibs.InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_options_that_are_mappings_stay_whole():
    own = {"chain_sum": {"max_terms": 3}}
    assert read_config({"data": {"options": own}}).data.options == own
    assert read_config(Config(), {"data.options": own}).data.options == own


def test_importing_takes_no_torch():
    code = "import dibs, sys; dibs.train; print('torch' in sys.modules, 'numpy' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split()[0] == "False"
    bare = (
        "import dibs, sys; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


VERDICTS = (
    "import dibs\n"
    "verdicts = dibs.verify(['7'] * 8, ['\\\\boxed{7}'] * 8, workers=2)\n"
    "print([each.status for each in verdicts].count('accepted'))\n"
)
STUDY = (
    "from dibs.study.workers import results, workers\n"
    "with workers(1) as pool:\n"
    "    print([given for _, given in results(pool, str.upper, ['a'])][0])\n"
)


@pytest.mark.parametrize(("code", "last"), [(VERDICTS, "8"), (STUDY, "A")], ids=["verify", "study"])
def test_a_script_without_a_guard_runs_once(tmp_path, code, last):
    script = tmp_path / "script.py"
    script.write_text("print('begun', __name__)\n" + code)
    told = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert told.stdout.splitlines() == ["begun __main__", last], told.stderr


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__': "])
def test_a_verifier_in_the_script_itself_needs_a_guard(tmp_path, guard):
    script = tmp_path / "script.py"
    script.write_text(
        "import dibs\n"
        "def same(answer, completion): return answer == completion\n"
        f"{guard}print(dibs.verify(['7'], ['7'], 'script:same', workers=1)[0].status)\n"
    )
    told = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    if guard:
        assert told.stdout == "accepted\n", told.stderr
    else:
        assert told.stdout == ""
        assert "'script:same' is in the script that runs" in told.stderr


def test_processes_that_others_start_still_know_the_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "import dibs\n"
        "def double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    assert dibs.verify(['7'], ['\\\\boxed{7}'], workers=1)[0].status == 'accepted'\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(double, [1, 2]))\n"
    )
    told = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert told.stdout == "[2, 4]\n", told.stderr
