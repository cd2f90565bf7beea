"""Equality of mathematical answers: math-verify, and checks for wrong answers that it accepts.

This runs in the workers of ``pool``, which stop it where parsing or comparing hangs or exhausts memory.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import product
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import FiniteSet, Float, Interval, S, Tuple, Union, default_sort_key
from sympy.logic.boolalg import And, Boolean

from dibs.data.answers import clean, final_answer, same_text
from dibs.rollouts.verify.judges import ACCEPTED, NO_ANSWER, REJECTED
from dibs.types import Verdict

# It warns that it sets no time limit; the workers set one.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

_CONFIG = (LatexExtractionConfig(boxed_match_priority=0),)
_BASE = re.compile(r"\d\s*_\s*\{?\s*(\d+)\s*\}?$")
_UNIT = re.compile(
    r"(?:\\(?:text|mathrm|mbox)\s*\{\s*([^{}]*[A-Za-z][^{}]*)\}|(?<=[\d }])([A-Za-z]{1,12}))"
    r"(\^\s*\{?\s*\d\s*\}?)?$"
)
_WORD = re.compile(r"[A-Za-z]{3,}(?:\s+[A-Za-z]+)*|no", re.IGNORECASE)
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|sim|cong|doteq)(?![a-z])")
_CONNECTIVE = re.compile(r"(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|\\(?:lor|vee)(?![a-z])")
_EXPONENT = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?!\w)")
_SEVERAL = (FiniteSet, Tuple, Interval, Union, And)
_DIGITS = 2e-6
"""Largest relative difference of decimals that count as equal."""


def judge_math(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """Accept a final answer of the same value as the gold one: numbers, expressions, sets, matrices.

    Three rules go beyond math-verify. An answer that is the gold one as text is accepted without
    parsing. A false statement (``1=2=3``) is rejected. Number bases and units must be the same where
    both answers have one.

    Raises MemoryError or RecursionError where the answers could not be compared.
    """
    given = final_answer(completion, anywhere)
    if given is None:
        return NO_ANSWER
    gold = clean(answer)
    if same_text(given, gold):
        return ACCEPTED
    # Words are compared as text. An answer with a box inside hides another answer.
    by_text = _WORD.fullmatch(gold) is not None or r"\boxed" in given
    if by_text or _differ(_BASE, gold, given) or _differ(_UNIT, gold, given):
        return REJECTED
    given = _APPROXIMATELY.split(given)[0]
    targets = _parsed(given)
    # Of several answers joined by "or", perhaps only one was parsed.
    half_read = _CONNECTIVE.search(given) and not any(isinstance(t, _SEVERAL) for t in targets)
    if half_read or any(_is_false(target) for target in targets):
        return REJECTED
    equal = any(_equal(one, other) for one, other in product(_parsed_gold(gold), targets))
    return ACCEPTED if equal else REJECTED


def _scientific(match: re.Match[str]) -> str:
    return f"{match[1]} \\times 10^{{{int(match[2])}}}"


def _differ(pattern: re.Pattern[str], gold: str, given: str) -> bool:
    one, other = (pattern.search(text) for text in (gold, given))
    if one is None or other is None:
        return False
    plain = ["".join(filter(str.isalnum, "".join(m.groups("")))).lower() for m in (one, other)]
    if sorted(plain[0]) == sorted(plain[1]):
        return False  # ab and ba are a product, not units
    # A plural is the same unit.
    return re.sub("e?s$", "", plain[0]) != re.sub("e?s$", "", plain[1])


@lru_cache(maxsize=8192)
def _parsed_gold(answer: str) -> list[Any]:
    return _parsed(answer)


def _parsed(answer: str) -> list[Any]:
    """What math-verify parses an answer to: expressions and text; empty where it is no mathematics."""
    try:
        written = _EXPONENT.sub(_scientific, answer)
        found: list[Any] = parse(
            f"\\boxed{{{written}}}", _CONFIG, parsing_timeout=None, raise_on_error=True
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # math-verify raises exceptions of many kinds from its parser.
        return []
    return found


def _is_false(expression: Any) -> bool:
    """Whether an expression is a false statement, or a chain of statements of which one is false."""
    if not isinstance(expression, Boolean):
        return False
    if isinstance(expression, And):
        return any(_is_false(part) for part in expression.args)
    return not expression.free_symbols and bool(expression.doit() == S.false)


def _equal(gold: Any, target: Any) -> bool:
    try:
        alike = bool(
            verify(
                gold,
                target,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
        )
        return alike and _close(gold, target)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False


def _close(gold: Any, target: Any) -> bool:
    """Whether decimals are equal to six significant digits.

    math-verify compares six places after the point, however small the numbers are. True where there are
    no decimals, and where the parts of both do not match one to one.
    """
    if isinstance(gold, str) or not (gold.has(Float) or target.has(Float)):
        return True
    if getattr(gold, "is_number", False) and getattr(target, "is_number", False):
        try:
            one, other = complex(gold.evalf(20)), complex(target.evalf(20))
        except TypeError:  # a percentage, which math-verify does not evaluate
            return True
        return abs(one - other) <= _DIGITS * max(abs(one), abs(other))
    if isinstance(gold, _SEVERAL) and len(gold.args) == len(target.args):
        order = default_sort_key if isinstance(gold, FiniteSet) else None
        pairs = zip(
            sorted(gold.args, key=order) if order else gold.args,
            sorted(target.args, key=order) if order else target.args,
            strict=True,
        )
        return all(_close(*pair) for pair in pairs)
    return True
