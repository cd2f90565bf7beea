"""Unions of intervals: from inequalities and brackets, joined and compared end by end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cmp_to_key

from dibs.rollouts.verify.equality import order, same_expression
from dibs.rollouts.verify.expressions import Node, has_op, number, symbols
from dibs.rollouts.verify.values import Listing, Piece, Quantity, Region, Value

EVERYTHING = (Piece(None, False, None, False),)
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def is_constant(node: Node) -> bool:
    """Whether an expression has no variables and no unknown functions."""
    return not symbols(node) and not has_op(node, "opaque", "infinity")


def are_near(one: Node, other: Node) -> bool:
    """Whether two numbers differ by less than a hundredth of their size."""
    if not (is_constant(one) and is_constant(other)):
        return False
    width = Node("mul", (number(100), Node("add", (one, Node("neg", (other,))))))
    sizes = (Node("abs", (width,)), Node("abs", (one,)))
    return order(*sizes) in (-1, 0)


def infinite(node: Node) -> int:
    """1 for infinity, -1 for its negative, 0 for anything else."""
    if node.op == "infinity":
        return 1
    return -infinite(node.args[0]) if node.op == "neg" else 0


def from_relations(sides: Sequence[Node], signs: Sequence[str]) -> Region | None:
    """``x < 3``, ``0 < x <= 1``, ``x != 3`` as a region of the one side that is a variable."""
    if len(sides) == 2 and sides[0].op == "abs" and signs[0] != "!=" and is_constant(sides[1]):
        return _within(sides[0].args[0], signs[0], sides[1])
    at = [n for n, side in enumerate(sides) if side.op == "sym"]
    if len(sides) not in (2, 3) or (len(sides) == 3 and at[:1] != [1]):
        at = [n for n in at if n == 1] if len(sides) == 3 else at
        if len(sides) != 3 or not at:
            return None
    if not at or (len(sides) == 2 and len(at) != 1):
        return None
    middle = 1 if len(sides) == 3 else at[0]
    name = str(sides[middle].value)
    region = Region(EVERYTHING, name)
    for n, sign in enumerate(signs):
        left, right = sides[n], sides[n + 1]
        bound, turned = (right, sign) if n == middle else (left, _TURNED[sign])
        if name in symbols(bound):
            return None
        met = _meet(region, Region(_side_of(bound, turned), name))
        if met is None:
            return None
        region = met
    return region


def _within(inside: Node, sign: str, bound: Node) -> Region | None:
    """``|x| < 2`` or ``|x| > 2`` as a region."""
    low = Node("neg", (bound,))
    if sign in ("<", "<="):
        return from_relations((low, inside, bound), (sign, sign))
    left, right = (
        from_relations((inside, low), (_TURNED[sign],)),
        from_relations((inside, bound), (sign,)),
    )
    return None if left is None or right is None else _union([left, right])


def _side_of(bound: Node, sign: str) -> tuple[Piece, ...]:
    end = None if infinite(bound) else bound
    below = Piece(None, False, end, sign == "<=")
    above = Piece(end, sign == ">=", None, False)
    if sign == "!=":
        return (below, above)
    return (below,) if sign in ("<", "<=") else (above,)


def as_region(value: Value) -> Region | None:
    """The region that a value may mean: an interval in brackets, or a finite set of numbers."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Quantity) and not value.unit and not value.percent:
        return Region((Piece(value.node, True, value.node, True),))
    if not isinstance(value, Listing):
        return None
    nodes = [item.node for item in value.items if isinstance(item, Quantity) and not item.unit]
    if len(nodes) != len(value.items):
        return None
    if value.brackets == "{}":
        return Region(tuple(Piece(node, True, node, True) for node in nodes))
    if len(nodes) != 2 or value.brackets not in ("()", "[]", "[)", "(]"):
        return None
    low, high = nodes
    if infinite(low) > 0 or infinite(high) < 0:
        return None
    return Region(
        (
            Piece(
                None if infinite(low) else low,
                value.brackets[0] == "[" and not infinite(low),
                None if infinite(high) else high,
                value.brackets[1] == "]" and not infinite(high),
            ),
        )
    )


def set_algebra(values: Sequence[Value], marks: Sequence[str]) -> Value | None:
    """The value of unions, intersections and differences, from left to right; None where unknown."""
    if all(isinstance(v, Listing) and v.brackets == "{}" for v in values) and set(marks) == {"cup"}:
        return Listing(tuple(i for v in values if isinstance(v, Listing) for i in v.items), "{}")
    regions = [as_region(value) for value in values]
    result = regions[0]
    for region, mark in zip(regions[1:], marks, strict=True):
        if result is None or region is None:
            return None
        if mark == "cup":
            result = _union([result, region])
        else:
            other = region if mark == "cap" else _complement(region)
            result = None if other is None else _meet(result, other)
    if result is not None and not result.pieces:
        return Listing((), "{}")
    return result


def joined(regions: Sequence[Region], marks: Sequence[str]) -> Region | None:
    """Inequalities joined by marks: all of them, or the common part, where there is one.

    The common part is meant where "and" joins them, and where commas do and one leaves out a point.
    """
    if len({region.variable for region in regions}) != 1:
        return None
    if "and" in marks or ("or" not in marks and any(map(_leaves_out_a_point, regions))):
        common: Region | None = regions[0]
        for region in regions[1:]:
            common = common and _meet(common, region)
        if common is None or common.pieces:
            return common
    return _union(regions)


def _leaves_out_a_point(region: Region) -> bool:
    ends = [end for piece in region.pieces for end in (piece.low, piece.high)]
    return len(ends) == 4 and ends[0] is None and ends[3] is None and ends[1] == ends[2]


def _compare_low(one: Piece, other: Piece) -> int:
    if one.low is None or other.low is None:
        return (one.low is not None) - (other.low is not None)
    side = order(one.low, other.low)
    if side is None:
        raise LookupError
    return side or other.low_closed - one.low_closed


def _union(regions: Sequence[Region]) -> Region | None:
    pieces = [piece for region in regions for piece in region.pieces]
    try:
        pieces.sort(key=cmp_to_key(_compare_low))
        merged: list[Piece] = []
        for piece in pieces:
            if merged and _touch(merged[-1], piece):
                merged[-1] = _spanning(merged[-1], piece)
            else:
                merged.append(piece)
    except LookupError:
        merged = pieces
    return Region(tuple(merged), regions[0].variable)


def _touch(left: Piece, right: Piece) -> bool:
    if left.high is None or right.low is None:
        return True
    side = order(right.low, left.high)
    if side is None:
        raise LookupError
    return side < 0 or (side == 0 and (left.high_closed or right.low_closed))


def _spanning(left: Piece, right: Piece) -> Piece:
    if left.high is None or right.high is None:
        return Piece(left.low, left.low_closed, None, False)
    side = order(left.high, right.high) or 0
    wider = left if side > 0 else right
    closed = left.high_closed or right.high_closed if side == 0 else wider.high_closed
    return Piece(left.low, left.low_closed, wider.high, closed)


def _complement(region: Region) -> Region | None:
    result: Region | None = Region(EVERYTHING, region.variable)
    for piece in region.pieces:
        outside = []
        if piece.low is not None:
            outside.append(Piece(None, False, piece.low, not piece.low_closed))
        if piece.high is not None:
            outside.append(Piece(piece.high, not piece.high_closed, None, False))
        result = result and _meet(result, Region(tuple(outside)))
    return result


def _meet(one: Region, other: Region) -> Region | None:
    found = []
    for a in one.pieces:
        for b in other.pieces:
            try:
                piece = _common(a, b)
            except LookupError:
                return None
            if piece is not None:
                found.append(piece)
    return Region(tuple(found), one.variable)


def _common(a: Piece, b: Piece) -> Piece | None:
    low = a if _compare_low(a, b) >= 0 else b
    if a.high is None or b.high is None:
        high = b if a.high is None else a
    else:
        side = order(a.high, b.high)
        if side is None:
            raise LookupError
        high = a if side < 0 or (side == 0 and not a.high_closed) else b
    piece = Piece(low.low, low.low_closed, high.high, high.high_closed)
    if piece.low is None or piece.high is None:
        return piece
    side = order(piece.low, piece.high)
    if side is None and symbols(piece.low) | symbols(piece.high):
        return piece
    if side is None:
        raise LookupError
    return piece if side < 0 or (side == 0 and piece.low_closed and piece.high_closed) else None


def same_region(one: Region, other: Region) -> bool:
    """Whether two regions are the same, end by end, and named variables too."""
    if one.variable and other.variable and one.variable != other.variable:
        return False
    first, second = _union([one]), _union([other])
    if first is None or second is None or len(first.pieces) != len(second.pieces):
        return False
    return all(_same_piece(a, b) for a, b in zip(first.pieces, second.pieces, strict=True))


def _same_piece(a: Piece, b: Piece) -> bool:
    if (a.low_closed, a.high_closed) != (b.low_closed, b.high_closed):
        return False
    for one, other in ((a.low, b.low), (a.high, b.high)):
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None and not same_expression(one, other):
            return False
    return True
