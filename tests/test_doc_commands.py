"""Every ``dibs`` command that the documentation shows is one that the command line takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from dibs.cli import app
from dibs.config.load import load_config, split_config
from doc_commands import COMMANDS, ROOT

CONFIGURED = ("train", "variance", "data")
SHOWN = [each for each in COMMANDS if each.dibs and each.dibs[0] != "--version"]


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_a_command_of_the_documentation_is_taken(shown, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *rest = shown.dibs
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
        shown.dibs[0] for shown in SHOWN
    }
