"""Is there a verl that this works with? Imports none itself before it knows."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from dibs.types import InputError

RELEASE = (0, 9)
REMEDY = "pip install 'dibs-rl[verl]' (supported: verl 0.9.x)"


def require_verl() -> str:
    """The version of verl that is installed.

    Raises InputError, in one line that names the extra, where there is none, another one, or one whose
    own requirements are missing.
    """
    try:
        found = version("verl")
    except PackageNotFoundError:
        raise InputError(
            f"dibs.integrations.verl needs verl, which is not installed: {REMEDY}"
        ) from None
    if Version(found).release[:2] != RELEASE:
        raise InputError(f"dibs.integrations.verl does not work with verl {found}: {REMEDY}")
    try:
        importlib.import_module("verl.trainer.ppo.v1")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"verl {found} is installed but does not import ({reason}): {REMEDY}"
        ) from None
    return found
