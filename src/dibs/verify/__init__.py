"""(gold answer, completion text) to Verdict. Knows no tokens."""

from __future__ import annotations

from collections.abc import Callable

from dibs.tasks.arithmetic import TASKS
from dibs.types import InputError, Verdict
from dibs.verify.exact import verify_arithmetic, verify_boxed

Verifier = Callable[[str, str], Verdict]
"""``verifier(answer, completion_text) -> Verdict``."""

VERIFIERS: dict[str, Verifier] = {"arithmetic": verify_arithmetic, "boxed": verify_boxed}


def build_verifier(name: str, source: str) -> Verifier:
    """The verifier called ``name``; ``auto`` picks the one that fits the data ``source``.

    Raises InputError for an unknown name.
    """
    if name == "auto":
        name = "arithmetic" if source in TASKS else "boxed"
    if name not in VERIFIERS:
        raise InputError(f"unknown verifier {name!r}; known: {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[name]
