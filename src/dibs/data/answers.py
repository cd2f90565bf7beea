r"""The final answer in a completion, and answers compared as text, in time linear in the text.

A completion's answer is its last ``\boxed{...}``. Boxes with only commas, "and" or "or" between them
are one answer with several parts, so a completion that lists every possibility is not right.
"""

from __future__ import annotations

import re

from dibs.data.stated_answers import stated_answers

LONGEST = 20_000
"""Characters at the end of a completion that are searched, since an answer stands at the end."""
_LAYERS = 8
"""Most layers of marks around an answer that are removed."""

_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\\boxed\s*([^\s{}$\\]+)")
JOINT = re.compile(
    r"(?:[\s,;:$&|/*•-]|\\[()\[\],;! ]|\\q?quad|\\(?:lor|land|vee|wedge|mid)(?![a-z])"
    r"|\\(?:text|mathrm|textbf)\s*\{\s*(?:and|or)\s*\}|and|or|alternatively"
    r"|[a-zA-Z]\s?=|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])*"
)
_WRAPPERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;:! ]|\\q?quad|[\s$~]")
APPROXIMATE = re.compile(r"[\s${]*~")
"""A tilde before everything else: ``~5`` is not 5, though a tilde between words is a space."""
_DIGIT_GAP = re.compile(r"(?<=\d)(?:\s|\\q?quad|\\ |~)+(?=\d)")


def final_answer(text: str, anywhere: bool = False) -> str | None:
    r"""The answer of a completion, without its box; None if there is none.

    ``anywhere``: where nothing is boxed, the answer is the text after the last "answer is" or "####", or
    else the last number.
    """
    text = text[-LONGEST:]
    found = boxes_in(text)
    if found:
        return clean(_last_joined(text, found)) or None
    unbraced = _UNBRACED.findall(text)
    if unbraced:
        return clean(unbraced[-1]) or None
    if not anywhere:
        return None
    stated = [clean(each) for each in stated_answers(text)]
    return next(filter(None, stated), None)


def boxes_in(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every complete box that is not inside another."""
    depth: list[tuple[int, int] | None] = []
    complete: list[tuple[int, int, str]] = []
    for token in _TOKEN.finditer(text):
        kind = token.group()
        if kind == "{":
            depth.append(None)
        elif len(kind) > 2:
            depth.append(token.span())
        elif kind == "}" and depth:
            opening = depth.pop()
            if opening is not None:
                start, inside = opening
                while complete and complete[-1][0] > start:
                    complete.pop()
                complete.append((start, token.end(), text[inside : token.start()]))
    return complete


def _last_joined(text: str, boxes: list[tuple[int, int, str]]) -> str:
    parts = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not JOINT.fullmatch(text, box[1], parts[0][0]):
            break
        parts.insert(0, box)
    contents = list(dict.fromkeys(clean(content) for *_, content in parts))
    return ", ".join(contents)


def clean(answer: str) -> str:
    """An answer without the marks around it: spaces, dollars, a final stop, a box."""
    for _ in range(_LAYERS):
        stripped = _without_stop(answer.strip())
        for opening, closing in _WRAPPERS:
            inside = stripped[len(opening) : -len(closing)]
            long_enough = len(stripped) > len(opening) + len(closing)
            if long_enough and stripped.startswith(opening) and stripped.endswith(closing):
                stripped = inside if closing not in inside else stripped
        inner = boxes_in(stripped)
        if len(inner) == 1 and inner[0][:2] == (0, len(stripped)):
            stripped = inner[0][2]
        if stripped == answer:
            break
        answer = stripped
    return answer


def _without_stop(text: str) -> str:
    r"""The text without full stops, commas and small spaces (``\,``) at its end."""
    end = len(text)
    while end and text[end - 1] in ".,;:!~ \n\t" and not text.endswith((r"\right.", "..."), 0, end):
        if text[end - 1] == "!" and not text.endswith(r"\!", 0, end):
            break  # a factorial
        end = _end_before(text, end)
        if text.endswith("\\", 0, end) and not text.endswith("\\\\", 0, end):
            end = _end_before(text, end)
    return text[:end]


def _end_before(text: str, end: int) -> int:
    """The end without the last character and the space before it; by index, as copies take long."""
    end -= 1
    while end and text[end - 1].isspace():
        end -= 1
    return end


def reading(text: str, anywhere: bool = False) -> str | None:
    """The final answer in the form in which :func:`same_text` compares it; None if there is none."""
    answer = final_answer(text, anywhere)
    return None if answer is None else _plain(answer)


def same_text(one: str, other: str) -> bool:
    """Whether two answers are the same text, apart from spacing, font, and the case of words."""
    return _plain(one) == _plain(other)


def _plain(answer: str) -> str:
    text = _STYLE.sub(r"\1", clean(answer))
    about = "~" if APPROXIMATE.match(text) else ""
    text = about + _SPACING.sub("", _DIGIT_GAP.sub("\0", text))
    text = text if text.endswith("..") else text.removesuffix(".")
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return text.casefold() if re.search(r"[A-Za-z]{2}", text) else text
