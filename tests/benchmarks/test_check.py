"""The comparison of fresh benchmark results with kept ones, on made-up results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
import check  # noqa: E402

TABLE = {
    "one": check.Benchmark({"speedup": check.HIGHER, "rows.1.over": check.LOWER}),
    "other": check.Benchmark({"speedup": check.HIGHER}, environment=".venv-none"),
}
KEPT = {"speedup": 2.0, "rows": [{}, {"over": 1.0}], "seconds": 10.0}


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "BENCHMARKS", TABLE)
    for folder in ("kept", "fresh"):
        (tmp_path / folder).mkdir()
    for name in TABLE:
        (tmp_path / "kept" / f"{name}.json").write_text(json.dumps(KEPT))
    return tmp_path


def outcome(scene, capsys, fresh, *names):
    for name, result in fresh.items():
        (scene / "fresh" / f"{name}.json").write_text(
            result if isinstance(result, str) else json.dumps(result)
        )
    words = [*names, "--kept", str(scene / "kept"), "--fresh", str(scene / "fresh")]
    status = check.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["exit_status"] == status == check.main(words)
    return status, found, capsys.readouterr().out


@pytest.mark.parametrize(
    ("speedup", "over", "regressions"),
    [
        (2.0, 1.0, []),
        (1.72, 1.14, []),  # 14% worse each
        (9.0, 0.1, []),
        (1.68, 1.0, ["speedup"]),  # 16% worse
        (2.0, 1.16, ["rows.1.over"]),
        (0.5, 3.0, ["speedup", "rows.1.over"]),
    ],
)
def test_ratios_that_are_worse_by_more_than_the_tolerance(
    scene, capsys, speedup, over, regressions
):
    fresh = {"speedup": speedup, "rows": [{}, {"over": over}], "seconds": 1000.0}
    status, found, text = outcome(scene, capsys, {"one": fresh}, "one")
    assert status == (1 if regressions else 0)
    assert [each["key"] for each in found["compared"] if each["regression"]] == regressions
    assert found["regressions"] == [f"one {key}" for key in regressions]
    assert text.count("regression") == len(regressions)
    assert ("worse than the kept results" in text) == bool(regressions)
    assert len(found["compared"]) == 2


def test_how_much_worse_by_hand(scene, capsys):
    fresh = {"speedup": 1.5, "rows": [{}, {"over": 1.5}]}
    _, found, _ = outcome(scene, capsys, {"one": fresh}, "one")
    assert [each["worse"] for each in found["compared"]] == [0.25, 0.5]


def test_what_cannot_run_here_is_skipped(scene, capsys):
    status, found, text = outcome(scene, capsys, {"one": KEPT})
    assert status == 0
    assert found["skipped"] == {"other": "there is no .venv-none; `make test-none` builds it"}
    assert "skipped: other: there is no .venv-none" in text


def test_what_was_never_kept_is_skipped(scene, capsys):
    (scene / "kept/one.json").unlink()
    status, found, _ = outcome(scene, capsys, {"one": KEPT}, "one")
    assert (status, found["compared"]) == (2, [])
    assert "there is no" in found["skipped"]["one"]


@pytest.mark.parametrize(
    ("fresh", "why"),
    [
        ({"speedup": 2.0}, "the result has no rows.1.over"),
        ({"speedup": None, "rows": []}, "speedup is None, which is no ratio"),
        ({"speedup": -1, "rows": []}, "speedup is -1, which is no ratio"),
        ("no JSON", "cannot be read"),
    ],
)
def test_a_result_without_its_ratios_is_a_failure(scene, capsys, fresh, why):
    status, found, text = outcome(scene, capsys, {"one": fresh}, "one")
    assert status == 2
    assert why in found["failed"]["one"]
    assert "failed: one" in text


def test_a_regression_outweighs_a_failure(scene, capsys):
    status, _, _ = outcome(scene, capsys, {"one": "", "other": {"speedup": 1}})
    assert status == 1


@pytest.mark.parametrize("options", ["", "{out}"])
def test_benchmarks_run_and_their_failures_are_one_line(scene, capsys, monkeypatch, options):
    """A script that prints its result or writes it, and one that ends with an error."""
    monkeypatch.setattr(check, "FOLDER", scene)
    monkeypatch.setattr(
        check, "BENCHMARKS", {"one": check.Benchmark({"speedup": check.HIGHER}, options)}
    )
    (scene / "one.py").write_text(
        "import sys\n"
        "text = '{\"speedup\": 2.1}'\n"
        "open(sys.argv[1], 'w').write(text) if sys.argv[1:] else print(text)\n"
    )
    status, found, _ = outcome(scene, capsys, {})
    assert status == 0
    assert found["compared"][0]["fresh"] == 2.1
    (scene / "fresh/one.json").unlink()
    (scene / "one.py").write_text("import sys\nprint('far')\nsys.exit('it went wrong')\n")
    status, found, _ = outcome(scene, capsys, {})
    assert (status, found["failed"]) == (2, {"one": "exit status 1: it went wrong"})
    assert not list((scene / "fresh").iterdir())


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        check.main(["nothing"])
    assert "unknown benchmark nothing; known: allocation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--kept", "nowhere"), "--kept nowhere is no folder"),
        (("--fresh", __file__), "is no folder"),
        (("--tolerance", "-1"), "--tolerance -1.0 must be 0 or more"),
        (("--tolerance", "nan"), "--tolerance nan must be 0 or more"),
    ],
)
def test_options_without_a_meaning_are_refused(capsys, words, why):
    with pytest.raises(SystemExit, match="2"):
        check.main(words)
    assert why in capsys.readouterr().err


WITHOUT_RATIOS = {
    *("accept_rates", "count_factors", "length_normalization", "measured_gain", "meter_coverage"),
    *("never_worse", "norm_share", "paired_interval", "plug_in", "pool_variance", "rules_meter"),
    *("shape_order", "soak", "study_aa"),
    *("trl_overhead", "verl_overhead"),
}
"""Kept results of statistics, where a faster machine changes nothing; the last two need a trainer's own
environment and are quoted with intervals."""


def test_every_kept_result_is_watched_or_has_no_ratios():
    kept = {path.stem for path in (FOLDER / "results").glob("*.json")}
    assert kept == WITHOUT_RATIOS | set(check.BENCHMARKS)


@pytest.mark.parametrize("name", check.BENCHMARKS)
def test_every_row_of_the_table_names_ratios_of_its_kept_result(name):
    assert (FOLDER / f"{name}.py").is_file()
    kept = json.loads((FOLDER / "results" / f"{name}.json").read_text())
    for found in check.compare(name, check.BENCHMARKS[name].ratios, kept, kept, 0.15):
        assert found.worse == 0
