"""The commands that the documentation shows, and what it says they print."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SYNTAX = ("...", "[--")
"""What stands in a line that shows how a command is written, rather than a command."""


@dataclass(frozen=True)
class Shown:
    """A command of a page: its words, without where the program lies, and the output shown with it."""

    page: Path
    words: tuple[str, ...]
    output: str

    def __str__(self) -> str:
        return f"{self.page.name}: {' '.join(self.words)}"

    @property
    def dibs(self) -> tuple[str, ...]:
        """The words behind ``dibs``, also where a container or several processes run it; else none."""
        name = "dibs"  # an image has this name too, and the command may follow it
        if name not in self.words or self.words[:2] == ("docker", "build"):
            return ()
        place = len(self.words) - self.words[::-1].index(name)
        return () if self.words[place] in ("make", "tar") else self.words[place:]


def shown(page: Path) -> list[Shown]:
    """The commands in a page's blocks of code that name no language."""
    found = []
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language:
            continue
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        prompted = any(line.startswith("$ ") for line in lines)
        for number, line in enumerate(lines):
            if not line.partition("#")[0].strip() or (prompted and not line.startswith("$ ")):
                continue
            if any(mark in line for mark in _SYNTAX):
                continue
            rest = lines[number + 1 :]
            ends = (n for n, each in enumerate(rest) if each.startswith("$ "))
            output = rest[: next(ends, len(rest))] if prompted else []
            words = shlex.split(line.removeprefix("$ "), comments=True)
            program = words[0].removeprefix(".venv/bin/")
            found.append(Shown(page, (program, *words[1:]), "\n".join(output)))
    return found


COMMANDS = [each for page in PAGES for each in shown(page)]
