"""What an answer may be: the values that answers are read to and compared as."""

from __future__ import annotations

from dataclasses import dataclass

from dibs.rollouts.verify.expressions import Node

Unit = tuple[tuple[str, int], ...]
"""Names of units and their powers, in order of name; empty without a unit."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression, perhaps with a unit or a percent sign.

    ``noise``: whether it is a decimal of so many digits that it must come from a float.
    """

    node: Node
    unit: Unit = ()
    percent: bool = False
    noise: bool = False
    decimal: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Several values. ``brackets`` is ``()``, ``[]``, ``[)``, ``(]``, ``{}``, ``<>``, or empty."""

    items: tuple[Value, ...]
    brackets: str = ""


@dataclass(frozen=True, slots=True)
class Statement:
    """An equation: what stands before the sign ``=``, and what stands behind it."""

    label: Value
    value: Value


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval. None as an end is minus or plus infinity."""

    low: Node | None
    low_closed: bool
    high: Node | None
    high_closed: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals, and the variable that lies in it, where it was named."""

    pieces: tuple[Piece, ...]
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of values."""

    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Congruence:
    """Residues and their modulus."""

    residues: Value
    modulus: Node


@dataclass(frozen=True, slots=True)
class Ratio:
    """``a:b``, or ``a:b:c``. ``clock``: whether it may be a time of day; ``half`` is am, pm or empty."""

    parts: tuple[Node, ...]
    clock: bool = False
    half: str = ""


@dataclass(frozen=True, slots=True)
class InBase:
    """Digits in a number base, as written."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Words:
    """Text that is no mathematics, or mathematics that was not read, word by word."""

    words: tuple[str, ...]


Value = Quantity | Listing | Statement | Region | Matrix | Congruence | Ratio | InBase | Words
