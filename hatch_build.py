"""What an index shows of the package: the README with whole addresses, and where its sources are.

``DIBS_REPOSITORY`` names the repository, as it does for the site. Without it the README's links are
plain words, since nothing stands beside it on an index.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^)\s]+)\)")


def with_whole_links(text: str, repository: str) -> str:
    """Text whose links and pictures lead into the repository; none of them where it is not known."""

    def fitting(found: re.Match[str]) -> str:
        image, words, link = found.groups()
        if re.match(r"[a-z]+:|#", link):
            return found[0]
        if not repository:
            return "" if image else words
        return f"{image}[{words}]({repository}/{'raw' if image else 'blob'}/main/{link})"

    return _LINK.sub(fitting, text)


class CustomMetadataHook(MetadataHookInterface):
    """Gives hatchling the fields ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add them to the project's metadata."""
        repository = os.environ.get("DIBS_REPOSITORY", "").rstrip("/")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        readme = with_whole_links(text, repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
        if repository:
            metadata["urls"] = {
                "Repository": repository,
                "Documentation": f"{repository}/blob/main/docs/README.md",
                "Changes": f"{repository}/blob/main/CHANGELOG.md",
            }
