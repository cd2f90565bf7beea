"""The Dockerfile: what it copies exists, what it runs is made here, and a linter has nothing to say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def test_instructions_are_known_and_in_order():
    words = [word for word, _ in instructions()]
    known = {"ARG", "FROM", "ENV", "SHELL", "RUN", "COPY", "USER", "WORKDIR", "VOLUME", "CMD"}
    assert set(words) <= known
    assert words.index("FROM") == 1
    assert words[0] == "ARG"  # the version of Python, which FROM names
    assert words[-1] == "CMD"


def test_what_is_copied_exists_and_suffices_for_the_installation():
    copies = [rest.split() for word, rest in instructions() if word == "COPY"]
    sources = [each for words in copies for each in words[:-1] if not each.startswith("--")]
    assert [each for each in sources if not (ROOT / each).exists()] == []
    # pyproject.toml reads these when the package is installed, before the rest is there.
    read = {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "src/dibs/__init__.py"}
    assert read <= set(sources)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"src", "examples", "configs", "Makefile", "tests"} & set(ignored)
    assert {".git", ".venv*", "runs"} <= set(ignored)


def test_commands_of_the_image_are_those_of_the_repository():
    runs = " ".join(rest for word, rest in instructions() if word == "RUN")
    makefile = (ROOT / "Makefile").read_text()
    assert "make .venv/.installed" in runs
    assert "STAMP := $(VENV)/.installed" in makefile
    assert "VENV ?= .venv" in makefile
    for target in re.findall(r"dibs make ([a-z-]+)", TEXT):
        assert f"\n{target}:" in makefile


def test_it_does_not_run_as_root_and_takes_either_build_of_torch():
    found = instructions()
    assert ("ARG", "TORCH=cpu") in found
    assert [rest for word, rest in found if word == "USER"] == ["1000"]
    choice = next(rest for word, rest in found if word == "RUN" and "$TORCH" in rest)
    script = choice.partition(" && ")[0] + '; echo "index: $PIP_EXTRA_INDEX_URL"'
    for torch, said, status in (("cpu", "whl/cpu", 0), ("cuda", "index: \n", 0), ("rocm", "", 2)):
        done = subprocess.run(
            ["/bin/bash", "-c", f"TORCH={torch} PIP_EXTRA_INDEX_URL=; {script}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status
        assert said in done.stdout


def test_hadolint_has_nothing_to_say():
    linter = shutil.which("hadolint") or ROOT / ".venv-package" / "bin" / "hadolint"
    if not Path(linter).is_file():
        pytest.skip("there is no hadolint; `make package` installs it into .venv-package")
    done = subprocess.run(
        [linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_user_of_the_host_may_write_into_the_volume():
    # A volume with a name takes the owner of the image's folder; a missing folder of the host is root's.
    found = instructions()
    made = next(
        i for i, (word, rest) in enumerate(found) if word == "RUN" and "mkdir -p runs" in rest
    )
    assert made > found.index(("USER", "1000"))
    assert ("VOLUME", "/work/runs") in found[made:]
    for text in (TEXT, (ROOT / "docs" / "install.md").read_text(encoding="utf-8")):
        commands = [line for line in text.splitlines() if "docker run" in line]
        assert len(commands) >= 2
        assert all(" -v dibs-runs:/work/runs dibs " in line for line in commands)


@pytest.mark.slow
def test_the_image_is_built_and_trains(tmp_path):
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker here, or its daemon does not run")
    subprocess.run([docker, "build", "-t", "dibs-test", ROOT], check=True, timeout=1800)
    tiny = ["--train.steps=1", "--policy.warm_start.updates=5", "--data.size=16"]
    volume = f"dibs-test-{uuid4().hex}"  # a new one, as on a stranger's machine
    inside = [docker, "run", "--rm", "-v", f"{volume}:/work/runs", "dibs-test"]
    train = [*inside, "dibs", "train", *tiny, "--output_dir=runs/test"]
    try:
        said = subprocess.run(train, check=True, capture_output=True, text=True, timeout=600).stdout
        kept = subprocess.run(
            [*inside, "ls", "runs/test"], check=True, capture_output=True, text=True
        )
    finally:
        subprocess.run([docker, "volume", "rm", "-f", volume], check=False)
    assert "wrote runs/test" in said
    assert "summary.json" in kept.stdout
