"""Whether the TRL at hand is one that the plug-in knows."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

OLDEST, BEFORE = "1.16", "2"
"""Of 1.x, versions later than the tested one are let in: ``hooks`` looks at what they have."""


def require_trl() -> None:
    """ImportError, in one line that names the extra and the versions, unless TRL is there and fits."""
    try:
        found = version("trl")
    except PackageNotFoundError:
        found = None
    if found is None or not Version(OLDEST) <= Version(found) < Version(BEFORE):
        raise ImportError(
            f"dibs.integrations.trl needs TRL {OLDEST} or later, below {BEFORE}, and found "
            f"{found or 'none'}; run: pip install 'dibs-rl[trl]'"
        )
