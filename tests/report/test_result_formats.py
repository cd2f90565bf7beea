"""Results of dibs eval in the formats of lm-eval and lighteval, read by those tools where installed."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dibs.cli import main
from dibs.report.result_formats import lighteval_results, lm_eval_results, write_as


def scores(value: float | None) -> dict[str, Any]:
    error = None if value is None else 0.05
    return {
        key: each
        for name in ("avg", "pass", "maj")
        for key, each in ((name, value), (f"{name}_stderr", error), (f"{name}_low", 0.0))
    }


def result(model: str = "Qwen/Qwen2.5", *benchmarks: str, value: float | None = 0.25) -> dict:
    names = benchmarks or ("math-500", "data/own.jsonl")
    return {
        "settings": {
            "model": model,
            "dtype": "bfloat16",
            "seed": 7,
            "k": 2,
            "samples": 4,
            "clock": "2026-05-06T07:08:09",
            "data.template": "boxed",
            "verify.verifier": "auto",
            "sampling.temperature": 0.6,
            "sampling.max_completion_length": 3072,
            "sampling.stop": None,
        },
        "benchmarks": [{"benchmark": name, "prompts": 40, **scores(value)} for name in names],
        "average": dict.fromkeys(("avg", "pass", "maj"), value),
        "seconds": 12.5,
    }


def test_results_as_lm_eval_writes_them():
    found = lm_eval_results(result())
    assert list(found["results"]) == ["math-500", "own"]
    assert found["results"]["own"] == {
        "alias": "own",
        "exact_match,none": 0.25,
        "exact_match_stderr,none": 0.05,
        "pass@2,none": 0.25,
        "pass@2_stderr,none": 0.05,
        "maj@2,none": 0.25,
        "maj@2_stderr,none": 0.05,
    }
    config = found["configs"]["math-500"]
    assert (config["dataset_path"], config["test_split"]) == ("HuggingFaceH4/MATH-500", "test")
    assert (config["repeats"], config["generation_kwargs"]["temperature"]) == (4, 0.6)
    assert found["configs"]["own"]["dataset_path"] is None
    assert found["n-samples"]["own"] == {"original": 40, "effective": 40}
    assert found["model_name_sanitized"] == "Qwen__Qwen2.5"
    assert found["config"]["model_args"]["pretrained"] == "Qwen/Qwen2.5"


def test_results_as_lighteval_writes_them():
    found = lighteval_results(result())
    assert found["results"]["math-500|0"] == {
        "avg@n:n=4": 0.25,
        "avg@n:n=4_stderr": 0.05,
        "pass@k:k=2&n=4": 0.25,
        "pass@k:k=2&n=4_stderr": 0.05,
        "maj@n:n=2": 0.25,
        "maj@n:n=2_stderr": 0.05,
    }
    assert found["results"]["all"] == {"avg@n:n=4": 0.25, "pass@k:k=2&n=4": 0.25, "maj@n:n=2": 0.25}
    assert found["config_general"]["model_name"] == "Qwen/Qwen2.5"
    assert found["config_tasks"]["math-500|0"]["hf_repo"] == "HuggingFaceH4/MATH-500"


def test_files_of_one_name_are_tasks_of_their_own():
    two = result("m", "math-500", "x/math-500.jsonl", "y/rows.jsonl", "z/rows.jsonl", "own.jsonl")
    found, names = lm_eval_results(two), lighteval_results(two)["config_tasks"]
    assert [name.rpartition("-")[0] or name for name in found["results"]] == [
        "math",  # math-500 itself, which has no mark
        "math-500",
        "rows",
        "rows",
        "own",
    ]
    assert [f"{name}|0" for name in found["results"]] == list(names)
    hub_id, *others = (each["dataset_path"] for each in found["configs"].values())
    assert hub_id == "HuggingFaceH4/MATH-500"
    assert others == [None] * 4
    assert [each["hf_repo"] for each in names.values()] == [hub_id, *others]


def test_a_file_named_like_a_known_set_has_no_hub_id():
    found = result("m", "data/math-500.jsonl")
    assert lm_eval_results(found)["configs"]["math-500"]["dataset_path"] is None
    assert lighteval_results(found)["config_tasks"]["math-500|0"]["hf_repo"] is None


def test_scores_without_a_value_are_left_out():
    nothing = result(value=None)
    assert lm_eval_results(nothing)["results"]["own"] == {"alias": "own"}
    assert lighteval_results(nothing)["results"]["own|0"] == {}


@pytest.mark.parametrize(
    ("model", "form", "place"),
    [
        ("Qwen/Qwen2.5", "lm-eval", "Qwen__Qwen2.5"),
        ("Qwen/Qwen2.5", "lighteval", "results/Qwen/Qwen2.5"),
        ("/models/mine", "lighteval", "results/__models__mine"),
        ("runs/a/model", "lighteval", "results/runs/a/model"),
        ("../../../mine", "lighteval", "..__..__..__mine"),
    ],
)
def test_files_lie_where_the_tools_put_them(tmp_path, model, form, place):
    path = write_as(result(model), form, tmp_path / "out")
    assert path == tmp_path / "out" / place / "results_2026-05-06T07-08-09.json"
    assert json.loads(path.read_text())["results"]


@pytest.mark.parametrize(
    ("make", "module", "table"),
    [
        (lm_eval_results, "lm_eval.utils", "make_table"),
        (lighteval_results, "lighteval.utils.utils", "make_results_table"),
    ],
)
def test_the_tools_read_the_results(make, module, table):
    pytest.importorskip(module.partition(".")[0], reason="the tool is not installed")
    try:
        shown = getattr(import_module(module), table)(make(result()))
    except ImportError as error:
        pytest.skip(f"the tool is not whole: {error}")
    assert "math-500" in shown
    assert "0.25" in shown
    assert "0.05" in shown


def test_an_evaluation_is_written_in_another_format(byte_model, math_file, tmp_path, capsys):
    words = ["eval", str(byte_model), "--data", str(math_file), "--data.max_rows=4"]
    words += ["--sampling.max_completion_length=4", "--policy.device=cpu", "--format=lm-eval"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (path,) = (tmp_path / "out").glob("*/results_*.json")
    assert json.loads(path.read_text())["results"] == told["results"]
    assert list(told["results"]) == ["math"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert f"Wrote {path}" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*/results_*.json"))) == 1
    assert Path(path).parent.name.endswith(Path(byte_model).name)
