"""The wheel alone: in an environment with the newest packages and in one with the oldest, far from here.

`make package` builds ``dist/`` and both environments.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.package
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENTS = [".venv-wheel", ".venv-oldest"]
TINY = [
    *("--policy.model=arithmetic-easy", "--data.train=arithmetic-easy", "--data.size=64"),
    *("--data.eval_size=8", "--policy.threads=1", "--sampling.max_completion_length=12"),
    *("--train.steps=2", "--train.prompts_per_step=8", "--policy.warm_start.hidden_size=48"),
    *("--policy.warm_start.heads=2", "--policy.warm_start.layers=1"),
    "--policy.warm_start.updates=50",
]


@pytest.fixture(scope="module")
def wheel() -> Path:
    (found,) = (ROOT / "dist").glob("*.whl")
    return found


@pytest.fixture(params=ENVIRONMENTS)
def python(request) -> Path:
    found = ROOT / request.param / "bin" / "python"
    if not found.is_file():
        pytest.skip(f"there is no {request.param}; `make package` builds it")
    return found


def said(*words: str | Path, cwd: Path, status: int = 0) -> str:
    """What a command prints, run where no file of the repository is found."""
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={**outside, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"dibs", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    inside = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/dibs").rglob("*.*")}
    inside = {name for name in inside if "__pycache__" not in name}
    assert {name for name in names if name.startswith("dibs/")} == inside
    assert {"dibs/py.typed", "dibs/report/templates/page.html"} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_archive_has_no_caches_and_no_studies():
    (found,) = (ROOT / "dist").glob("*.tar.gz")
    with tarfile.open(found) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert {
        "src",
        "pyproject.toml",
        "hatch_build.py",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    } <= tops
    assert tops <= {path.name for path in ROOT.iterdir()} | {"PKG-INFO"}
    assert not tops & {"docs", "tests", "site", ".import_linter_cache"}


def test_an_index_shows_no_link_that_leads_nowhere(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    assert links  # papers, and pages of the repository where it is known
    assert [link for link in links if not link.startswith("https://")] == []
    repository = os.environ.get("DIBS_REPOSITORY", "").rstrip("/")
    urls = metadata.get_all("Project-URL", [])
    assert (f"Repository, {repository}" in urls) == bool(repository)
    assert any(link.startswith(f"{repository}/blob/main/docs/") for link in links) == bool(
        repository
    )


def test_the_metadata_names_all_extras_and_the_files_fit_them(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == "dibs-rl"
    assert metadata.get_all("Provides-Extra") == sorted(PROJECT["optional-dependencies"])
    oldest = dict(
        line.split("==")
        for line in (ROOT / "requirements/oldest.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    for needed in PROJECT["dependencies"]:
        package, least = needed.split(">=")
        assert package == "torch" or f"{oldest[package]}.".startswith(f"{least}."), package


def test_a_run_without_the_repository(python, tmp_path):
    dibs = python.with_name("dibs")
    assert f"dibs {_version()}" in said(dibs, "--version", cwd=tmp_path)
    home = said(python, "-c", "import dibs; print(dibs.__file__)", cwd=tmp_path)
    assert str(python.parent.parent / "lib") in home
    assert "No broken requirements" in said(python, "-m", "pip", "check", cwd=tmp_path)
    out = said(dibs, "train", *TINY, "--output_dir=out", cwd=tmp_path)
    assert "wrote out" in out
    assert json.loads((tmp_path / "out/summary.json").read_text())["optimizer_updates"] == 8
    assert "1 run, 1 arm" in said(dibs, "report", "out", cwd=tmp_path)


def test_every_command_shows_its_help(python, tmp_path):
    dibs = python.with_name("dibs")
    for name in ("train", "variance", "data", "eval", "allocate", "verify", "compare", "report"):
        assert f"Usage: dibs {name}" in said(dibs, name, "--help", cwd=tmp_path)


def test_files_functions_and_the_example_of_a_loop(python, tmp_path):
    rows = [{"prompt": f"{i}A+{i % 9}=", "answer": "3"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet = "import pandas; pandas.read_json('rows.jsonl', lines=True).to_parquet('rows.parquet')"
    said(python, "-c", parquet, cwd=tmp_path)
    words = [*TINY[:1], *TINY[-4:], "--data.template=plain"]
    for name in ("rows.jsonl", "rows.parquet"):
        printed = said(
            python.with_name("dibs"), "data", f"--data.train={name}", *words, cwd=tmp_path
        )
        assert "20" in printed
    judged = r"import dibs; print(dibs.verify(['0.5'], [r'\boxed{1/2}'])[0].reward)"
    assert said(python, "-c", judged, cwd=tmp_path).splitlines()[-1] == "1.0"
    assert "mean accept rate" in said(python, ROOT / "examples/any_trainer.py", cwd=tmp_path)


def test_the_extra_of_trl_suffices_for_its_example(tmp_path):
    found = ROOT / ".venv-wheel-trl/bin/python"
    if not found.is_file():
        pytest.skip("there is no .venv-wheel-trl; `make package` builds it")
    words = ["--steps", "4", "--warm-start-updates", "50"]
    printed = said(found, ROOT / "examples/trl_counts.py", *words, cwd=tmp_path)
    steps = [line for line in printed.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in steps] == [f"step {n}" for n in (1, 2, 3, 4)]
    assert steps[0].endswith("most completions 4")


def _version() -> str:
    for line in (ROOT / "src/dibs/__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise AssertionError("no version")
