"""The soak in its short form; `make soak` is the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ["--steps=60", "--kill-every=20", "--verifier-every=30", "--full-disks=1"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("may_mount", [True, False], ids=["full disk", "files limited in size"])
def test_a_disturbed_run_ends_as_if_nothing_had_happened(tmp_path, may_mount):
    # Without this program the soak cannot have a disk of its own.
    found = os.environ["PATH"] if may_mount else str(tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/soak.py", *SHORT, "--warm-start-updates=20", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": found},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    whole = json.loads(done.stdout)
    assert whole["holds"], whole
    assert done.returncode == 0
    assert whole["runs"]["alone"]["lives"] == 1
    assert whole["runs"]["disturbed"]["events"] == {"kill": 3, "verifier": 2, "disk": 1}
    if not may_mount:
        assert whole["full_disk"] == "a limit on the size of files"
