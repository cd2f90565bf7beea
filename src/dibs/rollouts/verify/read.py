r"""From the text of an answer to a value: lists, sets, intervals, statements, matrices, quantities.

All of the text has to be read. What is not read in full becomes :class:`Words`, which equals only the
same words, so that nothing that stands beside a number can be overlooked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from dibs.rollouts.verify import intervals, units
from dibs.rollouts.verify.compare import equal
from dibs.rollouts.verify.domains import domain_set_off, is_domain, is_of_integers
from dibs.rollouts.verify.expressions import Node, TooLargeError, has_op, number
from dibs.rollouts.verify.numerals import with_digits
from dibs.rollouts.verify.parse_expression import parse_expression
from dibs.rollouts.verify.parts import is_whole, split, without_dress, words_of
from dibs.rollouts.verify.tokens import Token, UnreadableError, has_grouped_digits, tokens_of
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
from dibs.rollouts.verify.vocabulary import NUMBER_WORDS, unit_name

_MODULUS = ("pmod", "mod", "bmod")
_CURRENCIES = ("dollar", "euro", "pound_money", "yen", "rupee")
_LONGEST = 2000
"""Most tokens of an answer."""
_DEEPEST = 40
_EVERYTHING = ("all real numbers", "all reals", "all real", "any real number", "every real number")
_ORDER = {"<": "<", ">": ">", "le": "<=", "ge": ">="}
_MATRICES = frozenset(["pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"])
_BASES = {word: value for word, value in NUMBER_WORDS.items() if 2 <= value <= 9}


@lru_cache(maxsize=16384)
def read(text: str) -> tuple[Value, ...]:
    """What an answer may mean; more than one value where commas may group digits or separate numbers."""
    ways = (True, False) if has_grouped_digits(text) else (True,)
    return tuple(dict.fromkeys(_read_one(text, way) for way in ways))


def _read_one(text: str, join_thousands: bool) -> Value:
    try:
        return value_of(tokens_of(text, join_thousands))
    except (UnreadableError, TooLargeError, RecursionError):
        return Words((text.strip(),))


def value_of(tokens: Sequence[Token], depth: int = 0) -> Value:
    """The value of some tokens. Raises UnreadableError where brackets are nested too deeply."""
    if depth > _DEEPEST:
        raise UnreadableError("brackets are nested too deeply")
    if len(tokens) > _LONGEST:
        raise UnreadableError("an answer has too many parts")
    tokens = with_digits(domain_set_off(without_dress(tokens)))
    for reader in (_congruence, _several, _related, _set_algebra, _shaped, _ratio, _in_base):
        value = reader(tokens, depth)
        if value is not None:
            return value
    return quantity_of(tokens) or words_of(tokens)


def _congruence(tokens: Sequence[Token], depth: int) -> Value | None:
    r"""``x \equiv 5 \pmod 7``, ``5 (mod 7)``; ``5 \bmod 3`` alone is a remainder."""
    at = next((n for n, t in enumerate(tokens) if t.text in _MODULUS and t.kind != "sym"), 0)
    if not at:
        return None
    before, after = list(tokens[:at]), list(tokens[at + 1 :])
    if any(token.text in ("not", "ne") for token in before):
        return None
    parts, _ = split(before, "equiv", "=")
    if before[-1].text == "(" and after and after[-1].text == ")":
        parts, _ = split(before[:-1], "equiv", "=")
        after.pop()
    elif tokens[at].text != "pmod" and len(parts) == 1:
        return None
    if len(parts) > 2 or not parts[-1]:
        return None
    try:
        return Congruence(value_of(parts[-1], depth + 1), parse_expression(after))
    except UnreadableError:
        return None


def _several(tokens: Sequence[Token], depth: int) -> Value | None:
    parts, marks = split(tokens, ",", ";", "and", "or", "\\", "\\\\")
    if len(parts) == 1:
        return None
    if parts and parts[0] and parts[0][0].text.lower() in ("both", "either") and "," not in marks:
        parts[0] = parts[0][1:]
    kept = [part for part in parts if without_dress(part)]
    said = kept[:1] + [part for part in kept[1:] if not is_domain(part)]
    if len(said) == 1:
        value = value_of(said[0], depth + 1)
        whole = isinstance(value, Region) and any(map(is_of_integers, kept[1:]))
        return words_of(tokens) if whole else value
    kept = said
    items = [value_of(part, depth + 1) for part in kept]
    if items and all(isinstance(item, Region) for item in items):
        joined = intervals.joined([i for i in items if isinstance(i, Region)], marks)
        if joined is not None:
            return joined
    if (
        items
        and isinstance(items[0], Statement)
        and not any(isinstance(i, Statement) for i in items[1:])
    ):
        values = _flat([items[0].value, *items[1:]])
        return Statement(items[0].label, Listing(values))
    return Listing(_flat(items))


def _flat(items: Sequence[Value]) -> tuple[Value, ...]:
    r"""Items in which bare lists, such as those of ``\pm``, are opened."""
    flat: list[Value] = []
    for item in items:
        flat += item.items if isinstance(item, Listing) and not item.brackets else [item]
    return tuple(flat)


def _related(tokens: Sequence[Token], depth: int) -> Value | None:
    """Equations, inequalities, and membership."""
    if len(tokens) > 2 and tokens[0].text == "<" and tokens[-1].text == ">":
        inner, commas = split(tokens[1:-1], ",")
        if commas:
            return Listing(tuple(value_of(part, depth + 1) for part in inner), "<>")
    parts, marks = split(
        tokens, "=", "<", ">", "le", "ge", "ne", "in", "notin", "approx", "implies", "equiv"
    )
    if not marks:
        return None
    if "approx" in marks:
        return _approximation(tokens, depth)
    if any(not part for part in parts) or {"implies", "equiv", "notin"} & set(marks):
        return words_of(tokens)
    if all(mark == "=" for mark in marks):
        return _equation([value_of(part, depth + 1) for part in parts], tokens)
    if marks == ["in"] and len(parts[0]) == 1:
        inside = value_of(parts[1], depth + 1)
        if isinstance(inside, Listing) and inside.brackets == "{}" and parts[0][0].kind == "sym":
            return inside
        region = intervals.as_region(inside)
        if region is not None:
            return Region(region.pieces, parts[0][0].text)
        return Statement(value_of(parts[0], depth + 1), inside)
    if marks == ["ne"] or all(mark in _ORDER for mark in marks):
        try:
            sides = [parse_expression(part) for part in parts]
        except UnreadableError:
            return words_of(tokens)
        found = intervals.from_relations(sides, [_ORDER.get(mark, "!=") for mark in marks])
        if found is not None:
            return found
    return words_of(tokens)


def _approximation(tokens: Sequence[Token], depth: int) -> Value:
    """The exact value before a decimal that is near it."""
    parts, _ = split(tokens, "approx")
    if len(parts) == 2 and parts[0]:
        exact, near = (value_of(part, depth + 1) for part in parts)
        of = exact.value if isinstance(exact, Statement) else exact
        if isinstance(of, Quantity) and isinstance(near, Quantity):
            if intervals.are_near(of.node, near.node):
                return exact
            if of.node.op == "sym" and near.decimal:
                return Statement(of, near)
    return words_of(tokens)


def _equation(sides: list[Value], tokens: Sequence[Token]) -> Value:
    """A statement; of a chain, all sides but the first must be equal, and letters are labels."""
    while len(sides) > 2 and isinstance(sides[1], Quantity) and sides[1].node.op == "sym":
        sides.pop(1)
    label, *values = sides
    if any(not equal(values[0], other) for other in values[1:]):
        return words_of(tokens)
    last = values[-1]
    if isinstance(label, Listing) and isinstance(last, Listing) and label.brackets == last.brackets:
        if len(label.items) != len(last.items):
            return words_of(tokens)
        return Listing(tuple(Statement(a, b) for a, b in zip(label.items, last.items, strict=True)))
    if isinstance(label, Quantity) and intervals.is_constant(label.node):
        if equal(label, last):
            return last
        if len(sides) > 2 or not isinstance(last, Quantity) or intervals.is_constant(last.node):
            return words_of(tokens)
        return Statement(last, label)
    if isinstance(last, Listing) and not last.brackets and isinstance(label, Words):
        return words_of(tokens)
    return Statement(label, last)


def _set_algebra(tokens: Sequence[Token], depth: int) -> Value | None:
    parts, marks = split(tokens, "cup", "cap", "setminus")
    if not marks:
        return None
    values = [value_of(part, depth + 1) for part in parts]
    return intervals.set_algebra(values, marks) or words_of(tokens)


def _shaped(tokens: Sequence[Token], depth: int) -> Value | None:
    """Brackets around everything, matrices, and names of sets."""
    if len(tokens) == 1 and tokens[0].text in ("emptyset", "mathbbR", "reals"):
        return Listing((), "{}") if tokens[0].text == "emptyset" else Region(intervals.EVERYTHING)
    if " ".join(token.text.lower() for token in tokens[:4]) in _EVERYTHING:
        return Region(intervals.EVERYTHING)
    if tokens and "env" in (tokens[0].kind, tokens[-1].kind):
        return (_environment if tokens[0].kind == "env" else _multiple)(tokens, depth)
    if (
        len(tokens) > 3
        and tokens[0].kind == "sym"
        and tokens[0].text.isupper()
        and is_whole(tokens[1:])
    ):
        inside = value_of(tokens[1:], depth + 1)  # a named point
        if tokens[1].text == "(" and isinstance(inside, Listing) and not tokens[1].gap:
            return inside if tokens[0].text != "O" else None
    if not is_whole(tokens):
        return _with_outward_brackets(tokens, depth)
    opening, closing = tokens[0].text, tokens[-1].text
    inner = tokens[1:-1]
    if opening == "\\{":
        return _braced(inner, depth) if closing == "\\}" else words_of(tokens)
    if opening in ("(", "[", "langle"):
        if (
            opening + closing in ("()", "[]")
            and inner
            and inner[0].kind == "env"
            and not split(inner, ",")[1]
        ):
            return value_of(inner, depth + 1)
        parts, marks = split(inner, ",", ";")
        if marks:
            items = tuple(value_of(part, depth + 1) for part in parts)
            return Listing(
                items,
                {"langle": "<", "rangle": ">"}.get(opening, opening)
                + {"rangle": ">"}.get(closing, closing),
            )
        if opening == "(" and closing == ")":
            value = value_of(inner, depth + 1)
            return None if isinstance(value, Quantity) else value
    return None


def _with_outward_brackets(tokens: Sequence[Token], depth: int) -> Value | None:
    """An interval as in ``[2,5[``, of which a bracket that is turned outward leaves out the end."""
    around = tokens[0].text + tokens[-1].text if tokens else ""
    brackets = {"[[": "[)", "]]": "(]", "][": "()"}.get(around)
    ends, commas = split(tokens[1:-1], ",", ";")
    if brackets is None or len(commas) != 1 or any(t.text in "[]" for t in tokens[1:-1]):
        return None
    return Listing(tuple(value_of(end, depth + 1) for end in ends), brackets)


def _braced(inner: Sequence[Token], depth: int) -> Value:
    """A set: its elements, or the condition behind a bar or colon."""
    if not inner:
        return Listing((), "{}")
    for mark in ("|", ":"):
        parts, _ = split(inner, mark)
        if len(parts) == 2:
            name = [token.text for token in parts[0]]
            condition = value_of(parts[1], depth + 1)
            known = name[1:] in ([], ["in", "mathbbR"], ["in", "reals"])
            if known and isinstance(condition, Region) and name[0] == condition.variable:
                return condition
    parts, _ = split(inner, ",", ";", "and")
    return Listing(_flat([value_of(part, depth + 1) for part in parts if part]), "{}")


def _environment(tokens: Sequence[Token], depth: int) -> Value | None:
    name = tokens[0].text[1:]
    if tokens[-1].text != f"-{name}":
        return None
    rows, _ = split(tokens[1:-1], "\\", "\\\\", "cr")
    rows = [row for row in rows if row]
    if name == "cases":
        items = [value_of([t for t in row if t.text != "&"], depth + 1) for row in rows]
        return Listing(tuple(items))
    if name in _MATRICES:
        cells = [split(row, "&")[0] for row in rows]
        return Matrix(tuple(tuple(value_of(c, depth + 1) for c in row) for row in cells))
    return words_of(tokens)


def _multiple(tokens: Sequence[Token], depth: int) -> Value | None:
    """A number times a matrix."""
    start = next(n for n, token in enumerate(tokens) if token.kind == "env")
    matrix = _environment(tokens[start:], depth)
    factor = quantity_of(tokens[: start - (tokens[start - 1].text in ("cdot", "times", "*"))])
    if not isinstance(matrix, Matrix) or not isinstance(factor, Quantity) or factor.unit:
        return None
    rows = [[_product(factor.node, cell) for cell in row] for row in matrix.rows]
    if factor.percent or any(cell is None for row in rows for cell in row):
        return None
    return Matrix(tuple(tuple(cell for cell in row if cell is not None) for row in rows))


def _product(factor: Node, cell: Value) -> Value | None:
    if not isinstance(cell, Quantity) or cell.unit or cell.percent:
        return None
    return Quantity(Node("mul", (factor, cell.node)))


def _ratio(tokens: Sequence[Token], depth: int) -> Value | None:
    parts, marks = split(tokens, ":", "to")
    if (
        not marks
        or any(t.kind == "cmd" and t.text == "to" for t in tokens)
        or any(not part for part in parts)
        or len(parts) > 6
    ):
        return None
    half = ""
    tail = parts[-1]
    if len(tail) > 1:
        letters = "".join(t.text for t in tail[1:] if t.text != ".").lower()
        if letters in ("am", "pm"):
            half, parts[-1] = letters, list(tail[:1])
    try:
        nodes = tuple(parse_expression(part) for part in parts)
    except UnreadableError:
        return words_of(tokens)
    minutes = parts[1][0].text
    clock = len(parts) == 2 and len(parts[1]) == 1 and len(minutes) == 2 and minutes < "60"
    return Ratio(nodes, (clock or bool(half)) and marks[0] == ":", half)


def _in_base(tokens: Sequence[Token], depth: int) -> Value | None:
    texts = [token.text for token in tokens]
    if "_" not in texts:
        return None
    n = texts.index("_")
    digits = "".join(texts[:n])
    base = "".join(text for text in texts[n + 1 :] if text not in "{}")
    size = _BASES.get(base.lower()) or (int(base) if base.isdigit() and len(base) < 3 else 0)
    if not digits[:1].isdigit() or not digits.isalnum() or size < 2:
        return None
    return InBase(digits.upper(), size)


def quantity_of(tokens: Sequence[Token]) -> Value | None:
    """An expression with the words that may stand beside it, or None."""
    tokens = list(tokens)
    if [token.text for token in tokens[:2]] == ["US", "dollar"]:
        tokens.pop(0)
    if tokens and tokens[0].kind == "word" and unit_name(tokens[0].text) in _CURRENCIES:
        tokens[0] = Token("money", str(unit_name(tokens[0].text)))
    letters = len(tokens) > 1 and all(t.kind == "sym" and len(t.text) == 1 for t in tokens)
    if letters and any(t.style == "run" for t in tokens) and not any(t.gap for t in tokens[1:]):
        return words_of(tokens)  # a name, such as AB
    money = next((n for n, t in enumerate(tokens[:3]) if t.kind == "money"), None)
    taken = tokens[money].text if money is not None and money < len(tokens) - 1 else ""
    if taken and money is not None and all(t.text in "+-" for t in tokens[:money]):
        tokens.pop(money)
    else:
        taken = ""
    start = next((n for n in range(len(tokens)) if units.starts_unit(tokens, n)), len(tokens))
    measure = units.measure_of(tokens[start:])
    if measure is None or start == 0:
        return None
    if taken and measure.unit not in ((), ((taken, 1),)):
        return None
    try:
        node = parse_expression(tokens[:start])
    except UnreadableError:
        return None
    unit = ((taken, 1),) if taken else measure.unit
    if node.op == "deg" and not unit:
        node, unit = node.args[0], (("deg", 1),)
    elif node.op == "neg" and node.args[0].op == "deg" and not unit:
        node, unit = Node("neg", node.args[0].args), (("deg", 1),)
    if measure.factor != 1:
        node = Node("mul", (node, number(measure.factor)))
    decimals = [t.text for t in tokens[:start] if t.kind == "num" and "." in t.text]
    noise = any(sum(c.isdigit() for c in d.lstrip("0.")) > 15 for d in decimals)
    if has_op(node, "sign"):
        both = (_signed(node, 1), _signed(node, -1))
        return Listing(tuple(Quantity(each, unit, measure.percent, noise) for each in both))
    return Quantity(node, unit, measure.percent, noise, bool(decimals))


def _signed(node: Node, upper: int) -> Node:
    if node.op == "sign":
        return number(upper if node.value == "pm" else -upper)
    return Node(node.op, tuple(_signed(arg, upper) for arg in node.args), node.value)
