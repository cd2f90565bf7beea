r"""What stands right before and behind a box: words that deny it, and signs that make it a part.

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
    r"\s?(?:\$+|\*\*|\\[)\]])?(?:\s+(?:is|was)|[.?!,]?\s+(?:no, )?(?:that|this|it)(?: is|'s))\s+"
    + _WRONG,
    re.IGNORECASE,
)
_PART_BEFORE = re.compile(
    r"(?:(?:^|[$=( ])[-−+]|[\d}] ?[-−]|[\d}] ?(?:[+/×·]|\\cdot|\\times|\\div) *|\d ?\* *"
    r"|\\sqrt(?:\[\d+\])? ?\{? ?|\\[dt]?frac ?\{ ?|[\w})\]][\^_]\{? ?|√)\Z"
)
_PART_BEHIND = re.compile(
    r" ?(?:[+/×·] ?[\d\\({a-z]|\* ?\d|[-−]\d|\^(?!\{? ?\\(?:circ|degree|text|mathrm))"
    rf"|\\(?:cdot|times|div|sqrt|pi|[dt]?frac|pm)(?![a-z])|\$? ?{_SCALE})"
)


def refusal(text: str, start: int, end: int) -> str:
    """Why the box between two places of a text gives no answer; empty where it gives one."""
    before, behind = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    if _DENIED_BEFORE.search(before) or _DENIED_BEHIND.match(behind):
        return "the text denies its answer"
    if _PART_BEFORE.search(before) or _PART_BEHIND.match(behind):
        return "the box is a part of a longer expression"
    return ""
