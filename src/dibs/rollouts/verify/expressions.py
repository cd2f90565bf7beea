"""Expressions as trees, and their values: exact fractions where possible, else many digits.

Every function here takes time and memory that are bounded by the expression's length: powers,
factorials and sums of more than a stated size raise :class:`TooLargeError`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mpmath import mp


@dataclass(frozen=True, slots=True)
class Node:
    """An expression: ``op`` applied to ``args``. ``value`` holds a number, a name or a written form."""

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None


class TooLargeError(Exception):
    """A value that would take too many digits to compute."""


class UndefinedError(Exception):
    """An expression without a value, such as 1/0."""


MOST_BITS = 200_000
"""Bits of the largest integer that is computed."""
_MOST_TERMS = 2000


def number(value: int | Fraction) -> Node:
    """A tree that is one number."""
    return Node("num", (), Fraction(value))


def times(node: Node, factor: Node) -> Node:
    """The product of a tree and one more factor, flat where the tree is a product."""
    return Node("mul", (*(node.args if node.op == "mul" else (node,)), factor))


def with_index(node: Node, name: str) -> Node:
    """The tree in which ``i`` is the index of a sum, not the imaginary unit."""
    if node.op == "const" and node.value == name:
        return Node("sym", (), name)
    return Node(node.op, tuple(with_index(arg, name) for arg in node.args), node.value)


def symbols(node: Node) -> frozenset[str]:
    """The names of the variables."""
    if node.op == "sym":
        return frozenset([node.value])
    found: frozenset[str] = frozenset()
    for arg in node.args:
        found |= symbols(arg)
    return found - {node.value} if node.op in ("sum", "prod", "int", "lim") else found


def has_op(node: Node, *ops: str) -> bool:
    """Whether a tree has a node of one of these kinds."""
    return node.op in ops or any(has_op(arg, *ops) for arg in node.args)


def substituted(node: Node, name: str, by: Node) -> Node:
    """The tree with every variable of this name replaced."""
    if node.op == "sym":
        return by if node.value == name else node
    return Node(node.op, tuple(substituted(arg, name, by) for arg in node.args), node.value)


def exact(node: Node) -> Fraction | None:
    """The rational value, or None where the tree has variables or no rational value is known.

    Raises TooLargeError and UndefinedError.
    """
    rule = _EXACT.get(node.op)
    if node.op == "num":
        return Fraction(node.value)
    if rule is None:
        return None
    values = []
    for arg in node.args:
        value = exact(arg)
        if value is None:
            return None
        values.append(value)
    result = rule(*values)
    if result is not None and max(
        result.numerator.bit_length(), result.denominator.bit_length()
    ) > (4 * MOST_BITS):
        raise TooLargeError("a number has too many digits")
    return result


def _sum(*values: Fraction) -> Fraction:
    return sum(values, Fraction(0))


def _product(*values: Fraction) -> Fraction:
    result = Fraction(1)
    for value in values:
        result *= value
        if result.numerator.bit_length() > 4 * MOST_BITS:
            raise TooLargeError("a product has too many digits")
    return result


def _quotient(above: Fraction, below: Fraction) -> Fraction:
    if below == 0:
        raise UndefinedError("a division by zero")
    return above / below


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base == 0 and exponent <= 0:
        raise UndefinedError("a power of zero")
    if base in (0, 1):
        return base
    if exponent.denominator != 1:
        return _rational_root(base, exponent)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base != -1 and size * abs(exponent) > MOST_BITS:
        raise TooLargeError("a power has too many digits")
    if base == -1:
        return Fraction(-1 if exponent.numerator % 2 else 1)
    return Fraction(base**exponent.numerator)


def _rational_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base < 0 or exponent.denominator > 64 or base.numerator.bit_length() > 4096:
        return None
    roots = [
        _integer_root(part, exponent.denominator) for part in (base.numerator, base.denominator)
    ]
    if None in roots:
        return None
    return _power(Fraction(roots[0] or 0, roots[1] or 1), Fraction(exponent.numerator))


def _real_root(value: Fraction, degree: Fraction) -> Fraction | None:
    if value < 0 and degree.denominator == 1 and degree.numerator % 2:
        root = _power(-value, 1 / degree)
        return None if root is None else -root
    return _power(value, 1 / degree) if degree != 0 else None


def _integer_root(value: int, degree: int) -> int | None:
    root = (
        math.isqrt(value) if degree == 2 else round(value ** (1 / degree)) if value < 2**900 else -1
    )
    return root if root >= 0 and root**degree == value else None


def _factorial(value: Fraction) -> Fraction | None:
    if value.denominator != 1:
        return None
    if value < 0:
        raise UndefinedError("a factorial of a negative number")
    if value > 5000:
        raise TooLargeError("a factorial has too many digits")
    return Fraction(math.factorial(value.numerator))


def _binomial(above: Fraction, below: Fraction) -> Fraction | None:
    if above.denominator != 1 or below.denominator != 1 or above < 0:
        return None
    if below < 0 or below > above:
        return Fraction(0)
    if above > 5000:
        raise TooLargeError("a binomial coefficient has too many digits")
    return Fraction(math.comb(above.numerator, below.numerator))


def _modulo(value: Fraction, modulus: Fraction) -> Fraction:
    if modulus == 0:
        raise UndefinedError("a remainder by zero")
    return value % modulus


def _integers(function: Callable[..., int]) -> Callable[..., Fraction | None]:
    def rule(*values: Fraction) -> Fraction | None:
        if any(value.denominator != 1 for value in values):
            return None
        return Fraction(function(*(value.numerator for value in values)))

    return rule


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": _sum,
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    "neg": lambda v: -v,
    "root": _real_root,
    "fact": _factorial,
    "binom": _binomial,
    "mod": _modulo,
    "abs": abs,
    "floor": lambda v: Fraction(math.floor(v)),
    "ceil": lambda v: Fraction(math.ceil(v)),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "gcd": _integers(math.gcd),
    "lcm": _integers(math.lcm),
}


Values = Mapping[str, Any]


def numeric(node: Node, values: Values) -> Any:
    """The value as an mpmath number at the precision that is set, given the values of variables.

    Raises TooLargeError, UndefinedError, or KeyError for a variable without a value.
    """
    op, args = node.op, node.args
    if op == "num":
        return mp.mpf(node.value.numerator) / node.value.denominator
    if op == "sym":
        return values[node.value]
    if op == "const":
        return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}[node.value] + 0
    if op in ("sum", "prod"):
        return _series(node, values)
    if op == "int":
        return _integral(node, values)
    inside = [numeric(arg, values) for arg in args]
    if op in ("opaque", "gcd", "lcm"):
        return _pseudo_random(node.value or op, inside)
    if op not in _NUMERIC:
        raise UndefinedError(f"{op} is no number")
    try:
        result = _NUMERIC[op](*inside)
    except (ZeroDivisionError, ValueError, TypeError, NotImplementedError) as error:
        raise UndefinedError(f"{op} has no value") from error
    except OverflowError as error:
        raise TooLargeError(f"{op} is too large") from error
    if not mp.isfinite(result):
        raise UndefinedError(f"{op} has no finite value")
    return result


def _pseudo_random(name: str, inside: list[Any]) -> Any:
    """A value that stands for an unknown function: equal for equal arguments, else different."""
    written = repr((name, [mp.nstr(value, 12) for value in inside]))
    drawn = hashlib.sha256(written.encode()).digest()
    return 1 + mp.mpf(int.from_bytes(drawn[:16], "big")) / 2**128


def _series(node: Node, values: Values) -> Any:
    first, last, body = (node.args[0], node.args[1], node.args[2])
    low, high = exact(first), exact(last)
    if low is None or high is None or low.denominator != 1 or high.denominator != 1:
        bounds = [numeric(first, values), numeric(last, values)]
        inner = numeric(body, {**values, node.value: mp.mpf(1) / 3 + mp.sqrt(2)})
        return _pseudo_random(node.op, [*bounds, inner])
    if high - low > _MOST_TERMS:
        raise TooLargeError("a sum has too many terms")
    total = mp.mpf(0 if node.op == "sum" else 1)
    for k in range(low.numerator, high.numerator + 1):
        term = numeric(body, {**values, node.value: mp.mpf(k)})
        total = total + term if node.op == "sum" else total * term
    return total


def _integral(node: Node, values: Values) -> Any:
    low, high = (numeric(arg, values) for arg in node.args[:2])
    name, body = node.value, node.args[2]
    try:
        return mp.quad(lambda x: numeric(body, {**values, name: x}), [low, high], maxdegree=6)
    except (ZeroDivisionError, ValueError) as error:
        raise UndefinedError("an integral has no value") from error


def _numeric_power(base: Any, exponent: Any) -> Any:
    if base == 0:
        if mp.re(exponent) <= 0:
            raise UndefinedError("a power of zero")
        return mp.mpf(0)
    if abs(exponent) > 1e9 and abs(base) != 1:
        raise TooLargeError("an exponent is too large")
    return mp.power(base, exponent)


def _numeric_factorial(value: Any) -> Any:
    if abs(value) > 1e7:
        raise TooLargeError("a factorial is too large")
    return mp.factorial(value)


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    def rule(*values: Any) -> Any:
        if any(mp.im(value) != 0 for value in values):
            raise UndefinedError("a complex number has no order")
        return function(*(mp.re(value) for value in values))

    return rule


def _total(*values: Any) -> Any:
    return mp.fsum(values)


def _product_of(*values: Any) -> Any:
    return mp.fprod(values)


def _root(value: Any, degree: Any) -> Any:
    if mp.im(degree) == 0 and degree == mp.floor(degree) and int(degree) % 2 and mp.im(value) == 0:
        size = mp.power(abs(value), 1 / degree)
        return size if mp.re(value) >= 0 else -size
    return mp.power(value, 1 / degree)


_ELEMENTARY = "sin cos tan cot sec csc sinh cosh tanh coth"
_NUMERIC: dict[str, Callable[..., Any]] = {
    "add": _total,
    "mul": _product_of,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": _numeric_power,
    "root": _root,
    "fact": _numeric_factorial,
    "binom": mp.binomial,
    "abs": abs,
    "floor": _real(mp.floor),
    "ceil": _real(mp.ceil),
    "max": _real(lambda *values: max(values)),
    "min": _real(lambda *values: min(values)),
    "mod": _real(lambda a, b: a - b * mp.floor(a / b)),
    "deg": lambda a: a * mp.pi / 180,
    "exp": lambda a: _numeric_power(mp.e, a),
    "ln": mp.log,
    "logb": lambda x, b: mp.log(x) / mp.log(b),
    "Re": mp.re,
    "Im": mp.im,
    "arg": mp.arg,
    "conj": mp.conj,
    **{name: getattr(mp, name) for name in _ELEMENTARY.split()},
    **{f"arc{name}": getattr(mp, f"a{name}") for name in ("sin", "cos", "tan", "cot")},
}
