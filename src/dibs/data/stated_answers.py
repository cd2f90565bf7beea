"""Answers that stand in a text without a box: behind "the answer is", or the last number."""

from __future__ import annotations

import re

_STATED = re.compile(
    r"(?:answer(?:\s+is|\s*[:=]|\s*\*\*\s*:?|(?=\s*\d))|\#\#\#\#|答案是|答案[:：]|答案为)"
    r"[ \t]*[:：=]?[ \t]*(?:\*\*)?[ \t]*(?=\S)",
    re.IGNORECASE,
)
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


def stated_answers(text: str) -> tuple[str, ...]:
    """What the answer of a text may be, the likeliest first; empty without an answer.

    Behind the last "answer is", "Answer:" or "####" these are the words up to the end of the clause, and
    up to the end of the line. Without these marks it is the last number, its sign and power included.
    """
    stated = [match.end() for match in _STATED.finditer(text)]
    if stated:
        tail = text[stated[-1] :].partition("\n")[0].strip(" *`$")
        if _NOT.match(tail):
            return ()
        end = _ENDS.search(tail)
        clause = tail[: end.start()] if end else tail
        return tuple(dict.fromkeys(part for part in (clause.strip(" *`$"), tail) if part))
    numerals = [
        "" if _UNSURE.search(text[max(0, match.start() - 24) : match.start()]) else match[0]
        for match in _NUMERAL.finditer(text)
        if not _LABEL.search(text[max(0, match.start() - 9) : match.start()])
    ]
    return tuple(filter(None, numerals[-1:]))
