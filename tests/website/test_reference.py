"""The pages of docs/reference are what the code says, and hold every key, command and public name."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import reference

import dibs
from dibs.allocation.rules import __path__ as rules_folder
from dibs.cli import app
from dibs.config import Config, Section
from dibs.config.allocating import AllocateConfig
from dibs.study.matrix import CompareConfig


def keys(section: type[Section], before: str = "") -> set[str]:
    found = set()
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= keys(kind, f"{before}{name}.")
        else:
            found.add(before + name)
    return found


@pytest.mark.parametrize("name", list(reference.PAGES))
def test_a_page_is_what_the_code_says(name):
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name]().rstrip() + "\n", "run `make reference`"


def test_every_configuration_key_is_a_heading_with_values_default_and_advice():
    parts = (reference.FOLDER / "configuration.md").read_text(encoding="utf-8").split("\n### ")[1:]
    found = {part.partition("\n")[0].strip("`"): part for part in parts}
    assert found.keys() == keys(Config) | keys(CompareConfig, "compare.")
    for key, text in found.items():
        _, values, about = text.split("\n\n")[:3]
        assert values.startswith("Values: `"), key
        assert "Default: `" in values, key
        assert len(about) > 20, key


def plug_in_names() -> list[str]:
    """Public classes and functions of the plug-ins that are imported, which need not be installed."""
    folder = Path(dibs.__file__).parent / "integrations"
    found = []
    for path in ("prime_rl", "slime", "trl/config", "trl/trainer"):
        tree = ast.parse((folder / f"{path}.py").read_text(encoding="utf-8"))
        defined = [each for each in tree.body if isinstance(each, ast.ClassDef | ast.FunctionDef)]
        module = f"integrations.{path.replace('/', '.')}"
        found += [f"{module}.{each.name}" for each in defined if not each.name.startswith("_")]
    return found


def test_every_command_and_public_name_is_a_heading():
    commands = (reference.FOLDER / "commands.md").read_text(encoding="utf-8")
    group: Any = reference.typer.main.get_command(app)
    for name in group.commands:
        assert f"## dibs {name}\n" in commands
    api = (reference.FOLDER / "api.md").read_text(encoding="utf-8")
    for name in [*dibs.__all__, *plug_in_names()]:
        assert f"## dibs.{name}\n" in api
        assert f"::: dibs.{name}\n" in api


def test_every_rule_is_in_the_page_of_rules():
    page = (reference.FOLDER.parent / "rules.md").read_text(encoding="utf-8")
    names = {path.stem for folder in rules_folder for path in Path(folder).glob("*.py")}
    assert {name for name in names - {"__init__"} if f"`{name}`" not in page} == set()


def test_help_on_allocators_leads_to_the_rules():
    texts = [
        each.model_fields["allocator"].description for each in (dibs.BudgetConfig, AllocateConfig)
    ]
    for text in (*texts, dibs.allocate.__doc__):
        assert "a rule of docs/rules.md" in " ".join((text or "").split())


def test_characters_of_markup_stand_for_themselves(monkeypatch):
    assert reference._prose("a_b [c] <d> *e*") == r"a\_b \[c\] \<d\> \*e\*"


def test_an_old_page_is_noticed_and_written_anew(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    assert reference.main() == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["reference.py"])
    assert reference.main() == 0
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    assert reference.main() == 0
    assert "configuration.md: is not what the code says" in capsys.readouterr().out
