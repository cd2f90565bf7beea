"""Whether a trainer's package is installed in a version that the plug-in supports.

Nothing of the package is imported before its version is known.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version


def require(package: str, oldest: str, before: str, module: str | None = None) -> str:
    """Return the installed version of a package.

    Args:
        package: name of the package, of its extra and of the room in ``dibs.integrations``.
        oldest: first supported release.
        before: first release that is not supported; its release candidates are not either.
        module: a module that must import; it shows whether the package's own requirements are met.

    Raises:
        ImportError: the package is missing, has another version or does not import. The message is
            one line and names the extra to install.
    """
    title = {"trl": "TRL"}.get(package, package)
    remedy = f"run: pip install 'dibs-rl[{package}]'"
    try:
        found = version(package)
    except PackageNotFoundError:
        found = None
    if found is None or not _release(oldest) <= _release(found) < _release(before):
        raise ImportError(
            f"dibs.integrations.{package} needs {title} {oldest} or later, below {before}, and found "
            f"{found or 'none'}; {remedy}"
        )
    if module is not None:
        try:
            importlib.import_module(module)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise ImportError(
                f"{title} {found} is installed but does not import ({reason}); {remedy}"
            ) from None
    return found


def _release(number: str) -> tuple[int, ...]:
    return Version(number).release
