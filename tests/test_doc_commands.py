"""Every ``dibs`` command that the documentation shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from dibs.cli import app
from dibs.config.load import load_config, split_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURED = ("train", "variance", "data")
_BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$? ?(?:.*\b-m |\.venv/bin/|docker run .* dibs )?dibs ([a-z]+\b.*)$")


def commands(page: Path) -> list[list[str]]:
    """Words of the commands in a page's blocks of code, behind ``dibs``."""
    found = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if "..." not in line and "[--" not in line:
                found += [shlex.split(words, comments=True) for words in _COMMAND.findall(line)]
    return found


SHOWN = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(
    ("page", "words"), SHOWN, ids=[f"{page.name}: {' '.join(words)}" for page, words in SHOWN]
)
def test_a_command_of_the_documentation_is_taken(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *rest = words
    group: Any = typer.main.get_command(app)
    context = group.commands[name].make_context(name, list(rest))
    if name not in CONFIGURED:
        return
    # What is left are the words of keys. A reader's own file is played by the demo's.
    keys = [word for word in context.args if word not in ("--shapes", "--json")]
    own = [word if not word.endswith(".yaml") or Path(word).exists() else DEMO for word in keys]
    assert load_config(*split_config(own))


DEMO = "configs/demo.yaml"


def test_the_commands_are_found():
    assert len(SHOWN) >= 25
    assert {"train", "variance", "allocate", "verify", "eval", "compare", "report", "data"} <= {
        words[0] for _, words in SHOWN
    }
