"""Users' own functions, named ``module:function``."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import traceback
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
    _refuse_unguarded_script(module, name, what)
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


def called(name: str, what: str, function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns. InputError, with the place, where one of the user's raises.

    The user's gets copies of the arguments, so that what it returns is checked against what was given.

    Args:
        name: of the function; the user's are named ``module:function``. what: begins the message.
    """
    if ":" not in name:
        return function(*arguments)
    try:
        return function(*copy.deepcopy(arguments))
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        places = traceback.extract_tb(error.__traceback__)[1:]
        where = f" in line {places[-1].lineno} of {places[-1].filename}" if places else ""
        raise InputError(
            f"{what} {name} failed with {type(error).__name__}: {error}{where}"
        ) from error


def _refuse_unguarded_script(module: str, name: str, what: str) -> None:
    """InputError for a function of the script that runs: importing it would run the script again."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if module in sys.modules or script is None:
        return
    try:
        spec = importlib.util.find_spec(module)
        same = spec is not None and spec.origin is not None and Path(spec.origin).samefile(script)
        guarded = not same or "__main__" in Path(script).read_text(encoding="utf-8")
    except (ImportError, ValueError, OSError):
        return
    if not guarded:
        raise InputError(
            f"{what} {name!r} is in the script that runs, and importing it would run the script again; "
            "move the function to a file of its own"
        )
