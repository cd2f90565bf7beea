"""Every extra can be resolved, with the versions that are tested where its environment has them."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.package
ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OWN_VERSIONS = {"trl", "verl", "vllm"}
"""Extras whose packages choose versions of their own, and so have environments of their own."""


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_can_be_resolved(extra, tmp_path):
    uv = ROOT / ".venv-package/bin/uv"
    if not uv.is_file():
        pytest.skip("there is no .venv-package with uv; `make package` builds it")
    versions = [] if extra in OWN_VERSIONS else ["--constraints", ROOT / "constraints.txt"]
    out = tmp_path / "resolved.txt"
    command = [uv, "pip", "compile", "--quiet", "--python-version", "3.11", *versions]
    done = subprocess.run(
        [*command, "--extra", extra, "--output-file", out, ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    named = {line.partition("==")[0] for line in out.read_text().splitlines() if "==" in line}
    wanted = {
        package.partition("[")[0].partition(">")[0].strip().lower() for package in EXTRAS[extra]
    }
    assert {name for name in wanted if name != "dibs-rl"} <= {name.lower() for name in named}
