"""Is there a verl that this works with? Imports none itself before it knows."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from dibs.types import InputError

OLDEST, BEFORE = (0, 9), (0, 10)
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
    if not OLDEST <= _release(found) < BEFORE:
        raise InputError(f"dibs.integrations.verl does not work with verl {found}: {REMEDY}")
    try:
        importlib.import_module("verl.trainer.ppo.v1")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"verl {found} is installed but does not import ({reason}): {REMEDY}"
        ) from None
    return found


def _release(text: str) -> tuple[int, ...]:
    """Leading numbers of a version: 0.9.1rc2 -> (0, 9)."""
    numbers = []
    for part in text.split(".")[:2]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    return tuple(numbers)
