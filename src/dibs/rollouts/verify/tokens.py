r"""Text of an answer as tokens, without its dress: fonts, colors, sizes, spacing, alignment.

One pass of one regular expression, then one pass over the tokens, so the time is linear. ``\text{...}``
is replaced by its content, whose tokens are marked: a run of letters there is a word, not a product.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dibs.rollouts.verify.characters import plain_characters
from dibs.rollouts.verify.latex import (
    BLOCKS,
    CHARACTERS,
    FONTS,
    FUNCTIONS,
    GREEK,
    MONEY,
    SAME,
    SPELLED,
    SWITCHES,
    TAKE_ARGUMENT,
    TAKE_FIRST,
    TEXT_FONTS,
)
from dibs.rollouts.verify.vocabulary import is_word, unit_name, words


@dataclass(frozen=True, slots=True)
class Token:
    r"""A piece of an answer.

    ``kind`` is ``num``, ``sym`` (one letter, or a Greek one), ``word``, ``cmd`` (a LaTeX command without
    its backslash), ``env`` (``+pmatrix`` where it begins, ``-pmatrix`` where it ends), or ``ch`` (one
    character). ``gap``: whether space stands before it. ``style``: ``text``, ``bold`` or empty.
    """

    kind: str
    text: str
    gap: bool = False
    style: str = ""


_NUMBER = r"(?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][+-]?\d{1,4}(?![\w.]))?"
_JOINED = r"(?:[1-9]\d{0,2}|[1-9]\d?(?:,\d\d)+)(?:,\d{3})+(?!\d|,\d)(?:\.\d+)?"
_PIECES = r"|\\[A-Za-z]+\*?|\\.|[A-Za-z]+|\s+|."
_SEPARATE = re.compile(rf"({_NUMBER}){_PIECES}", re.DOTALL)
_TOGETHER = re.compile(rf"({_JOINED}|{_NUMBER}){_PIECES}", re.DOTALL)
_GROUPED = re.compile(_JOINED)
_COMMA = re.compile(
    r"(?<=\d)(?:\{,\}|\{,\\!\}|,\\!|\\text\{,\}|\\mathord\{,\}|\{\\,\}|,\{\})(?=\d{3}(?!\d))"
)
_SPACED = re.compile(
    r"(?<![\d.,/])([1-9]\d{0,2})((?:(?:\\[,;:! ]|[ ~])\d{3})+)(?!\d|[ ~]*/|\\?[,; ]*\d|\.\d*\w)"
)
_UNDERSCORED = re.compile(r"(?<![\w.])[1-9]\d{0,2}(?:_\d{3})+(?![\w{])")
_BARE_POINT = re.compile(r"(?<![\d.])\.(?=\\(?:overline|bar|dot)(?![a-z]))")
_TIMES = re.compile(r"(?<=\d)[ ]?[xX][ ]?(?=10[ ]?\^)")
_PUNCTUATION = re.compile(r"\{([:,])\}")
_NO_BRACKET = re.compile(r"\\(?:left|right)\s*\.")
_POWER = re.compile(r"(?<=[\w)\]}])\*\*(?=[\w({\\-])")
_BOLD = re.compile(r"\*\*+")
_ROW_SPACE = re.compile(r"\\\\\[[^\[\]]{0,12}\]")

_LAYERS = 200
"""Most braces inside each other; what is deeper is no answer."""


class UnreadableError(Exception):
    """Text that is no answer which can be compared by value; the message says why."""


def tokens_of(text: str, join_thousands: bool = True) -> list[Token]:
    r"""The tokens of an answer, without dress. ``1,234`` is one number if ``join_thousands``.

    Raises UnreadableError where braces are nested too deeply or closed too often.
    """
    text = _COMMA.sub(",", _NO_BRACKET.sub(" ", plain_characters(text)))
    text = _BOLD.sub(" ", _POWER.sub("^", text))
    text = _TIMES.sub(r"\\times ", _ROW_SPACE.sub(r"\\\\", _PUNCTUATION.sub(r"\1", text)))
    text = _BARE_POINT.sub("0.", text.replace("==", "="))
    text = _UNDERSCORED.sub(lambda m: m[0].replace("_", ""), text)
    text = _SPACED.sub(lambda m: m[1] + re.sub(r"[^\d]", "", m[2]), text)
    return _undressed(_scanned(text, _TOGETHER if join_thousands else _SEPARATE))


def has_grouped_digits(text: str) -> bool:
    """Whether commas in the text may group the digits of one number or separate several numbers."""
    return _GROUPED.search(text) is not None


def _scanned(text: str, pattern: re.Pattern[str]) -> list[Token]:
    found: list[Token] = []
    gap = begun = False
    for match in pattern.finditer(text):
        piece = match[0]
        if piece.isspace() or piece == "\\ " or (piece == "~" and begun):
            gap = True
            continue
        begun = begun or not _is_dress(piece)
        if match[1] is not None:
            kind = "num"
        elif piece[0] == "\\" and len(piece) > 1:
            kind, piece = "cmd", piece[1:]
        elif piece.isalpha() and piece.isascii():
            kind = "run"
        else:
            kind = "ch"
        found.append(Token(kind, piece, gap))
        gap = False
    return found


def _is_dress(piece: str) -> bool:
    """Whether an answer may have this before its first part, so that a tilde behind it is no space."""
    name = piece[1:].rstrip("*")
    return piece in ("{", "$") or (
        piece[0] == "\\" and (name in TEXT_FONTS or name in FONTS or name in SWITCHES)
    )


def _undressed(raw: list[Token]) -> list[Token]:
    out: list[Token] = []
    styles: list[str | None] = []  # of the open braces; None for braces that are kept
    tables = 0  # open matrices and the like, in which & is a mark
    pending: str | None = None  # the style that the next opening brace starts
    i = 0
    while i < len(raw):
        token = raw[i]
        style = next((s for s in reversed(styles) if s), "") if styles else ""
        i += 1
        if token.kind == "ch" and token.text in "{}":
            if token.text == "{":
                styles.append(pending)
                if len(styles) > _LAYERS:
                    raise UnreadableError("braces are nested too deeply")
                kept = pending != "text"
                pending = None
            elif not styles:
                raise UnreadableError("a brace is closed that was not opened")
            else:
                kept = styles.pop() != "text"
            if kept:
                out.append(token)
            continue
        pending = None
        if token.kind == "cmd":
            tables += _opened_tables(token, raw, i)
            i, pending = _command(token, raw, i, style, out)
        elif token.kind == "run":
            out.extend(_run(token, style, out))
        elif token.kind == "ch" and (token.text in '$`"' or (token.text == "&" and not tables)):
            continue
        else:
            out.append(replace(token, style=style) if style else token)
    if styles:
        raise UnreadableError("a brace is not closed")
    return out


def _opened_tables(token: Token, raw: list[Token], i: int) -> int:
    """1 where a matrix or the like begins, -1 where one ends, else 0."""
    name = raw[i + 1].text if i + 1 < len(raw) and raw[i].text == "{" else ""
    return (token.text == "begin") - (token.text == "end") if name and name not in BLOCKS else 0


def _command(
    token: Token, raw: list[Token], i: int, style: str, out: list[Token]
) -> tuple[int, str | None]:
    """Handle a command at ``i - 1``: what comes next, and the style of a brace that opens there."""
    name = SAME.get(token.text, token.text).rstrip("*")
    opens = i < len(raw) and raw[i].text == "{"
    if name in TEXT_FONTS or name in FONTS:
        style_inside = "text" if name in TEXT_FONTS else "bold"
        return i, style_inside if opens else None
    if name in TAKE_ARGUMENT or name in TAKE_FIRST:
        return _after_group(raw, i) if opens else i, None
    if name in SWITCHES or name in ("(", ")") or token.text in ("[", "]"):
        return i, None
    if name in ("begin", "end") and opens:
        return _environment(name, token, raw, i, out), None
    if name in ("mathbb", "mathcal"):
        letters = raw[i + 1 : i + 2] if opens else raw[i : i + 1]
        out.append(Token("cmd", f"mathbb{letters[0].text if letters else ''}", token.gap))
        return _after_group(raw, i) if opens else i + 1, None
    out.append(_meaning(name, token, style))
    return i, None


def _environment(name: str, token: Token, raw: list[Token], i: int, out: list[Token]) -> int:
    r"""Handle ``\\begin{...}`` and ``\\end{...}``; the index behind it."""
    end = _after_group(raw, i)
    env = "".join(each.text for each in raw[i + 1 : end - 1]).rstrip("*")
    has_columns = env in ("array", "tabular") and name == "begin"
    if has_columns and end < len(raw) and raw[end].text == "{":
        end = _after_group(raw, end)
    if env not in BLOCKS:
        out.append(Token("env", ("+" if name == "begin" else "-") + env, token.gap))
    return end


def _meaning(name: str, token: Token, style: str) -> Token:
    """The token of a command that is no dress."""
    if name in MONEY:
        return Token("money", MONEY[name], token.gap)
    if name in ("%", "&", "#", "_"):
        return Token("ch", "%" if name == "%" else f"\\{name}", token.gap)
    if name in CHARACTERS:
        return Token("ch", {"{": "\\{", "}": "\\}"}.get(name, name), token.gap)
    if name in ("and", "or"):
        return Token("word", name, True)
    if name in GREEK:
        return Token("sym", name, token.gap)
    return Token("cmd", name, token.gap, style)


def group_end(tokens: Sequence[Token], i: int) -> int:
    """The index behind the group that opens at ``i``; -1 where none opens there, or it is not closed."""
    if not 0 <= i < len(tokens) or tokens[i].text != "{":
        return -1
    depth = 0
    for j in range(i, len(tokens)):
        if tokens[j].kind == "ch":
            depth += (tokens[j].text == "{") - (tokens[j].text == "}")
            if depth == 0:
                return j + 1
    return -1


def _after_group(raw: list[Token], i: int) -> int:
    """The index behind the group that opens at ``i``."""
    end = group_end(raw, i)
    if end < 0:
        raise UnreadableError("a brace is not closed")
    return end


_ATTACHED = words(
    """
    or and to by is as so at on it be in if min max
    """
)


def _run(token: Token, style: str, out: list[Token]) -> Iterator[Token]:
    """The tokens of a run of letters: a command, a word, or symbols."""
    run = token.text
    low = run.lower()
    if low in ("st", "nd", "rd", "th") and out and out[-1].kind == "num" and not token.gap:
        return  # an ordinal: 5th
    if low in SPELLED and len(run) > 3:
        yield Token("cmd", SPELLED[low], token.gap)
    elif low in FUNCTIONS and run != "Im" and (low not in ("min", "max") or style != "text"):
        yield Token("cmd", low, token.gap)
    elif low in GREEK and len(run) < 6 and low not in ("in",) and style != "text":
        yield Token("sym", low, token.gap)
    elif len(run) == 1:
        yield Token("sym", run, token.gap, style)
    elif style == "text" or _stands_alone(token, out):
        yield Token("word", run, token.gap, style)
    else:
        for n, letter in enumerate(run):
            yield Token("sym", letter, token.gap and n == 0, style or ("run" if n else ""))


def _stands_alone(token: Token, out: list[Token]) -> bool:
    hyphen = len(out) > 1 and out[-1].text == "-" and out[-2].kind == "word" and not token.gap
    after_word = hyphen or (bool(out) and out[-1].kind == "word" and token.gap)
    if after_word or not is_word(token.text):
        return after_word
    if token.text.lower() in _ATTACHED:
        return token.gap or not out
    behind_number = bool(out) and out[-1].kind == "num" and unit_name(token.text) is not None
    return token.gap or not out or behind_number or len(token.text) > 2
