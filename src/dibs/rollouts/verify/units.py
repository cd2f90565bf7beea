"""Words left over behind a number: they must be units, names of things, or factors such as million."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dibs.rollouts.verify.tokens import Token, group_end
from dibs.rollouts.verify.values import Unit
from dibs.rollouts.verify.vocabulary import (
    ADJECTIVES,
    GLUE,
    POWERS,
    SCALES,
    is_noun,
    singular,
    unit_name,
)


@dataclass(frozen=True, slots=True)
class Measure:
    """A unit, a factor, and whether the number is a percentage."""

    unit: Unit = ()
    factor: int = 1
    percent: bool = False


def starts_unit(tokens: Sequence[Token], i: int) -> bool:
    """Whether words begin at token ``i``: a word, a unit set in roman, a percent or currency sign."""
    token = tokens[i]
    if token.kind in ("word", "money") or (token.kind == "ch" and token.text == "%"):
        return True
    if token.text == "degree" and i + 1 < len(tokens):
        return tokens[i + 1].text in ("C", "F") and tokens[i + 1].kind == "sym"
    if token.text == "^" and [t.text for t in tokens[i + 1 : i + 3]] == ["{", "degree"]:
        return len(tokens) > i + 4 and tokens[i + 4].text in ("C", "F")
    if token.text == "^" and i + 2 < len(tokens) and tokens[i + 1].text == "degree":
        return tokens[i + 2].text in ("C", "F")
    if token.text == "frac" and i + 2 < len(tokens):
        return _is_unit_word(tokens[i + 2])
    return i > 0 and _is_unit_word(token)


def _is_unit_word(token: Token) -> bool:
    if token.kind == "word":
        return True
    return token.kind == "sym" and token.style == "text" and unit_name(token.text) is not None


def measure_of(tokens: Sequence[Token]) -> Measure | None:
    """What some words behind a number say about it, or None where one of them is not known."""
    reader = _Reader()
    if not reader.reads(tokens, 1):
        return None
    unit = tuple(sorted((name, power) for name, power in reader.powers.items() if power))
    return Measure(unit, reader.factor, reader.percent)


class _Reader:
    def __init__(self) -> None:
        self.powers: dict[str, int] = {}
        self.factor = 1
        self.percent = False
        self.side = 1  # -1 in a denominator
        self.power = 1  # of the next unit
        self.last = ""
        self.described = False  # an adjective waits for its noun

    def reads(self, tokens: Sequence[Token], side: int) -> bool:
        """Take in some tokens; False where one of them is not known."""
        self.side, i = side, 0
        while i < len(tokens):
            token = tokens[i]
            if token.text == "frac":
                end = self.fraction(tokens, i + 1)
            elif token.text == "^":
                end = self.exponent(tokens, i + 1)
            elif token.kind in ("word", "sym"):
                end = i + 1 if self.word(token) else -1
            else:
                end = i + 1 if self.sign(token) else -1
            if end < 0:
                return False
            i = end
        return self.power == 1 and not self.described

    def as_percent(self) -> bool:
        first = not self.percent
        self.percent = True
        return first

    def add(self, name: str) -> bool:
        self.last = name
        self.powers[name] = self.powers.get(name, 0) + self.side * self.power
        self.power = 1
        self.described = False
        return True

    def fraction(self, tokens: Sequence[Token], i: int) -> int:
        middle = group_end(tokens, i)
        end = group_end(tokens, middle)
        side = self.side
        if end < 0 or not self.reads(tokens[i + 1 : middle - 1], side):
            return -1
        return end if self.reads(tokens[middle + 1 : end - 1], -side) else -1

    def exponent(self, tokens: Sequence[Token], i: int) -> int:
        end, exponent = _exponent(tokens, i)
        if exponent is None:  # degrees
            self.add("deg")
        elif exponent == 0 or not self.last:
            return -1
        else:
            self.powers[self.last] *= exponent
        return end

    def sign(self, token: Token) -> bool:
        if token.kind == "money":
            return self.add(token.text)
        if token.text == "%":
            return self.as_percent()
        if token.text == "degree":
            self.add("deg")
        elif token.text == "/":
            self.side = -1
            return bool(self.powers) or self.percent
        else:
            return token.text in ("cdot", "times", "*", "-", ".", "{", "}") and (
                bool(self.last) or self.power > 1
            )
        return True

    def word(self, token: Token) -> bool:
        text, low = token.text, token.text.lower()
        if text in ("C", "F") and self.last == "deg":
            self.powers.pop("deg")
            return self.add(f"deg{text}")
        if low == "cent" and self.side < 0 and not self.powers:  # per cent
            self.side = 1
            return self.as_percent()
        if low in ("percent", "percents"):
            return self.as_percent()
        if low == "per":
            self.side = -1
        elif singular(low) in SCALES:
            self.factor *= SCALES[singular(low)]
            return not self.powers
        elif low in POWERS:
            if not low.endswith("ed"):
                self.power = POWERS[low]
            elif self.last:
                self.powers[self.last] *= POWERS[low]
            return bool(self.last) or not low.endswith("ed")
        elif unit_name(text) is not None:
            return self.add(str(unit_name(text)))
        elif low in ADJECTIVES:
            self.described = True
        elif low in GLUE:
            return bool(self.last) or low in ("in", "the", "a", "each", "total", "altogether")
        else:
            return is_noun(text) and token.kind == "word" and self.add(singular(low))
        return True


def _exponent(tokens: Sequence[Token], i: int) -> tuple[int, int | None]:
    """The index behind an exponent, and its value: None for degrees, 0 for no power."""
    braced = i < len(tokens) and tokens[i].text == "{"
    i += braced
    negative = i < len(tokens) and tokens[i].text == "-"
    i += negative
    if i >= len(tokens):
        return i, 0
    text = tokens[i].text
    i += 1 + braced
    if text == "degree":
        return i, None
    return i, (-1 if negative else 1) * int(text) if text.isdigit() and len(text) < 3 else 0
