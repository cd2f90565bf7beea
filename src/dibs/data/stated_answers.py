"""Answers that stand in a text without a box: behind "the answer is", or the last number."""

from __future__ import annotations

import re

_STATED = re.compile(
    r"(?:answer(?:\s+is|\s*[:=]|\s*\*\*\s*:?|(?=\s*\d))|\#\#\#\#|答案是|答案[:：]|答案为)",
    re.IGNORECASE,
)
_LEAD = re.compile(r"[ \t]*+[:：=]?[ \t]*+(?:\*\*)?\s*+(?:(?:\$\$|\\\[)[ \t]*+\n\s*+)?")
"""What stands between "the answer is" and the answer, perhaps the start of a formula's own line.

No part can be matched in two ways, so that long gaps take linear time.
"""
_ENDS = re.compile(
    r"(?<=[^\s\d.])\.(?=\s|$)|(?<=\d)\.(?=\s+\S|$)|。|[,;]\s+(?=[a-z])"
    r"|\b(?:because|since|as|so that|which|i\.e\.|that is|where)\b"
)
_NUMERAL = re.compile(
    r"[-−–+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,4}(?!\w))?(?:\s*(?:\^|\*\*)\s*\{?-?\d+\}?|[⁰¹²³⁴-⁹⁺⁻]+)?"
    r"(?:/\d+)?%?(?:!(?=\s+[a-z]|[^\s]))?"
)
_LABEL = re.compile(r"\b(?:step|case|part|option|question|problem)\s$", re.IGNORECASE)
_UNSURE = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|about|approximately|around|roughly|not|nearly|almost)\s$"
    r"|\d\s(?:and|to)\s$",
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:not|never|n't)\b", re.IGNORECASE)

_BEFORE = re.compile(
    r"(?:[\w)}\]] ?[-−–]|\d ?[*x]|[+/^_×·÷√~≈≠<>≤≥|\[{]|[^\W\d]\("
    r"|\\(?:cdot|times|div|approx|sim|ne|neq|le|leq|ge|geq|lt|gt|pm)"
    r"|(?<![A-Za-z])(?:sqrt|log|ln|lg|sin|cos|tan|exp))\Z"
)
"""What stands before a number that is only a part of an expression, a bound, or a list."""
_AFTER = re.compile(
    r"[^\W\d](?![^\W\d])| ?(?:[·×÷√^_±]|[*/] ?\w|\\(?:pi|sqrt|cdot|times|div|pm)(?![a-z])"
    r"|(?:\\text\w*\{ ?)?(?:hundred|thousand|million|billion|trillion|dozen)\b|or (?:more|less|so)\b)"
)
"""What stands behind such a number, or makes it another one."""
_LISTED = re.compile(r"\d ?[,;]\Z")
_LAST = re.compile(r"\s*(?:\Z|[)\]}.])")
_RATIO = re.compile(r"\d:\Z")
_TAG = re.compile(r"</?\w{1,12}>\Z")


def stated_answers(text: str) -> tuple[str, ...]:
    """What the answer of a text may be, the likeliest first; empty without an answer.

    Behind the last "answer is", "Answer:" or "####" these are the words up to the end of the clause, and
    up to the end of the line. Without these marks it is the last number, its sign and power included,
    unless it is a part of something longer: of an expression, a list, or a number such as 5 million.
    """
    for match in reversed(list(_STATED.finditer(text))):
        start = _end_of_lead(text, match.end())
        if start < len(text):
            return _clause_and_line(text[start:].partition("\n")[0].strip(" *`$"))
    last = None
    for match in _NUMERAL.finditer(text):
        if not _LABEL.search(text[max(0, match.start() - 9) : match.start()]):
            last = match
    if last is None or _is_part(text, last.start(), last.end()):
        return ()
    return (last[0],)


def _end_of_lead(text: str, at: int) -> int:
    lead = _LEAD.match(text, at)
    return lead.end() if lead else at


def _clause_and_line(line: str) -> tuple[str, ...]:
    if _NOT.match(line):
        return ()
    end = _ENDS.search(line)
    clause = line[: end.start()] if end else line
    return tuple(dict.fromkeys(part for part in (clause.strip(" *`$"), line) if part))


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether a number is doubted, or part of an expression, list or longer number."""
    before = text[max(0, start - 24) : start]
    touching = _TAG.sub("", before.rstrip(" $"))
    if _UNSURE.search(before) or _BEFORE.search(touching):
        return True
    behind = text[end : end + 24].lstrip("$")
    if _LISTED.search(touching) and _LAST.match(behind):
        return True
    if " " not in before[len(touching) :]:
        signed = text[start] in "-−–+" and touching[-1:].isalnum()
        if signed or touching[-1:].isalpha() or _RATIO.search(touching):
            return True
    return _AFTER.match(behind) is not None
