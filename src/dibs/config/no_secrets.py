"""Finds secrets in a configuration, which ``config.yaml``, trackers and the report would show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_NAMED = re.compile(
    r"(?:^|_)(?:api_?key|password|passwd|secret|secret_key|(?:access|auth|bearer|hf)_token)$",
    re.IGNORECASE,
)
"""Names of values that are secret; not of variables that hold one, such as api_key_var."""
_SIGNED_IN = re.compile(r"://[^/\s@]*:[^/\s@]+@")
_ISSUED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|AKIA[A-Z0-9]{16})\b"
)


def secret_keys(values: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of values that hold a secret: by name, an address with a password, or a token."""
    if isinstance(values, dict):
        for name, inner in values.items():
            own = f"{key}.{name}" if key else str(name)
            if _NAMED.search(str(name)) and isinstance(inner, str) and inner:
                yield own
            else:
                yield from secret_keys(inner, own)
    elif isinstance(values, list | tuple):
        for inner in values:
            yield from secret_keys(inner, key)
    elif isinstance(values, str) and (_SIGNED_IN.search(values) or _ISSUED.search(values)):
        yield key
