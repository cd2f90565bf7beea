"""Tokens of an answer in parts: without dress around them, split at marks, or word by word."""

from __future__ import annotations

from collections.abc import Sequence

from dibs.rollouts.verify.cursor import decimal_value
from dibs.rollouts.verify.tokens import Token
from dibs.rollouts.verify.values import Words
from dibs.rollouts.verify.vocabulary import ARTICLES, singular, unit_name, words

_OPEN = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "langle": "rangle",
    "lfloor": "rfloor",
    "lceil": "rceil",
}
_CLOSE = frozenset(_OPEN.values())
_ANSWER_WORDS = words(
    """
    the final correct answer answers result solution solutions value is are so thus hence
    therefore we get have
    """
)
_WORDS_BETWEEN = ("and", "or", "to")
_MARKS = (".", ",", ";", ":", "!", "#")


def words_of(tokens: Sequence[Token]) -> Words:
    """Tokens as words: case, plural, articles, spacing and marks aside."""
    found = []
    is_text = not any(t.kind in ("num", "sym", "cmd") for t in tokens)
    for token, following in zip(tokens, [*tokens[1:], None], strict=False):
        text = token.text
        if text in "aA" and token.kind == "sym" and following and following.kind == "word":
            continue
        if token.kind == "word" or (token.kind == "sym" and token.style == "text"):
            low = text.lower()
            if low in ARTICLES and len(tokens) > 1:
                continue
            text = unit_name(text) or singular(low) if len(text) > 1 else text
        elif token.kind == "num":
            text = text.lower() if "e" in text.lower() else str(decimal_value(text))
        elif text in (",", ".", "{", "}", ";", "(", ")", "'", "-"):
            if text in (",", ".", ";") or is_text:
                continue
        elif text == "|" and len(tokens) == 1:
            continue
        found.append(text)
    runs = "".join(t.text for t in tokens)
    if tokens and all(t.kind == "sym" and len(t.text) == 1 for t in tokens):
        return Words((runs,))
    return Words(tuple(found))


def split(tokens: Sequence[Token], *marks: str) -> tuple[list[list[Token]], list[str]]:
    """The parts of tokens between marks that stand outside all brackets, and these marks."""
    parts: list[list[Token]] = [[]]
    found: list[str] = []
    depth = 0
    for token in tokens:
        if token.kind == "env":
            depth += 1 if token.text[0] == "+" else -1
        elif token.kind in ("ch", "cmd"):
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
        is_mark = token.kind in ("ch", "cmd") or token.text.lower() in _WORDS_BETWEEN
        if depth == 0 and is_mark and token.text.lower() in marks:
            parts.append([])
            found.append(token.text.lower())
        else:
            parts[-1].append(token)
    return parts, found


def is_whole(tokens: Sequence[Token]) -> bool:
    """Whether the first token opens a bracket that the last one closes."""
    if len(tokens) < 2 or tokens[0].text not in _OPEN or tokens[-1].text not in _CLOSE:
        return False
    depth = 0
    for n, token in enumerate(tokens):
        if token.kind in ("ch", "cmd"):
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
            if depth == 0:
                return n == len(tokens) - 1
    return False


def without_dress(tokens: Sequence[Token]) -> list[Token]:
    """The tokens without braces and marks around them, and without words such as "the answer is"."""
    kept = list(tokens)
    while True:
        size = len(kept)
        while (
            kept and kept[-1].text in _MARKS and kept[-1].kind == "ch" and not _is_factorial(kept)
        ):
            if [t.text for t in kept[-3:]] == list("..."):
                break
            kept.pop()
        while (
            kept
            and kept[0].text in (":", "#", ",", ";", "\\", "=")
            and kept[0].kind in ("ch", "cmd")
        ):
            kept.pop(0)
        if len(kept) > 2 and kept[0].text == kept[-1].text and kept[0].text in ("'", "*", "_"):
            kept = kept[1:-1]
        if is_whole(kept) and kept[0].text == "{" and kept[-1].text == "}":
            kept = kept[1:-1]
        if (
            len(kept) > 1
            and kept[0].kind == "word"
            and kept[0].text.lower() in ("exactly", "precisely")
        ):
            kept.pop(0)
        kept = _without_answer_words(_without_denial(kept))
        if len(kept) == size:
            return kept


def _is_factorial(tokens: Sequence[Token]) -> bool:
    return tokens[-1].text == "!" and len(tokens) > 1


def _without_answer_words(tokens: list[Token]) -> list[Token]:
    n = 0
    while n < len(tokens) and tokens[n].kind == "word" and tokens[n].text.lower() in _ANSWER_WORDS:
        n += 1
    said = {token.text.lower() for token in tokens[:n]}
    complete = "is" in said or "are" in said or (n < len(tokens) and tokens[n].text in (":", "="))
    if n < len(tokens) and (
        complete and said & {"answer", "answers", "result", "solution", "solutions"}
    ):
        return tokens[n + 1 :] if tokens[n].text in (":", "=") else tokens[n:]
    return tokens


def _without_denial(tokens: list[Token]) -> list[Token]:
    """Without ``(not 6)`` at the end, which denies another answer."""
    if len(tokens) < 5 or tokens[-1].text != ")":
        return tokens
    n = len(tokens) - 4
    if (
        tokens[n].text == "("
        and tokens[n + 1].text.lower() == "not"
        and tokens[n + 2].kind == "num"
    ):
        return tokens[:n]
    return tokens
