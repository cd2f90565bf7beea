"""Rows of local files: JSON Lines, JSON, CSV and Parquet, the first three also compressed by gzip.

A row that cannot be read does not hide the rows after it: it comes as the :class:`.InputError` that says
what is wrong with it.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from dibs.files import one_line
from dibs.types import InputError

Row = Mapping[str, Any]

JSON_TYPES = (".jsonl", ".ndjson", ".json")
FILE_TYPES = (*JSON_TYPES, ".csv", ".parquet")
_READ_ERRORS = (OSError, ValueError, RecursionError, EOFError, zlib.error)


class Number(str):
    """A number as it is written in a JSON file: 0.50 stays 0.50, since verifiers compare text."""

    __slots__ = ()


def with_numbers(cell: Any) -> Any:
    """A cell in which numbers of a JSON file are int or float, at any depth."""
    if isinstance(cell, Number):
        return json.loads(cell)
    if isinstance(cell, Mapping):
        return {key: with_numbers(value) for key, value in cell.items()}
    return [with_numbers(each) for each in cell] if isinstance(cell, list) else cell


@dataclass
class BadRows:
    """Rows that cannot be read: ``limit`` of them are left out and counted, one more is an error.

    ``first``: what is wrong with the first of them.
    """

    limit: int = 0
    count: int = 0
    first: str = ""

    def add(self, fault: InputError) -> None:
        """Count a row; raises InputError where there are too many."""
        self.count += 1
        self.first = self.first or str(fault)
        if self.limit == 0:
            raise fault
        if self.count > self.limit:
            raise InputError(
                f"{self.count} rows cannot be read, and data.max_bad_rows is {self.limit}; the first: "
                f"{self.first}"
            )

    @property
    def dropped(self) -> dict[str, int]:
        """The number of rows left out, by reason."""
        return {f"unreadable; the first: {self.first}": self.count} if self.count else {}


def file_type(path: Path) -> str:
    """The kind of a file by its name, such as ``.csv``; of a compressed one, the kind inside."""
    suffix = path.suffix.lower()
    if suffix != ".gz":
        return suffix
    return Path(path.stem).suffix.lower() or ".json"


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that holds JSON. Raises InputError, with the place, for a bad one."""
    for row in json_entries(path):
        if isinstance(row, InputError):
            raise row
        yield row


def json_entries(path: Path) -> Iterator[Row | InputError]:
    """Yield the rows of a file that holds JSON, with numbers as written and NaN as null.

    The file's name does not matter. It holds one object a line, an array of objects, columns as arrays
    of one length (or as objects with the same keys), or an object around one of these.
    """
    try:
        with _opened(path) as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except _READ_ERRORS as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from None
    if start[:1] == b"[" or (file_type(path) == ".json" and not _looks_like_lines(start)):
        rows = _whole(path)
        if rows is not None:
            yield from rows
            return
    yield from _lines(path)


def csv_entries(path: Path) -> Iterator[Row | InputError]:
    """Yield the rows of a CSV file with every cell as text: a reader that guesses turns 007 into 7."""
    csv.field_size_limit(sys.maxsize)  # cells may hold whole solutions
    try:
        with (
            _opened(path) as raw,
            TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as text,
        ):
            reader = csv.DictReader(text, strict=True)
            number = 0
            while True:
                number += 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield InputError(f"cannot read {path}, row {number}: {one_line(error)}")
                    continue
                yield _decoded(row, f"{path}, row {number}")
    except _READ_ERRORS as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from None


def _opened(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return path.open("rb")


def _decoded(row: Row, place: str) -> Row | InputError:
    """The row, unless it holds bytes that are no UTF-8."""
    for name, cell in row.items():
        for text in (name, cell):
            try:
                str(text).encode("utf-8")
            except UnicodeEncodeError:
                return InputError(f"cannot read {place}: column {name!r} is not UTF-8 text")
    return row


def _looks_like_lines(start: bytes) -> bool:
    """Whether a file begins with one whole object on a line, and another after it."""
    first, _, rest = start.partition(b"\n")
    if not rest.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return first.rstrip().endswith(b"}")


_parse = partial(json.loads, parse_float=Number, parse_int=Number, parse_constant=lambda _: None)


def _whole(path: Path) -> list[Row | InputError] | None:
    """Rows of a file that is one JSON value; None where it holds one value a line."""
    try:
        with _opened(path) as file:
            content = file.read()
        value = _parse(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise InputError(f"cannot read {path}: {one_line(error)}") from None
    except _READ_ERRORS as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from None
    if isinstance(value, list) and not any(isinstance(row, dict) for row in value):
        return None
    return [
        _object(row, f"{path}, row {number}") for number, row in enumerate(_rows_in(value), start=1)
    ]


def _rows_in(value: Any) -> Sequence[Any]:
    """The rows that a JSON value holds."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return [value]
    columns = list(value.values())
    inner = [each for each in columns if isinstance(each, list)]
    around = len(inner) == 1 and all(isinstance(row, dict) for row in inner[0])
    if len(inner) == len(columns) and len({len(column) for column in columns}) == 1 and not around:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if around and len({"role", "content"} & {*(inner[0][0] if inner[0] else ())}) < 2:
        return list(inner[0])
    if all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return [{name: value[name][key] for name in value} for key in columns[0]]
    return [value]


def _lines(path: Path) -> Iterator[Row | InputError]:
    """Rows of a file with one object a line."""
    try:
        with _opened(path) as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{path}, line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if text.strip():
                        yield _object(_parse(text), place)
                except (ValueError, RecursionError) as error:
                    yield InputError(f"cannot read {place}: {one_line(error)}")
    except _READ_ERRORS as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from None


def _object(row: Any, place: str) -> Row | InputError:
    if not isinstance(row, dict):
        return InputError(f"{place}: expected an object, got {row!r:.40}")
    return row
