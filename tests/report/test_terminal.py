"""Tables of results on a terminal: in a narrow one, numbers are broken into lines and never cut off."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from dibs.report.terminal import estimator_table, evaluation_table, variance_table
from dibs.types import counted

FOUND = {"value": 1.34, "low": 0.751, "high": 2.413}
GAINS = dict.fromkeys(("gain", "gain_per_rollout", "gain_per_token", "gain_rescaled"), FOUND)
MEASURED: dict[str, Any] = {
    "allocator": "min_variance",
    "allocations": {
        name: {"rollouts": 16, "pilot_rollouts": 8, **GAINS} for name in ("uniform", "min_variance")
    },
    "estimators": {"self_normalized": {"kept_uniform": FOUND, "kept": FOUND, **GAINS}},
}
SCORES = {f"{name}{end}": 0.3 for name in ("avg", "pass", "maj") for end in ("", "_low", "_high")}
EVALUATED: dict[str, Any] = {
    "settings": {"k": 16},
    "benchmarks": [
        {"benchmark": "minerva-math.jsonl", "prompts": 272, "completion_length": 1234.0, **SCORES}
    ],
}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off_at_any_width(width):
    """At 60 characters an interval of an evaluation goes over two lines; no character of it is lost."""
    console = Console(width=width, record=True)
    console.print(variance_table(MEASURED))
    console.print(estimator_table(MEASURED))
    console.print(evaluation_table(EVALUATED))
    text = console.export_text()
    assert "…" not in text
    assert text.count("(0.75-2.41)") == 2 * 3 + 2
    assert text.count("(30.0-30.0") == 3
    assert "1,234" in text
    assert "minerva-ma" in text
    assert max(map(len, text.splitlines())) <= width


def test_a_number_with_its_noun():
    assert [counted(n, "row") for n in (0, 1, 2, 1000)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,000 rows",
    ]
