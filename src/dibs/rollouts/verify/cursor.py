"""A place in a list of tokens, and what is read there without brackets: numerals and subscripts."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from dibs.rollouts.verify.expressions import Node, number
from dibs.rollouts.verify.tokens import Token, UnreadableError


def decimal_value(text: str) -> Fraction:
    """The exact value of a numeral; commas between digits are skipped.

    Raises UnreadableError for more than 4000 digits.
    """
    if len(text) > 4000:
        raise UnreadableError("a number has too many digits")
    return Fraction(text.replace(",", "").rstrip(".") or "0")


class Cursor:
    """Tokens, and the index ``at`` of the next one. Methods raise UnreadableError."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = list(tokens)
        self.at = 0
        self.depth = 0
        self.bars = 0

    @property
    def here(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def is_here(self, *texts: str) -> bool:
        token = self.here
        return token is not None and token.text in texts and token.kind in ("ch", "cmd")

    def take(self, *texts: str) -> bool:
        found = self.is_here(*texts)
        self.at += found
        return found

    def take_word(self, text: str) -> bool:
        """Whether this word stands here; then it is passed."""
        token = self.here
        found = token is not None and token.kind == "word" and token.text == text
        self.at += found
        return found

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise UnreadableError(f"{text!r} is missing")

    def numeral(self, token: Token) -> Node:
        value = decimal_value(token.text)
        repeated = self.repeated(token.text)
        return number(value) if repeated is None else number(repeated)

    def repeated(self, text: str) -> Fraction | None:
        r"""The value of a repeating decimal: ``0.1\overline{6}``, ``0.\dot{3}``, ``0.(3)``, ``.33...``

        None where it does not. Raises UnreadableError for digits that go on without a pattern.
        """
        if "." not in text:
            return None
        start = text.partition(".")[2]
        block = self.bracketed_digits(text)
        if self.is_here("overline", "dot", "bar"):
            while self.take("overline", "dot", "bar"):
                braced = self.take("{")
                digits = self.here
                if digits is None or not digits.text.isdigit():
                    raise UnreadableError("a repeating decimal without digits")
                self.at += 1
                block += digits.text
                if braced:
                    self.expect("}")
        elif self.is_here("ldots") or [t.text for t in self.tokens[self.at : self.at + 3]] == list(
            "..."
        ):
            block = _cycle(start)
            if not block:
                raise UnreadableError("a decimal that goes on")
            self.at += 1 if self.is_here("ldots") else 3
            start = start[: len(start) - len(start) % len(block)] if start == block * 9 else start
        if not block:
            return None
        value = decimal_value(text if text[-1] != "." else text[:-1])
        tail = decimal_value(block) / ((10 ** len(block) - 1) * 10 ** len(start))
        return value + tail

    def bracketed_digits(self, text: str) -> str:
        """The digits of ``(3)`` right behind a decimal, which repeat: ``0.(3)`` is a third."""
        after = self.tokens[self.at : self.at + 3]
        if [t.text for t in after[::2]] != ["(", ")"] or after[0].gap or "e" in text.lower():
            return ""
        if after[1].kind != "num" or not after[1].text.isdigit():
            return ""
        self.at += 3
        return after[1].text

    def subscript(self) -> str:
        if not self.take("_"):
            return ""
        token = self.here
        if token is None:
            raise UnreadableError("a subscript is missing")
        if not self.take("{"):
            self.at += 1
            return f"_{token.text}"
        texts: list[str] = []
        depth = 1
        while self.here is not None:
            text = self.tokens[self.at].text
            self.at += 1
            depth += (text == "{") - (text == "}")
            if depth == 0:
                return "_" + "".join(texts)
            texts.append(text)
        raise UnreadableError("a brace is not closed")

    def plain_fraction(self) -> Node | None:
        """``1/2`` of a mixed number, where it stands here."""
        after = self.tokens[self.at : self.at + 3]
        if [each.kind for each in after] != ["num", "ch", "num"] or after[1].text != "/":
            return None
        above, below = decimal_value(after[0].text), decimal_value(after[2].text)
        if above >= below or above.denominator != 1 or below.denominator != 1:
            return None
        self.at += 3
        return Node("div", (number(above), number(below)))


def _cycle(digits: str) -> str:
    """The shortest block that the end of some digits repeats: 3 for 333, 36 for 3636."""
    for size in (1, 2, 3, 6):
        block = digits[-size:]
        least = 3 if size == 1 else 2
        if len(digits) >= size * least and digits.endswith(block * least):
            return block
    return ""
