"""Secrets, and keeping them out of what a run writes down and shows to trackers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***secret***"
"""What stands in place of a secret."""
_OF_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")
"""User and password of an address, up to the last @ before the host: a password may hold one."""
_IN_QUERY = re.compile(
    r"(?i)(?<=[?&])([\w-]*(?:token|key|secret|password|credential|signature)=|sig=)[^&#\s]+"
)
_BEARER = re.compile(r"(?i)(?<=\bbearer )[\w.~+/-]{8,}=*")
_ISSUED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|AKIA[A-Z0-9]{16})\b"
)
"""Tokens that have the form of one: of the Hugging Face Hub and others."""
_OPTION = re.compile(
    r"(?i)(?:(?<!answer)(?<!prompt)(?<!question)[_-]keys?|api_?keys?"
    r"|(?:^|[_.-])(?:pass(?:word|wd|phrase)s?|secrets?|credentials?|authorization"
    r"|(?:access|api|auth|bearer|github|hf|refresh|session)[_.-]?tokens?))$"
)
"""Names of options that are secret.

Not of those that name a variable, such as api_key_var, or a column, such as answer_key, and not of
tokens of a text, such as eos_token.
"""
_NAMES = re.compile(r"(?i)(key|token|secret|password)$")
_SHORTEST = 16
"""Characters of a secret in the environment; shorter values may be words that stand anywhere."""


def without_secrets(value: Any) -> Any:
    """A copy of a configuration's values, or of a text, in which :data:`HIDDEN` replaces secrets.

    Secrets are: user and password of an address, tokens and signatures in its query, tokens of known
    forms, all texts of options whose names say so, and the values of environment variables whose names
    end in key, token, secret or password.
    """
    return _hidden(value, _of_environment())


def _hidden(value: Any, secrets: list[str], whole: bool = False) -> Any:
    """``whole``: every text in ``value`` is secret."""
    if isinstance(value, Mapping):
        return {
            key: _hidden(each, secrets, whole or bool(_OPTION.search(str(key))))
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hidden(each, secrets, whole) for each in value]
    if not isinstance(value, str) or not value:
        return value
    if whole:
        return HIDDEN
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    for form in (_OF_URL, _BEARER, _ISSUED):
        value = form.sub(HIDDEN, value)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", value)


def _of_environment() -> list[str]:
    """Values of the environment that are secrets, the longest first."""
    named = (value for name, value in os.environ.items() if _NAMES.search(name))
    return sorted((value for value in named if len(value) >= _SHORTEST), key=len, reverse=True)
