"""The notebook of the examples: its cells run, one after another, and end as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def test_the_cells_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list("0123456")
    assert names["run"].summary["accuracy_after"] > 0.3
    assert names["metrics"]["step"].tolist() == list(range(7))
    assert eval(code[-1], names) == ["accepted", "rejected"]
    assert all(not cell.get("outputs") for cell in cells)  # a commit holds no output
