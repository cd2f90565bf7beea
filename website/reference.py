"""Writes docs/reference/ from the code: every configuration key, every command, every public name.

    python website/reference.py [--check]

``--check`` writes nothing and exits with 1 where a page is not what the code says. Imports no torch.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import dibs
from dibs.cli import app
from dibs.config import Config, Section
from dibs.config.key_help import default_text, value_text
from dibs.study.matrix import CompareConfig

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
_WRITTEN = "<!-- Written by `make reference` from the code. Change the code, not this page. -->\n"
BESIDE = [
    "dibs.config.Config",
    "dibs.runs.read.Run",
    "dibs.types.Verdict",
    "dibs.allocation.problem.AllocationProblem",
    "dibs.integrations.trl.config.DIBSConfig",
    "dibs.integrations.trl.trainer.DIBSGRPOTrainer",
    "dibs.integrations.prime_rl.PosteriorSampler",
    "dibs.integrations.slime.PosteriorPrompts",
    "dibs.integrations.slime.keep_spread",
    "dibs.integrations.slime.keep_all",
    "dibs.integrations.slime.weighted_rewards",
    "dibs.WeightLoader",
]
"""What the public functions take or return, and names of the plug-ins and of others that load them."""


def configuration_page() -> str:
    """Every key of ``dibs train`` and of ``dibs compare``, by section."""
    links = ", ".join(f"[{name}](#{name.replace('.', '')})" for name, _ in _sections())
    lines = [
        "# Configuration",
        "",
        _WRITTEN,
        "A configuration file holds these keys nested, in YAML; on the command line they are dotted, as",
        "`--section.key VALUE`, and win over the file. Unknown keys are errors. A key with the default",
        "`null` is decided by others, as its text says. `dibs train --help` prints the same.",
        "",
        *textwrap.wrap(f"**Sections:** {links}.", 100, break_on_hyphens=False),
        "",
        *_section_lines("Of the run", Config, ""),
    ]
    for name, section in _sections():
        lines += _section_lines(name, section, f"{name}.")
    return "\n".join(lines)


def commands_page() -> str:
    """What every command prints when it is asked for help, without the keys."""
    lines = [
        "# Commands",
        "",
        _WRITTEN,
        "`dibs COMMAND --help` prints this. Where keys of the configuration can follow, it prints those",
        "too; they are in [configuration.md](configuration.md).",
        "",
    ]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        context = command.make_context(f"dibs {name}", [], resilient_parsing=True)
        context.terminal_width = 96
        text = command.get_help(context).partition("\nConfiguration keys.")[0].rstrip()
        lines += [f"## dibs {name}", "", "```text", *map(str.rstrip, text.splitlines()), "```", ""]
    return "\n".join(lines)


def api_page() -> str:
    """Every public name with the first paragraph of its docstring; the site adds the whole."""
    lines = [
        "# Python API",
        "",
        _WRITTEN,
        "[python.md](../python.md) shows how they are used together. The site (`make docs`) has the",
        "signatures and whole docstrings here; on GitHub they are in the sources.",
        "",
    ]
    for name in sorted(dibs.__all__):
        about = _first_paragraph(getattr(dibs, name))
        lines += [f"## dibs.{name}", "", about, "", f"::: dibs.{name}", ""]
    lines += [
        "## Beside them",
        "",
        "What these functions take and return, and what others load.",
        "",
    ]
    for name in BESIDE:
        lines += [f"### {name}", "", f"::: {name}", "    options: {heading_level: 4}", ""]
    return "\n".join(lines)


PAGES = {
    "configuration.md": configuration_page,
    "commands.md": commands_page,
    "api.md": api_page,
}


def _sections(
    section: type[Section] = Config, before: str = ""
) -> Iterator[tuple[str, type[Section]]]:
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield f"{before}{key}", field.annotation
            yield from _sections(field.annotation, f"{before}{key}.")
    if not before:
        yield "compare", CompareConfig


def _section_lines(title: str, section: type[Section], prefix: str) -> Iterator[str]:
    yield from (f"## {title}", "", _first_paragraph(section), "")
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            continue
        yield from (f"### `{prefix}{key}`", "")
        yield f"Values: `{value_text(field)}`. Default: `{default_text(field)}`."
        yield from ("", _prose(field.description or ""), "")


def _prose(text: str) -> str:
    """A description as Markdown: characters that it would read as markup stand for themselves."""
    for character in "\\`*_{}[]<>#|":
        text = text.replace(character, f"\\{character}")
    return text


def _first_paragraph(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split()).replace("``", "`")


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 for an old page"
    )
    check = parser.parse_args().check
    old = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page().rstrip() + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        old.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    for name in old:
        print(f"docs/reference/{name}: {'is not what the code says' if check else 'written'}")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
