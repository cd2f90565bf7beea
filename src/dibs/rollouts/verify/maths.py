"""Equality of mathematical answers: find the answer, undress and read it, compare, judge leftovers.

The stages are pure functions in modules of their own: ``final_answer`` (by ``around_box``), ``tokens``
(by ``characters`` and ``latex``), ``read`` (by ``parse_expression``, ``numerals``, ``units`` and
``intervals``) and ``compare`` (by ``equality``). A verdict's ``reason`` names the stage that decided.
This runs in the workers of ``pool``, which stop it where a value takes too long to compute.
"""

from __future__ import annotations

import re
from itertools import product

from dibs.data.answers import clean, same_text
from dibs.rollouts.verify.compare import equal
from dibs.rollouts.verify.expressions import TooLargeError
from dibs.rollouts.verify.final_answer import Found, find_answer
from dibs.rollouts.verify.judges import chosen_letter, is_letter
from dibs.rollouts.verify.read import read
from dibs.rollouts.verify.values import Value, Words
from dibs.types import Verdict

_FONT = re.compile(r"\\(?:text\w*|math\w\w|mbox)\s*\{([^{}]*)\}|\\[$%]")
_MARKUP = re.compile(r"[\\^_{}=<>+*|]")


def judge_math(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """Accept a final answer of the same value as the gold one: numbers, expressions, sets, matrices.

    The verdict's reason begins with the name of the stage that decided: ``find`` (no answer, several
    that contradict each other, or one that the text around it denies or continues), ``text`` (the same
    text), ``choice`` (a letter), ``read`` (one of them is no mathematics), or ``compare``.
    """
    found = find_answer(completion, anywhere)
    if not found.readings:
        return Verdict(0.0, "no_answer", "find: there is no final answer")
    if found.refused:
        return _rejected(f"find: {found.refused}")
    gold = clean(answer)
    verdicts = [_judged(gold, text) for text in found.several or found.readings]
    right = [verdict for verdict in verdicts if verdict.status == "accepted"]
    if found.several and len(right) < len(verdicts):
        return _rejected(f"find: several answers: {_listed(found)}")
    return (right or verdicts)[-1 if found.several else 0]


def is_readable_gold(answer: str) -> bool:
    r"""Whether a gold answer is read as mathematics, or is plain words: ``\frac{1}{`` is neither."""
    if not all(isinstance(value, Words) for value in read(clean(answer))):
        return True
    return _MARKUP.search(_FONT.sub("", answer)) is None


def _judged(gold: str, given: str) -> Verdict:
    if same_text(given, gold):
        return Verdict(1.0, "accepted", "text: the same text")
    if is_letter(gold):
        letter = chosen_letter(given)
        if letter is not None:
            same = letter == chosen_letter(gold)
            return Verdict(float(same), "accepted" if same else "rejected", f"choice: {letter}")
    wanted, got = read(gold), read(given)
    try:
        if any(equal(one, other) for one, other in product(wanted, got)):
            return Verdict(1.0, "accepted", f"compare: {_kind(got[0])} of the same value")
    except TooLargeError as error:
        return _rejected(f"compare: {error}")
    for value, whose in ((got[0], "the answer"), (wanted[0], "the gold answer")):
        if isinstance(value, Words):
            return _rejected(f"read: {whose} was read as words: {' '.join(value.words)[:80]}")
    return _rejected(f"compare: {_kind(got[0])} of another value")


def _rejected(reason: str) -> Verdict:
    return Verdict(0.0, "rejected", " ".join(reason.split()))


def _kind(value: Value) -> str:
    return type(value).__name__.lower()


def _listed(found: Found) -> str:
    return " and ".join(text[:30] for text in found.several[:4])
