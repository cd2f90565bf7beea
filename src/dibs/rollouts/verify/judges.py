"""Judges that need no algebra: the same text, number or letter, or the embedded task's mark.

A judge is a function ``(gold answer, completion text) -> Verdict``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from dibs.data.answers import clean, final_answer, same_text
from dibs.data.arithmetic import ANSWER_MARK
from dibs.types import Verdict

Judge = Callable[[str, str], Verdict]
ACCEPTED = Verdict(1.0, "accepted")
REJECTED = Verdict(0.0, "rejected")
NO_ANSWER = Verdict(0.0, "no_answer")


def unreached(status: str, reason: str) -> Verdict:
    """A verdict without a judgment: the reward is NaN."""
    return Verdict(float("nan"), status, " ".join(reason.split())[:200])


def judged(judge: Judge, answer: str, text: str) -> Verdict:
    """The judge's verdict; an exception that it raises becomes a verdict of status ``error``."""
    try:
        return judge(answer, text)
    except MemoryError:
        return unreached("error", "out of memory")
    except Exception as error:
        return unreached("error", f"{type(error).__name__}: {error}")


_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*(\{[^{}]*\}|\d)\s*(\{[^{}]*\}|\d)")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?"
_PLAIN = re.compile(rf"([+-]?)\s*({_DECIMAL})(?:\s*/\s*({_DECIMAL}))?")
_MIXED = re.compile(r"([+-]?)\s*(\d{1,15})\s+(\d{1,15})\s*/\s*(\d{1,15})")
_OTHER_LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")
_LETTER = re.compile(
    r"\(?\s*(?:\\text\w*\s*\{)?\s*\(?\s*([A-Za-z])\s*\)?\s*\}?\s*\)?\s*(?:[.:)].*)?"
)


def judge_arithmetic(answer: str, completion: str) -> Verdict:
    """Judge the embedded task: all text after the first ``#`` must be the gold answer."""
    _, mark, given = completion.partition(ANSWER_MARK)
    if not mark or not given:
        return NO_ANSWER
    return ACCEPTED if given == answer else REJECTED


def judge_exact(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """Accept a final answer that is the gold one as text, spacing aside, or the same decimal."""
    given = final_answer(completion, anywhere)
    if given is None:
        return NO_ANSWER
    return ACCEPTED if same_text(given, answer) or _same_decimal(given, answer) else REJECTED


def judge_numeric(
    answer: str, completion: str, anywhere: bool = False, tolerance: float = 1e-6
) -> Verdict:
    """Accept the gold number, up to a relative tolerance, which is absolute for numbers below 1.

    Raises ValueError where the gold answer is no number.
    """
    given = final_answer(completion, anywhere)
    if given is None:
        return NO_ANSWER
    gold, number = _number(answer), _number(given)
    if gold is None:
        raise ValueError(f"the gold answer {answer[:40]!r} is no number")
    if number is None:
        return REJECTED
    return ACCEPTED if abs(number - gold) <= tolerance * max(1.0, abs(gold)) else REJECTED


def judge_choice(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """Accept a final answer that names the gold letter: ``B``, ``(B)``, ``B. because ...``.

    Raises ValueError where the gold answer is no letter.
    """
    given = final_answer(completion, anywhere)
    if given is None:
        return NO_ANSWER
    # Long runs of spaces would make the pattern slow.
    gold, letter = (_LETTER.fullmatch(" ".join(t.split())) for t in (clean(answer), given))
    if gold is None:
        raise ValueError(f"the gold answer {answer[:40]!r} is no letter")
    if letter is None:
        return REJECTED
    named = {letter.group(1).upper(), *_OTHER_LETTER.findall(given)}
    return ACCEPTED if named == {gold.group(1).upper()} else REJECTED


def _same_decimal(one: str, other: str) -> bool:
    if "_" in one + other:  # Python's digit groups
        return False
    try:
        return Decimal(clean(one)) == Decimal(clean(other))
    except InvalidOperation:
        return False


def _number(text: str) -> float | None:
    """The value of a decimal, fraction, mixed number or percentage; commas and dollars are skipped."""
    text = clean(text).replace(r"\$", "").replace("$", "").replace(r"\!", "").replace("\\%", "%")
    text = _FRACTION.sub(lambda m: f" {m[1]}{m[2].strip('{}')}/{m[3].strip('{}')}", text).strip()
    number = text.removesuffix("%").strip()
    mixed, plain = _MIXED.fullmatch(number), _PLAIN.fullmatch(number)
    if mixed is not None:
        sign, whole, above, below = mixed.groups()
    elif plain is not None:
        sign, above, below = plain.groups()
        whole = "0"
    else:
        return None
    below = float((below or "1").replace(",", ""))
    if below == 0:
        return None
    value = float(whole) + float(above.replace(",", "")) / below
    if not math.isfinite(value):
        return None
    value = -value if sign == "-" else value
    return value / 100 if text.endswith("%") else value
