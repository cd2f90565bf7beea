"""Users' own functions, named ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dibs.types import InputError


def import_function(name: str, what: str) -> Callable[..., Any]:
    """The function named ``module:function``; modules of the current folder are found too.

    Raises InputError, whose message begins with ``what``, where there is no such function.
    """
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{what} {name!r} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's module does
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{what} {name!r} cannot be imported: {reason}") from error
    if not callable(found):
        raise InputError(f"{what} {name!r} is not a function")
    own: Callable[..., Any] = found
    return own
