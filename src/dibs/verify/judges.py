"""Judges that need no algebra: the same text, number or letter, or the embedded task's mark.

A judge is a function ``(gold answer, completion text) -> Verdict``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from dibs.tasks.arithmetic import ANSWER_MARK
from dibs.types import Verdict
from dibs.verify.answers import clean, final_answer, same_text

Judge = Callable[[str, str], Verdict]
ACCEPTED = Verdict(1.0, "accepted")
REJECTED = Verdict(0.0, "rejected")
NO_ANSWER = Verdict(0.0, "no_answer")


def unreached(status: str, reason: str) -> Verdict:
    """No verdict: the reward is not known."""
    return Verdict(float("nan"), status, " ".join(reason.split())[:200])


def judged(judge: Judge, answer: str, text: str) -> Verdict:
    """The judge's verdict; what it raises is a verdict too."""
    try:
        return judge(answer, text)
    except MemoryError:
        return unreached("error", "out of memory")
    except Exception as error:
        return unreached("error", f"{type(error).__name__}: {error}")


_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*(\{[^{}]*\}|\d)\s*(\{[^{}]*\}|\d)")
_LETTER = re.compile(
    r"\(?\s*(?:\\text\w*\s*\{)?\s*\(?\s*([A-Za-z])\s*\)?\s*\}?\s*\)?\s*(?:[.:)].*)?"
)


def judge_arithmetic(answer: str, completion: str) -> Verdict:
    """The embedded task: whatever follows the first ``#`` must be the answer, nothing more."""
    _, mark, given = completion.partition(ANSWER_MARK)
    if not mark or not given:
        return NO_ANSWER
    return ACCEPTED if given == answer else REJECTED


def judge_exact(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """The final answer must be written like the gold one, but for spacing, or be the same decimal."""
    given = final_answer(completion, anywhere)
    if given is None:
        return NO_ANSWER
    return ACCEPTED if same_text(given, answer) or _same_decimal(given, answer) else REJECTED


def judge_numeric(
    answer: str, completion: str, anywhere: bool = False, tolerance: float = 1e-6
) -> Verdict:
    """The final answer must be the gold number, to a relative tolerance (absolute below 1)."""
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
    """The final answer must name the gold letter: ``B``, ``(B)``, ``B. because ...``."""
    given = final_answer(completion, anywhere)
    if given is None:
        return NO_ANSWER
    # Runs of spaces would make the pattern slow.
    gold, letter = (_LETTER.fullmatch(" ".join(t.split())) for t in (clean(answer), given))
    if gold is None:
        raise ValueError(f"the gold answer {answer[:40]!r} is no letter")
    same = letter is not None and letter.group(1).upper() == gold.group(1).upper()
    return ACCEPTED if same else REJECTED


def _same_decimal(one: str, other: str) -> bool:
    try:
        return Decimal(clean(one)) == Decimal(clean(other))
    except InvalidOperation:
        return False


def _number(text: str) -> float | None:
    """A decimal, a fraction, a percentage; with thousands' commas and a currency sign if need be."""
    text = clean(text).replace(r"\$", "").replace("$", "").replace(r"\!", "")
    text = _FRACTION.sub(lambda m: f"{m[1]}{m[2].strip('{}')}/{m[3].strip('{}')}", text)
    text = "".join(text.split())
    percent = text.endswith("%")
    text = text.rstrip("%").rstrip("\\")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return value / 100 if percent and math.isfinite(value) else value
