"""What mkdocs does to the pages of docs/, which are written to be read on GitHub too.

Pages of the repository's top folder become pages of the site. Links out of docs/ lead to those, or to
the repository where ``DIBS_REPOSITORY`` names it; other links to sources become plain text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
OUTER = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages of the top folder, and what they are called on the site."""
_CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the top folder."""
    from mkdocs.structure.files import File

    for source, name in OUTER.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at pages of the site."""
    name = page.file.src_uri
    outer = {site: source for source, site in OUTER.items()}
    at = outer.get(name, f"docs/{name}")
    parts = _CODE.split(markdown)
    repository = (config["repo_url"] or "").rstrip("/")
    return "".join(
        part if _CODE.fullmatch(part) else with_links(part, at, name, repository) for part in parts
    )


def with_links(text: str, at: str, page: str, repository: str) -> str:
    """Text whose links fit the site.

    Args:
        at: where the text stands in the repository.
        page: where it stands on the site.
        repository: address of the sources; empty where there is none.
    """

    def fitting(found: re.Match[str]) -> str:
        image, words, link = found.groups()
        if re.match(r"[a-z]+:|#", link):
            return found[0]
        target, hash_, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
        inside = path.removeprefix("docs/") if path.startswith("docs/") else OUTER.get(path)
        if inside is not None and (inside in OUTER.values() or (ROOT / path).is_file()):
            new = os.path.relpath(inside, posixpath.dirname(page) or ".")
            return f"{image}[{words}]({new}{hash_}{anchor})"
        return f"[{words}]({repository}/blob/main/{path})" if repository else words

    return _LINK.sub(fitting, text)
