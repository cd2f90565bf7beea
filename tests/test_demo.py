"""The demo as the README calls it: what it promises must come out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_learns_and_compares_evenly(tmp_path, monkeypatch):
    monkeypatch.delenv("DIBS_CACHE")  # the user's cache may hold the warm start already
    command = [sys.executable, "examples/demo.py", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ends ahead of" in done.stdout
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert {row["accounting"] for row in rows} == {
        "equal training rollouts",
        "equal total rollouts",
    }
    assert len({row["optimizer_updates"] for row in rows}) == 1
    total = [row for row in rows if row["accounting"] == "equal total rollouts"]
    assert len({row["rollouts"] for row in total}) == 1
    for row in rows:
        assert row["accuracy_after"] - row["accuracy_before"] >= 0.20
        summary = json.loads((tmp_path / row["arm"] / "summary.json").read_text())
        assert summary.items() <= row.items()
    assert (tmp_path / "figures" / "accuracy.png").is_file()
