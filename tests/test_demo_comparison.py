"""The demo's comparison of finished runs, by hand on made-up summaries."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from demo_comparison import TOTAL, TRAINING, comparison_rows, comparison_tables, differences

SUMMARY = {
    "optimizer_updates": 120,
    "completion_tokens": 99,
    "wall_seconds": 5.0,
    "accuracy_before": 0.5,
    "accuracy_after_low": 0.85,
    "accuracy_after_high": 0.93,
}


@pytest.fixture
def runs(tmp_path):
    spent = {"gvm": (1024, 512, 0.9), "uniform": (512, 0, 0.88), "twice": (1024, 0, 0.8)}
    for arm, (rollouts, pilots, accuracy) in spent.items():
        (tmp_path / arm).mkdir()
        summary = {
            **SUMMARY,
            "rollouts": rollouts,
            "pilot_rollouts": pilots,
            "accuracy_after": accuracy,
        }
        (tmp_path / arm / "summary.json").write_text(json.dumps(summary))
    return {arm: tmp_path / arm for arm in spent}


def test_comparison_rows_hold_arm_accounting_and_summary(runs):
    rows = comparison_rows(runs, {TRAINING: ("gvm", "uniform"), TOTAL: ("gvm", "twice")})
    assert [(row["accounting"], row["arm"]) for row in rows] == [
        (TRAINING, "gvm"),
        (TRAINING, "uniform"),
        (TOTAL, "gvm"),
        (TOTAL, "twice"),
    ]
    assert rows[0]["pilot_rollouts"] == 512
    console = Console(record=True, width=80)
    for table in comparison_tables(rows):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "1,024" in text
    assert "0.880" in text


@pytest.mark.parametrize(("accounting", "arm"), [(TRAINING, "twice"), (TOTAL, "uniform")])
def test_a_comparison_that_is_not_even_is_refused(runs, accounting, arm):
    with pytest.raises(ValueError, match=f"{accounting}: the arms are not equal: gvm .*, {arm} "):
        comparison_rows(runs, {accounting: ("gvm", arm)})


def test_differences_by_hand(runs):
    rows = comparison_rows(runs, {TRAINING: ("gvm", "uniform")})
    # 0.02 - sqrt(0.05^2 + 0.05^2) = -0.0507 and 0.02 + sqrt(0.03^2 + 0.03^2) = 0.0624
    assert differences(rows) == [
        f"{TRAINING}: gvm ends ahead of uniform by 0.020 "
        "(95% interval -0.051 to 0.062, not distinguishable)"
    ]
