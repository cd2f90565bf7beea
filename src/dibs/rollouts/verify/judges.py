"""Judges that need no algebra: the same text, number or letter, or the embedded task's mark.

A judge is a function ``(gold answer, completion text) -> Verdict``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from dibs.data.answers import APPROXIMATE, clean, same_text
from dibs.data.arithmetic import ANSWER_MARK
from dibs.rollouts.verify.characters import plain_characters
from dibs.rollouts.verify.compare import is_label
from dibs.rollouts.verify.equality import decimal_expansion
from dibs.rollouts.verify.expressions import TooLargeError
from dibs.rollouts.verify.final_answer import Found, find_answer
from dibs.rollouts.verify.read import read
from dibs.rollouts.verify.values import Quantity, Statement
from dibs.types import Verdict

Judge = Callable[[str, str], Verdict]
ACCEPTED = Verdict(1.0, "accepted")
REJECTED = Verdict(0.0, "rejected")
NO_ANSWER = Verdict(0.0, "no_answer")


def unreached(status: str, reason: str) -> Verdict:
    """A verdict without a judgment: the reward is NaN."""
    return Verdict(float("nan"), status, " ".join(reason.split())[:200])


def scored(reward: float, accept_threshold: float, what: str = "reward") -> Verdict:
    """A reward as a verdict, accepted from the threshold on; without a judgment if it is not finite."""
    if not math.isfinite(reward):
        return unreached("error", f"the {what} is {reward}")
    return Verdict(reward, "accepted" if reward >= accept_threshold else "rejected")


def judged(judge: Judge, answer: str, text: str) -> Verdict:
    """The judge's verdict; an exception that it raises becomes a verdict of status ``error``."""
    try:
        return judge(answer, text)
    except MemoryError:
        return unreached("error", "out of memory")
    except Exception as error:
        return unreached("error", f"{type(error).__name__}: {error}")


_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_OTHER_LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")


def judge_arithmetic(answer: str, completion: str) -> Verdict:
    """Judge the embedded task: all text after the first ``#`` must be the gold answer."""
    _, mark, given = completion.partition(ANSWER_MARK)
    if not mark or not given:
        return NO_ANSWER
    return ACCEPTED if given == answer else REJECTED


def judge_exact(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """Accept a final answer that is the gold one as text, spacing aside, or the same decimal."""
    found = find_answer(completion, anywhere)
    if not found.readings or found.refused:
        return _unanswered(found)
    gold = plain_characters(answer)

    def is_same(text: str) -> bool:
        return same_text(plain_characters(text), gold) or _same_decimal(
            plain_characters(text), gold
        )

    return _compared(found, is_same, "text")


def judge_numeric(
    answer: str, completion: str, anywhere: bool = False, tolerance: float = 1e-6
) -> Verdict:
    """Accept the gold number, up to a relative tolerance, which is absolute for numbers below 1.

    A percentage is a hundredth: ``50\\%`` is 0.5, not 50. Raises ValueError where the gold answer is no
    number.
    """
    found = find_answer(completion, anywhere)
    if not found.readings or found.refused:
        return _unanswered(found)
    gold = _number(answer)
    if gold is None:
        raise ValueError(f"the gold answer {answer[:40]!r} is no number")
    bound = Fraction(tolerance) * max(Fraction(1), abs(gold))

    def is_near(text: str) -> bool:
        number = _number(text)
        return number is not None and abs(number - gold) <= bound

    return _compared(found, is_near, "number")


def judge_choice(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """Accept a final answer that names the gold letter: ``B``, ``(B)``, ``B. because ...``.

    Raises ValueError where the gold answer is no letter.
    """
    found = find_answer(completion, anywhere)
    if not found.readings or found.refused:
        return _unanswered(found)
    gold = chosen_letter(answer)
    if gold is None:
        raise ValueError(f"the gold answer {answer[:40]!r} is no letter")
    return _compared(found, lambda text: chosen_letter(text) == gold, "letter")


def _unanswered(found: Found) -> Verdict:
    if not found.readings:
        return Verdict(0.0, "no_answer", "find: there is no final answer")
    return Verdict(0.0, "rejected", f"find: {found.refused}")


def _compared(found: Found, is_gold: Callable[[str], bool], what: str) -> Verdict:
    if found.is_right(is_gold):
        return Verdict(1.0, "accepted", f"compare: the same {what}")
    if found.several:
        return Verdict(0.0, "rejected", "find: several answers that contradict each other")
    given = " ".join(plain_characters(found.readings[0]).split())[:40]
    return Verdict(0.0, "rejected", f"compare: {given!r} is not the {what}")


_CHOICE = re.compile(
    r"(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?:? ?)?\(?([A-Za-z])(?:\)|[.:])? ?(.*)",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"\b(?:wrong|incorrect|maybe|perhaps|possibly|unlikely|not)\b", re.IGNORECASE)
_BARE_LETTER = re.compile(r"\(?([A-K])\)?[.)]?")


def is_letter(answer: str) -> bool:
    """Whether an answer is the letter of a choice and nothing else: ``B``, ``(B)``."""
    return _BARE_LETTER.fullmatch(_unstyled(answer)) is not None


def chosen_letter(answer: str) -> str | None:
    """The one letter that an answer names, or None: ``(B)``, ``B. 5``, ``Option B``, ``(B) 5``.

    Text behind the letter must be set off by a bracket, stop or colon and name no other letter.
    """
    text = _unstyled(answer)
    if APPROXIMATE.match(clean(answer)):
        return None
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    letter, behind = match[1].upper(), match[2]
    set_off = text[match.end(1) : match.end(1) + 1] in (")", ".", ":")
    if behind and (not set_off or _OTHER_LETTER.search(behind) or _DOUBT.search(behind)):
        return None
    return letter


_DRESS = re.compile(
    r"\\(?:text\w*|math\w\w|mbox|boldsymbol|bm)\s*(?=\{)|[{}$]|\\[,;:! ]|\\q?quad|~"
)


def _unstyled(answer: str) -> str:
    return " ".join(_DRESS.sub(" ", clean(answer)).replace("( ", "(").split()).replace(" )", ")")


def _same_decimal(one: str, other: str) -> bool:
    if "_" in one + other:  # Python's digit groups
        return False
    try:
        return Decimal(_ungrouped(clean(one))) == Decimal(_ungrouped(clean(other)))
    except InvalidOperation:
        return False


def _ungrouped(text: str) -> str:
    return text.replace(",", "") if _GROUPED.fullmatch(text) else text


def _number(text: str) -> Fraction | None:
    """The exact value of a number, or of one that follows a label; None for anything else.

    Irrational numbers are given to 30 digits.
    """
    value = read(clean(text))[0]
    if isinstance(value, Statement) and is_label(value.label):
        value = value.value
    if not isinstance(value, Quantity):
        return None
    try:
        number = decimal_expansion(value.node)
    except TooLargeError:
        return None
    return number / 100 if number is not None and value.percent else number
