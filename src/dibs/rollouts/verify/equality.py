"""Whether two expressions have the same value: exactly, or to hundreds of digits relative to their size.

Rational numbers are compared as fractions. Other numbers are computed to 40 digits, and where these
agree, to 200. Expressions with variables are compared in the same way at fixed points, of which some are
negative. No bound is absolute, so tiny and huge numbers are told apart as others are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from mpmath import mp

from dibs.rollouts.verify.expressions import (
    Node,
    TooLargeError,
    UndefinedError,
    exact,
    has_op,
    numeric,
    symbols,
)

_FEW, _MANY = 40, 200
"""Digits of a first comparison, and of the one that decides."""
_LOST = 12
"""Digits that rounding may cost."""
_RANGES = ((1.0, 3.0), (0.1, 0.9), (-3.0, -1.0), (2.0, 9.0), (-0.9, -0.1), (-5.0, 5.0))
"""From where the values of variables are drawn, one point after another."""
_NOISE = 2e-15
"""Largest relative difference of a decimal that was printed from a float."""


def same_expression(one: Node, other: Node) -> bool:
    """Whether two expressions are equal wherever both are defined.

    False where a value is undefined. Raises TooLargeError where a value cannot be computed.
    """
    if one == other:
        return True
    if has_op(one, "infinity") or has_op(other, "infinity"):
        return False
    try:
        first, second = exact(one), exact(other)
        if first is not None and second is not None:
            return first == second
        names = symbols(one) | symbols(other)
        if not names:
            return _same_numbers(one, other, {})
        return _same_functions(one, other, sorted(names))
    except (UndefinedError, RecursionError):
        return False


def nearly_same(one: Node, other: Node) -> bool:
    """Whether two numbers differ by no more than the noise of a float."""
    try:
        if symbols(one) | symbols(other):
            return False
        with mp.workdps(_FEW):
            a, b = numeric(one, {}), numeric(other, {})
            return bool(abs(a - b) <= _NOISE * max(abs(a), abs(b)))
    except (UndefinedError, TooLargeError):
        return False


def decimal_expansion(node: Node) -> Fraction | None:
    """The value of a real number, exact where it is rational, else to 30 digits; None for others.

    Raises TooLargeError.
    """
    try:
        value = exact(node)
        if value is not None or symbols(node):
            return value
        with mp.workdps(30):
            number = numeric(node, {})
            return None if mp.im(number) else Fraction(mp.nstr(mp.re(number), 30))
    except (UndefinedError, ValueError):
        return None


def order(one: Node, other: Node) -> int | None:
    """-1, 0 or 1 as a number is less than, equal to or greater than another; None where unknown."""
    if symbols(one) | symbols(other) or has_op(one, "infinity") or has_op(other, "infinity"):
        return None
    if same_expression(one, other):
        return 0
    try:
        with mp.workdps(_FEW):
            a, b = numeric(one, {}), numeric(other, {})
            return None if mp.im(a) or mp.im(b) else -1 if a < b else 1
    except (UndefinedError, TooLargeError):
        return None


def proportional(one: Node, other: Node) -> bool:
    """Whether one expression is a nonzero constant times the other, so that both are zero together."""
    names = sorted(symbols(one) | symbols(other))
    if not names or symbols(one) != symbols(other):
        return False
    ratio = Node("div", (one, other))
    try:
        quotients = []
        with mp.workdps(_FEW):
            for n in range(len(_RANGES)):
                point = _point(names, n)
                a, b = numeric(one, point), numeric(other, point)
                if a == 0 or b == 0:
                    return False
                quotients.append(numeric(ratio, point))
            first = quotients[0]
            return all(
                abs(q - first) <= abs(first) * mp.mpf(10) ** (_LOST - _FEW) for q in quotients
            )
    except (UndefinedError, TooLargeError):
        return False


def _same_numbers(one: Node, other: Node, point: Mapping[str, Any], surely: bool = True) -> bool:
    before: tuple[Any, Any] | None = None
    approximate = has_op(one, "int", "opaque") or has_op(other, "int", "opaque")
    for digits in (_FEW,) if approximate or not surely else (_FEW, _MANY):
        with mp.workdps(digits):
            a, b = numeric(one, point), numeric(other, point)
            bound = mp.mpf(10) ** (_LOST + (12 if approximate else 0) - digits)
            if abs(a - b) > bound * max(abs(a), abs(b)):
                tiny = max(abs(a), abs(b)) < bound
                if not tiny or (before is not None and not _is_noise(before, (a, b))):
                    return False
            before = (a, b)
    return True


def _is_noise(few: tuple[Any, Any], many: tuple[Any, Any]) -> bool:
    """Whether both numbers are zero up to rounding: with more digits they become smaller."""
    return all(
        abs(b) <= abs(a) * mp.mpf(10) ** (-100) or b == 0 for a, b in zip(few, many, strict=True)
    )


def _same_functions(one: Node, other: Node, names: list[str]) -> bool:
    seen = {"real": 0, "complex": 0}
    for n in range(len(_RANGES)):
        point = _point(names, n)
        try:
            kind = "real"
            with mp.workdps(_FEW):
                a, b = numeric(one, point), numeric(other, point)
                if mp.im(a) or mp.im(b):
                    kind = "complex"
            same = _same_numbers(one, other, point, surely=n == 0)
        except UndefinedError:
            continue
        if not same and kind == "real":
            return False
        seen[kind] += same
    return seen["real"] >= 2 or seen["complex"] >= 4


def _point(names: list[str], n: int) -> dict[str, Any]:
    low, high = _RANGES[n]
    point = {}
    for name in names:
        drawn = hashlib.sha256(f"{n} {name}".encode()).digest()
        share = mp.mpf(int.from_bytes(drawn[:8], "big")) / 2**64
        point[name] = low + (high - low) * share
    return point
