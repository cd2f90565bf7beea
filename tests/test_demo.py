"""The demo as the README calls it: what it promises must come out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))


def result(task: str, speedup: float | None, **more) -> dict:
    return {
        "task": task,
        "arm": "ours",
        "speedup_rollouts": speedup,
        "speedup_rollouts_low": None,
        "speedup_rollouts_high": None,
        "verdict": "faster",
        **more,
    }


@pytest.mark.parametrize(
    ("fewer", "row", "said"),
    [
        (
            4.8,
            result("rare", 3.0),
            "3.0 times fewer rollouts seen. Choosing prompts and counts pays",
        ),
        (4.8, result("rare", 3.0, verdict="no difference shown"), "these seeds do not show it."),
        (1.2, result("rare", 1.1), "It is not worth it here."),
        (None, result("rare", 1.1), "about 1.0 times fewer steps foretold"),
        (4.8, result("rare", 1.0), "The measurement did not foretell this."),
        (1.0, result("rare", 2.0), "The measurement did not foretell this."),
        (1.0, result("rare", None), "the runs do not tell"),
        (
            4.8,
            result("rare", 3.0, speedup_rollouts_low=2.0, speedup_rollouts_high=4.4),
            "seen (95% 2 to 4.4).",
        ),
    ],
)
def test_the_verdict_compares_what_was_foretold_with_what_came(fewer, row, said):
    from demo import _verdict

    others = [result("large", 9.0), {**row, "arm": "64x2", "speedup_rollouts": 9.0}]
    assert said in _verdict("rare", {"fewer_steps": fewer}, [*others, row])


@pytest.mark.slow
def test_the_demo_foretells_and_confirms(tmp_path, monkeypatch):
    monkeypatch.delenv("DIBS_CACHE")  # the user's cache may hold the warm starts already
    command = [sys.executable, "examples/demo.py", "--seeds", "2", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "times fewer steps foretold" in line]
    assert len(said) == 2
    # Two seeds may be too few to show it.
    assert "pays here." in said[0] or "It may pay here, but" in said[0]
    assert "It is not worth it here." in said[1]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {(row["task"], row["arm"]) for row in rows} == {
        ("rare", "uniform"),
        ("rare", "64x2"),
        ("rare", "ours"),
        ("large", "uniform"),
        ("large", "512x2"),
        ("large", "ours"),
    }
    for task in ("rare", "large"):
        own = [row for row in rows if row["task"] == task]
        assert len({row["optimizer_updates"] for row in own}) == 1
        assert len({row["rollouts"] for row in own}) == 1
        assert (tmp_path / f"report-{task}" / "index.html").is_file()


@pytest.mark.parametrize(
    ("seeds", "out", "said"),
    [
        ("0", "out", "seeds must be different numbers from 0 up"),
        ("1", "file", "cannot write to file: File exists"),
        ("1", "/proc/x", "cannot write to /proc/x: "),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, seeds, out, said):
    from demo import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--seeds", seeds, "--output-dir", out])
    assert main() == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("demo: ")
    assert said in line
