"""Verifiers that compare answers as strings."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from dibs.tasks.arithmetic import ANSWER_MARK
from dibs.types import Verdict

ACCEPTED = Verdict(1.0, "accepted")
REJECTED = Verdict(0.0, "rejected")
NO_ANSWER = Verdict(0.0, "no_answer")


def verify_arithmetic(answer: str, completion: str) -> Verdict:
    """The embedded task: whatever follows the first ``#`` must be the answer, nothing more."""
    _, mark, given = completion.partition(ANSWER_MARK)
    if not mark or not given:
        return NO_ANSWER
    return ACCEPTED if given == answer else REJECTED


def verify_boxed(answer: str, completion: str) -> Verdict:
    r"""The last complete ``\boxed{...}`` must be the answer: the same text, white space aside, or the
    same decimal number.
    """
    given = last_boxed(completion)
    if given is None:
        return NO_ANSWER
    given, answer = "".join(given.split()), "".join(answer.split())
    return ACCEPTED if given == answer or _same_number(given, answer) else REJECTED


def _same_number(one: str, other: str) -> bool:
    try:
        return Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` whose braces close; None without one."""
    opening = r"\boxed{"
    start = text.rfind(opening)
    while start >= 0:
        depth = 1
        for position in range(start + len(opening), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start + len(opening) : position]
        start = text.rfind(opening, 0, start)
    return None
