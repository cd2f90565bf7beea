"""Numbers in English words: ``twenty-five``, ``two thousand and five``, ``one half``."""

from __future__ import annotations

from collections.abc import Sequence

from dibs.rollouts.verify.tokens import Token
from dibs.rollouts.verify.vocabulary import NUMBER_WORDS, PARTS, SCALES, TENS, singular

_HUNDRED = 100


def with_digits(tokens: Sequence[Token]) -> list[Token]:
    """The tokens with a number in words at their start as digits; other tokens as they are.

    ``a`` counts as one before ``dozen``, ``half`` and the like. Words that make no number in good
    order, such as ``five two``, are left as they are.
    """
    names = [_name(token) for token in tokens]
    value, end = _whole(names)
    if end and end < len(names) and names[end] in PARTS and value < _HUNDRED:
        return [*_fraction(value, PARTS[names[end]]), *tokens[end + 1 :]]
    count, after = _whole(names[end + 1 :]) if names[end : end + 1] == ["and"] else (0, 0)
    after += end + 1
    if end and count and after < len(names) and names[after] in PARTS:  # two and a half
        parts = PARTS[names[after]]
        return [*_fraction(value * parts + count, parts), *tokens[after + 1 :]]
    if not end or _continues(names, end):
        return list(tokens)
    return [Token("num", str(value)), *tokens[end:]]


def _fraction(above: int, below: int) -> list[Token]:
    return [Token("num", str(above)), Token("ch", "/"), Token("num", str(below))]


def _name(token: Token) -> str:
    if token.kind == "word" or (token.kind == "sym" and token.text == "a"):
        return singular(token.text.lower()) if len(token.text) > 4 else token.text.lower()
    return token.text if token.text == "-" else ""


def _whole(names: Sequence[str]) -> tuple[int, int]:
    """A whole number at the start, and where it ends; the end is 0 where there is none."""
    if names[:1] == ["a"] and len(names) > 1 and (names[1] in SCALES or names[1] in PARTS):
        if names[1] in PARTS:
            return 1, 1
        return SCALES[names[1]], 2
    total, end, largest = 0, 0, 10**15
    while True:
        start = end + (end > 0 and names[end : end + 1] == ["and"])
        group, after = _below_thousand(names, start)
        if after == start:
            return total, end
        scale = SCALES.get(names[after], 1) if after < len(names) else 1
        if scale >= largest:
            return (total, end) if end else (0, 0)
        total, end, largest = total + group * scale, after + (scale > 1), scale
        if scale == 1:
            return total, end


def _below_thousand(names: Sequence[str], start: int) -> tuple[int, int]:
    value, end = _below_hundred(names, start)
    if end > start and value and value < 100 and names[end : end + 1] == ["hundred"]:
        joint = end + 1 + (names[end + 1 : end + 2] == ["and"])
        rest, after = _below_hundred(names, joint)
        return value * _HUNDRED + rest, after if after > joint else end + 1
    return value, end


def _below_hundred(names: Sequence[str], start: int) -> tuple[int, int]:
    name = names[start] if start < len(names) else ""
    if name in TENS:
        unit = start + (2 if names[start + 1 : start + 2] == ["-"] else 1)
        value = NUMBER_WORDS.get(names[unit], 0) if unit < len(names) else 0
        if 0 < value < 10:
            return TENS[name] + value, unit + 1
        return TENS[name], start + 1
    if name in NUMBER_WORDS:
        return NUMBER_WORDS[name], start + 1
    return 0, start


def _continues(names: Sequence[str], end: int) -> bool:
    """Whether another number in words follows, so that the first is not the whole one."""
    return end < len(names) and (names[end] in NUMBER_WORDS or names[end] in TENS)
