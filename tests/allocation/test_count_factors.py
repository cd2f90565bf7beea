"""The table of docs/estimators.md: what the counts change, from the functions that train."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "count_factors.py"))
ROWS, factor = BENCHMARK["ROWS"], BENCHMARK["factor"]
TEXT = (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")
IN_DOCS = {
    "self_normalized, none": "`self_normalized` (default) | `none`",
    "self_normalized, mean": "| `mean`",
    "prompt_mean, none": "`prompt_mean` | `none`",
    "prompt_mean, mean": "| `mean`",
    "order_k, none": "`order_k`, order 4 | both",
    "order_k, mean": "`order_k`, order 4 | both",
    "expected_reward, mean": "| `mean`",
    "expected_reward, leave_one_out": "all but `flat` | `none`, `leave_one_out`",
    "grpo, population": "all but `flat` | `mean`; deviation of the group",
    "grpo of TRL": "as TRL and verl compute it | the same, with n - 1",
    "grpo of verl": "as TRL and verl compute it | the same, with n - 1",
    "grpo, expected": "`deviation: expected` | `mean` of the others",
}


@pytest.mark.parametrize("name", list(ROWS))
def test_the_table_is_exact(name):
    cells = []
    for p in (1 / 16, 0.5):
        for n in (2, 8, 24):
            value = factor(name, p, n)
            # Half a cent is even in the text: 0.875 is 0.88.
            text = "1" if abs(value - 1) < 1e-12 else f"{value + 1e-9:.2f}"
            below = name.startswith("order_k") and n < 4
            cells.append(f"({text})" if below else text)
    assert f"{IN_DOCS[name]} | {' | '.join(cells)} |" in TEXT


def test_factors_by_hand():
    assert factor("self_normalized, none", 1 / 16, 2) == pytest.approx(1 - (15 / 16) ** 2)
    assert factor("prompt_mean, mean", 0.5, 8) == pytest.approx(7 / 8)
    # Two completions differ with chance 1/2; then advantages are 1 and -1, scores 1/2 and -1/2, and the
    # mean of the two products is 1/2, where the target's slope is p (1 - p) / sqrt(p (1 - p)) = 1/2.
    assert factor("grpo, population", 0.5, 2) == pytest.approx(0.5)
    assert factor("order_k, mean", 1 / 16, 9) == pytest.approx(1 - (15 / 16) ** 4)
