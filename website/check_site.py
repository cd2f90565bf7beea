"""Checks the built site: every link leads somewhere, and no page loads anything from a network.

python website/check_site.py [site]
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
_HINTS = {"canonical", "next", "prev"}
"""Kinds of <link> that load nothing."""


class Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in a tag."""
        values = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        if tag == "a" and (link := values.get("href")):
            self.links.append(link)
        loads = values.get(_LOADED.get(tag, ""))
        if loads and not set((values.get("rel") or "").split()) & _HINTS:
            self.loads.append(loads)


def faults(site: Path) -> list[str]:
    """One line for each link that leads nowhere and for each thing that a page loads from a network."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {each}" for each in page.loads if _is_remote(each)]
        local = [each for each in page.links + page.loads if not _is_remote(each)]
        at = site if name.name == "404.html" else path.parent  # served at every address
        found += [f"{name}: {e} leads nowhere" for e in local if not _leads(e, path, at, pages)]
    for path in sorted(site.rglob("*.css")):
        remote = re.findall(
            r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]+", path.read_text("utf-8")
        )
        found += [f"{path.relative_to(site)} loads {each}" for each in remote]
    return found


def _is_remote(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def _leads(link: str, path: Path, at: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if path.name == "404.html":
        parts = parts._replace(path=parts.path.removeprefix("/"))
    if parts.scheme:  # mailto and data
        return True
    target = (at / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return False
    anchors = pages[target].anchors if target in pages else set()
    return not parts.fragment or target not in pages or unquote(parts.fragment) in anchors


def main() -> int:
    """Print what is wrong; the exit status is 1 if anything is."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()
    found = faults(site)
    for line in found:
        print(line)
    pages = len(list(site.rglob("*.html")))
    print(f"{site.name}: {pages} pages, {len(found)} faults")
    return int(bool(found) or not pages)


if __name__ == "__main__":
    sys.exit(main())
