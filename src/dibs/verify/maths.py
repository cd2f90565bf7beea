"""Equality of mathematical answers: math-verify, with what it lets pass and should not.

Runs in the workers of ``pool``: parsing and comparing may hang or exhaust memory, and are stopped there.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import product
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import S
from sympy.logic.boolalg import Boolean

from dibs.types import Verdict
from dibs.verify.answers import clean, final_answer, same_text
from dibs.verify.judges import ACCEPTED, NO_ANSWER, REJECTED

# Its notices that it sets no time limit are meant for those who set none.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

_CONFIG = (LatexExtractionConfig(boxed_match_priority=0),)
_BASE = re.compile(r"\d\s*_\s*\{?\s*(\d+)\s*\}?$")
_UNIT = re.compile(
    r"\\(?:text|mathrm|mbox)\s*\{\s*([^{}]*[A-Za-z][^{}]*)\}\s*(\^\s*\{?\s*\d\s*\}?)?$"
)


def judge_math(answer: str, completion: str, anywhere: bool = False) -> Verdict:
    """The final answer must be equal to the gold one in value: numbers, expressions, sets, matrices.

    Beyond math-verify: an answer that is written like the gold one needs no parsing; a false statement
    (``1=2=3``) answers nothing; number bases and units, where both name one, must be the same.

    Raises MemoryError and RecursionError where the comparison could not be made.
    """
    given = final_answer(completion, anywhere)
    if given is None:
        return NO_ANSWER
    gold = clean(answer)
    if same_text(given, gold):
        return ACCEPTED
    if _differ(_BASE, gold, given) or _differ(_UNIT, gold, given):
        return REJECTED
    targets = _parsed(given)
    if any(_is_false(target) for target in targets):
        return REJECTED
    equal = any(_equal(one, other) for one, other in product(_parsed_gold(gold), targets))
    return ACCEPTED if equal else REJECTED


def _differ(pattern: re.Pattern[str], gold: str, given: str) -> bool:
    one, other = (pattern.search(text) for text in (gold, given))
    if one is None or other is None:
        return False
    plain = ["".join(filter(str.isalnum, "".join(m.groups("")))).lower() for m in (one, other)]
    # Plurals are the same unit.
    return re.sub("e?s$", "", plain[0]) != re.sub("e?s$", "", plain[1])


@lru_cache(maxsize=8192)
def _parsed_gold(answer: str) -> list[Any]:
    return _parsed(answer)


def _parsed(answer: str) -> list[Any]:
    """Expressions and the text that an answer may be read as; none where it is no mathematics."""
    try:
        found: list[Any] = parse(
            f"\\boxed{{{answer}}}", _CONFIG, parsing_timeout=None, raise_on_error=True
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # math-verify raises whatever its parser trips over.
        return []
    return found


def _is_false(expression: Any) -> bool:
    if not isinstance(expression, Boolean) or expression.free_symbols:
        return False
    return bool(expression.doit() == S.false)


def _equal(gold: Any, target: Any) -> bool:
    try:
        return bool(
            verify(
                gold,
                target,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False
