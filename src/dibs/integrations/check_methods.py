"""Whether a trainer's class still has the methods that a plug-in overrides. Imports no trainer.

They are not its public interface: one that is renamed would switch the plug-in off without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping


def missing_method(trainer: type, methods: Mapping[str, tuple[str, ...]]) -> str | None:
    """The first of the methods that the class lacks, in words, or None.

    Args:
        methods: by name, the parameters after ``self`` that are relied on, in order.
    """
    for name, wanted in methods.items():
        method = getattr(trainer, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)[1:]
        if method is None or found[: len(wanted)] != wanted:
            return f"{trainer.__name__} has no {name}({', '.join((*wanted, '...'))})"
    return None
