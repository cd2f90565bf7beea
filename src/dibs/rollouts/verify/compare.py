"""Whether an answer has the value of a gold answer: one rule for each pair of kinds of values."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from dibs.rollouts.verify import intervals
from dibs.rollouts.verify.equality import nearly_same, proportional, same_expression
from dibs.rollouts.verify.expressions import (
    Node,
    UndefinedError,
    exact,
    number,
    substituted,
    symbols,
)
from dibs.rollouts.verify.values import (
    Congruence,
    InBase,
    Listing,
    Matrix,
    Quantity,
    Ratio,
    Region,
    Statement,
    Value,
    Words,
)
from dibs.rollouts.verify.vocabulary import CHANGING

_HUNDRED = number(100)
_POLAR = {"theta": "s", "phi": "t"}
"""Letters in whose place behind r these are put."""
_MOST_ITEMS = 2000


def equal(gold: Value, given: Value) -> bool:
    """Whether ``given`` is the value ``gold``. Raises TooLargeError for numbers of too many digits."""
    if gold == given:
        return not isinstance(gold, Words) or bool(gold.words)
    if isinstance(gold, Statement) or isinstance(given, Statement):
        return _equal_statements(gold, given)
    if isinstance(gold, Congruence) or isinstance(given, Congruence):
        return _equal_congruences(gold, given)
    if isinstance(gold, InBase) or isinstance(given, InBase):
        return _equal_digits(gold, given)
    if isinstance(gold, Ratio) or isinstance(given, Ratio):
        return _equal_ratios(gold, given)
    if isinstance(gold, Quantity) and isinstance(given, Quantity):
        return _equal_quantities(gold, given)
    if isinstance(gold, Region) or isinstance(given, Region):
        one, other = intervals.as_region(gold), intervals.as_region(given)
        if (
            one is None
            or other is None
            or isinstance(gold, Quantity)
            or isinstance(given, Quantity)
        ):
            return False
        return intervals.same_region(one, other)
    if isinstance(gold, Matrix) or isinstance(given, Matrix):
        return _equal_matrices(gold, given)
    if isinstance(gold, Words) or isinstance(given, Words):
        return False
    return _equal_listings(gold, given)


def _equal_quantities(gold: Quantity, given: Quantity) -> bool:
    if not _units_agree(gold, given):
        return False
    pairs = [(gold.node, given.node)]
    if gold.percent != given.percent:
        share = (Node("div", (gold.node, _HUNDRED)), Node("div", (given.node, _HUNDRED)))
        pairs.append((share[0], given.node) if gold.percent else (gold.node, share[1]))
    degrees = (("deg", 1),)
    if (gold.unit == degrees) != (given.unit == degrees):
        turn = (Node("deg", (gold.node,)), Node("deg", (given.node,)))
        pairs.append((turn[0], given.node) if gold.unit == degrees else (gold.node, turn[1]))
    if any(same_expression(*pair) for pair in pairs):
        return True
    return (gold.noise or given.noise) and nearly_same(gold.node, given.node)


def _units_agree(gold: Quantity, given: Quantity) -> bool:
    one, other = gold.unit, given.unit
    if not one or not other or one == other:
        return True
    names = {name for name, _ in (*one, *other)}
    if "unit" in names and [power for _, power in one] == [power for _, power in other]:
        return True
    return names in ({"deg", "degC"}, {"deg", "degF"}, {"deg", "K"})


def is_label(value: Value) -> bool:
    """Whether what stands before an equals sign only names what stands behind it.

    A multiple of one variable does not, so that ``2x = 10`` is not the answer 10.
    """
    if isinstance(value, Words):
        return bool(value.words) and not CHANGING & {word.lower() for word in value.words}
    if isinstance(value, Quantity) and not value.unit:
        names = symbols(value.node)
        linear = value.node.op in ("mul", "add", "neg", "div") and len(names) == 1
        return bool(names or value.node.op == "opaque") and not linear
    if isinstance(value, (InBase, Ratio, Congruence)):
        return False
    return isinstance(value, Listing)


def _equal_statements(gold: Value, given: Value) -> bool:
    if isinstance(gold, Statement) and isinstance(given, Statement):
        one, other = _renamed(gold), _renamed(given)
        if equal(one.label, other.label) and equal(one.value, other.value):
            return True
        return _same_equation(gold, given)
    if isinstance(given, Statement):
        is_equation = _is_sum(given.label) and given.value == Quantity(number(0))
        return not is_equation and is_label(given.label) and equal(gold, given.value)
    if not isinstance(gold, Statement) or _is_sum(gold.label):
        return False
    return is_label(gold.label) and equal(gold.value, given)


def _is_sum(label: Value) -> bool:
    return isinstance(label, Quantity) and label.node.op in ("add", "neg", "mul")


def _renamed(statement: Statement) -> Statement:
    """``f(n) = n`` as ``f(x) = x``: the name of a function's argument does not matter."""
    label, value = statement.label, statement.value
    if not (isinstance(label, Quantity) and isinstance(value, Quantity)):
        return statement
    args = label.node.args
    if label.node.op != "opaque" or len(args) != 1 or args[0].op != "sym":
        return statement
    name, new = args[0].value, Node("sym", (), " argument")
    return Statement(
        Quantity(substituted(label.node, name, new)), Quantity(substituted(value.node, name, new))
    )


def _same_equation(gold: Statement, given: Statement) -> bool:
    sides = (gold.label, gold.value, given.label, given.value)
    nodes = [side.node for side in sides if isinstance(side, Quantity)]
    if len(nodes) < 4:
        return False
    return proportional(
        Node("add", (nodes[0], Node("neg", (nodes[1],)))),
        Node("add", (nodes[2], Node("neg", (nodes[3],)))),
    )


def _equal_congruences(gold: Value, given: Value) -> bool:
    if isinstance(gold, Congruence) and isinstance(given, Congruence):
        if not same_expression(gold.modulus, given.modulus):
            return False
        one, other = _remainders(gold), _remainders(given)
        return equal(gold.residues, given.residues) or (one is not None and one == other)
    if isinstance(gold, Congruence):
        return equal(gold.residues, given)
    return isinstance(given, Congruence) and equal(gold, given.residues)


def _remainders(congruence: Congruence) -> frozenset[Fraction] | None:
    """The remainders that a congruence names; None where one of them is no number."""
    items = _items(congruence.residues)
    try:
        modulus = exact(congruence.modulus)
        values = [exact(i.node) for i in items if isinstance(i, Quantity) and not i.unit]
    except UndefinedError:
        return None
    if not modulus or len(values) != len(items) or None in values:
        return None
    return frozenset(value % modulus for value in values if value is not None)


def _equal_digits(gold: Value, given: Value) -> bool:
    if isinstance(gold, InBase) and isinstance(given, InBase):
        return gold == given
    if not isinstance(gold, InBase) or not isinstance(given, Quantity) or given.unit:
        return False
    written = gold.digits if gold.digits.isdigit() and len(gold.digits) < _MOST_ITEMS else "-1"
    return given.node.op == "num" and given.node.value == int(written)


def _equal_ratios(gold: Value, given: Value) -> bool:
    if isinstance(gold, Ratio) and isinstance(given, Ratio):
        if len(gold.parts) != len(given.parts) or (
            gold.half and given.half and gold.half != given.half
        ):
            return False
        if all(same_expression(a, b) for a, b in zip(gold.parts, given.parts, strict=True)):
            return True
        if bool(gold.half) != bool(given.half):
            one, other = _on_24_hours(gold), _on_24_hours(given)
            return one is not None and one == other
        if gold.clock or given.clock:
            return False
        return all(
            same_expression(Node("mul", (a, d)), Node("mul", (b, c)))
            for a, b, c, d in zip(
                gold.parts, gold.parts[1:], given.parts, given.parts[1:], strict=False
            )
        )
    ratio, plain = (gold, given) if isinstance(gold, Ratio) else (given, gold)
    if not isinstance(ratio, Ratio) or not isinstance(plain, Quantity) or len(ratio.parts) != 2:
        return False
    if plain.node.op == "num" and plain.node.value.denominator == 1:
        return False  # 5:1 is not the number 5
    return (
        not plain.unit and not ratio.half and same_expression(Node("div", ratio.parts), plain.node)
    )


def _on_24_hours(time: Ratio) -> list[Fraction] | None:
    """The parts of a time of day, with the hours after noon as 12 to 23; None for no numbers."""
    try:
        values = [exact(part) for part in time.parts]
    except UndefinedError:
        return None
    hours, *rest = [value for value in values if value is not None] or [Fraction(0)]
    if time.half:
        hours = hours % 12 + (12 if time.half == "pm" else 0)
    return [hours, *rest] if None not in values else None


def _equal_matrices(gold: Value, given: Value) -> bool:
    one, other = (_as_matrix(value) for value in (gold, given))
    if one is None or other is None or len(one.rows) != len(other.rows):
        return False
    return all(_in_order(a, b) for a, b in zip(one.rows, other.rows, strict=True))


def _as_matrix(value: Value) -> Matrix | None:
    if isinstance(value, Listing) and value.brackets == "[]":
        rows = [row.items for row in value.items if _is_row(row) and isinstance(row, Listing)]
        return Matrix(tuple(rows)) if rows and len(rows) == len(value.items) else None
    if isinstance(value, Listing) and value.brackets in ("()", "<>"):
        return Matrix(tuple((item,) for item in value.items))
    return value if isinstance(value, Matrix) else None


def _is_row(value: Value) -> bool:
    return isinstance(value, Listing) and value.brackets == "[]"


def _equal_listings(gold: Value, given: Value) -> bool:
    one, other = _items(gold), _items(given)
    if max(len(one), len(other)) > _MOST_ITEMS:
        return False
    if not isinstance(gold, Listing) or not isinstance(given, Listing):
        whole = gold if isinstance(gold, Listing) else given
        if not isinstance(whole, Listing) or whole.brackets not in ("", "{}") or not whole.items:
            return False
        if _assigned(whole.items):
            return False
        return all(equal(a, b) for a in one for b in other)
    for group, single in ((gold, given), (given, gold)):
        if group.brackets == "{}" and len(group.items) == 1 and single.brackets in ("()", "<>"):
            return equal(group.items[0], single)
    if {isinstance(item, Listing) for item in one} != {isinstance(item, Listing) for item in other}:
        return False  # {{1}} is not {1}
    brackets = {gold.brackets, given.brackets}
    if brackets <= {"", "{}"}:
        assigned = _assigned(one), _assigned(other)
        if any(assigned) and not all(assigned):
            return _in_order(_by_name(one), _by_name(other))
        return _in_any_order(one, other)
    if len(brackets) == 1 or brackets <= {"()", "<>", ""}:
        return _in_order(_by_name(one), _by_name(other))
    return brackets == {"[]", "<>"} and _in_order(one, other)


def _items(value: Value) -> tuple[Value, ...]:
    return value.items if isinstance(value, Listing) else (value,)


def _assigned(items: Sequence[Value]) -> bool:
    """Whether items are statements about different variables, so that their order has a meaning."""
    names = []
    for item in items:
        if not isinstance(item, Statement) or not isinstance(item.label, Quantity):
            return False
        names.append(str(item.label.node.value).partition("_")[0] or repr(item.label.node))
    return len(set(names)) == len(names) > 1


def _by_name(items: Sequence[Value]) -> Sequence[Value]:
    """Items in the order of the variables that they are assigned to, where these have one.

    Neighbors in the alphabet do, such as y and x, and so do x_2 and x_1, and polar coordinates. Other
    names do not, and their items stay as they are.
    """
    found = []
    for item in items:
        label = item.label if isinstance(item, Statement) else None
        name = str(label.node.value) if isinstance(label, Quantity) else ""
        letter, _, index = _POLAR.get(name, name).partition("_")
        if len(letter) != 1 or (index and not index.isdigit()):
            return items
        found.append((letter, int(index or 0)))
    letters = [ord(letter) for letter, _ in found]
    if not found or len(set(found)) < len(found) or max(letters) - min(letters) > 3:
        return items
    return [items[n] for n in sorted(range(len(items)), key=found.__getitem__)]


def _in_order(one: Sequence[Value], other: Sequence[Value]) -> bool:
    return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))


def _in_any_order(gold: Sequence[Value], given: Sequence[Value]) -> bool:
    """Whether two lists hold the same values; those of the answer may be repeated."""
    given = _distinct(given) if len(given) > len(gold) else list(given)
    gold = _distinct(gold) if len(gold) > len(given) else list(gold)
    if len(gold) != len(given):
        return False
    left = list(given)
    for item in gold:
        match = next((n for n, other in enumerate(left) if equal(item, other)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _distinct(items: Sequence[Value]) -> list[Value]:
    kept: list[Value] = []
    for item in items:
        if len(kept) > 40 or not any(equal(item, other) for other in kept):
            kept.append(item)
    return kept
