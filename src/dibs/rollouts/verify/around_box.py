r"""What stands right before and behind a box: denials, other answers, signs that make it a part.

``\boxed{5} is wrong`` does not give the answer 5, nor do ``-\boxed{5}`` and ``\boxed{5} million``.
"""

from __future__ import annotations

import re

_NEAR = 32
"""Characters on either side that are looked at."""
_SCALE = r"(?:\\text\w*\{ ?)?(?:hundred|thousand|million|billion|trillion|dozen)\b"
_WRONG = r"(?:wrong|incorrect|false|not (?:correct|right|valid|the (?:correct|right|final|real)))\b"
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot)|n't|\\neq?|≠)(?: be| equal(?: to)?)?\s*(?:\$+|\*\*|\\[(\[])?\s*\Z",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"\s?(?:\$+|\*\*|\\[)\]])?(?:\s+(?:is|was)|[.?!,]?\s+(?:no, |wait, )?(?:that|this|it)(?: is|'s))\s+"
    + _WRONG,
    re.IGNORECASE,
)
_PART_BEFORE = re.compile(
    r"(?:(?:^|[$( ])[-−+]|= ?[-−+] ?|[\d}] ?[-−]|[\d}] ?(?:[+/×·]|\\cdot|\\times|\\div) *|\d ?\* *|\d\("
    r"|\\sqrt(?:\[\d+\])? ?\{? ?|\\[dt]?frac ?(?:\{[^{}]{0,16}\} ?)?\{ ?|[\w})\]][\^_]\{? ?|√"
    r"|\\(?:log|ln|sin|cos|tan|exp|pm|mp) ?(?:\\left)?\(? ?)\Z"
)
_PART_BEHIND = re.compile(
    r" ?(?:[+/×·] ?[\d\\({a-z]|\* ?\d|[-−]\d|\^(?!\{? ?\\(?:circ|degree|text|mathrm))"
    rf"|\\(?:cdot|times|div|sqrt|pi|[dt]?frac|pm)(?![a-z])|\$? ?{_SCALE})"
)
_NEXT_IN_TUPLE = re.compile(r" ?, ?[-\d\\]")


_VALUE = r"([-−]?\d+(?:\.\d+)?(?:/\d+)?(?:\\?%)?)"
_OR_BEFORE = re.compile(rf"(?<![\w.]){_VALUE}\$? or \$?\Z")
_OR_BEHIND = re.compile(rf"\$?,? \(?(?:or|and) \$?{_VALUE}(?=\$?\s*(?:[.,;)]|\Z))")


def numbers_beside(text: str, start: int, end: int) -> tuple[str, ...]:
    """Numbers without a box that "or" or "and" joins to the box between two places of a text."""
    before = _OR_BEFORE.search(text[max(0, start - _NEAR) : start])
    behind = _OR_BEHIND.match(text[end : end + _NEAR])
    return tuple(match[1] for match in (before, behind) if match is not None)


def is_denied(text: str, start: int, end: int) -> bool:
    """Whether the words around the box between two places of a text say that it is not the answer."""
    if _DENIED_BEFORE.search(text[max(0, start - _NEAR) : start]):
        return True
    return _DENIED_BEHIND.match(text[end : end + _NEAR]) is not None


def refusal(text: str, start: int, end: int) -> str:
    """Why the box between two places of a text gives no answer; empty where it gives one."""
    before, behind = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    if is_denied(text, start, end):
        return "the text denies its answer"
    in_tuple = before.endswith("(") and _NEXT_IN_TUPLE.match(behind)
    if in_tuple or _PART_BEFORE.search(before) or _PART_BEHIND.match(behind):
        return "the box is a part of a longer expression"
    return ""
