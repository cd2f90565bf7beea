r"""Cells of rows as questions and gold answers, whatever container and type they came in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from dibs.data.answers import final_answer
from dibs.data.containers import Number
from dibs.data.gold_answers import GoldAnswer
from dibs.types import InputError

Messages = tuple[tuple[str, str], ...]


def question_of(cell: Any, place: str) -> tuple[str, Messages]:
    """The question, and the messages where the cell holds a conversation.

    The question is then the last message of the user. It is empty where the cell is. A text is in one
    piece, or in parts (``[{"type": "text", "text": ...}]``). Messages may also be written as JSON, since
    a CSV file cannot hold them otherwise. Raises InputError for any other cell.
    """
    if missing(cell):
        return "", ()
    if isinstance(cell, str) and not isinstance(cell, Number):
        messages = _messages(_written_as_json(cell))
        return messages or (cell, ())
    found = _messages(cell)
    if found is not None:
        return found
    text = _text(cell) if isinstance(cell, list) and cell else None
    if text is not None:
        return text, ()
    raise InputError(f"{place} holds {cell!r:.40}, neither text nor messages with role and content")


def answer_of(cell: Any, place: str, is_solution: bool) -> str:
    """The gold answer in a cell, empty where it holds none.

    Raises InputError where the cell is neither text nor a number, nor a list of these.

    ``is_solution``: whether the answer is a part of the text, boxed or after ``####``.
    """
    text = _answer_text(cell)
    if text is None:
        raise InputError(f"{place} holds {cell!r:.40}, neither text nor a number")
    boxed = final_answer(text)
    if boxed is not None:
        return boxed
    _, mark, after = text.rpartition("####")
    if mark:
        return after.strip()
    return "" if is_solution else text


def gold_of(cell: Any, place: str, is_solution: bool, meaning: str) -> str:
    """The gold answer in a cell, with all accepted forms where a list means these.

    Args:
        meaning: ``one``, or ``any`` where each entry of a list, which a text may hold as JSON, is an
            accepted form of the answer; see ``data.answers``.

    Raises InputError as :func:`answer_of` does.
    """
    entries = _listed(cell) if meaning == "any" else None
    if entries is None:
        return answer_of(cell, place, is_solution)
    read = [answer_of(entry, place, is_solution) for entry in entries]
    forms = tuple(dict.fromkeys(each for each in read if each.strip()))
    return GoldAnswer(" | ".join(forms), forms) if forms else ""


def missing(cell: Any) -> bool:
    """Whether a cell holds nothing: null, or a number that is NaN or infinite."""
    if isinstance(cell, float):
        return not math.isfinite(cell)
    return cell is None or (isinstance(cell, Decimal) and not cell.is_finite())


def _answer_text(cell: Any) -> str | None:
    """A cell as text; None where it is neither text nor a number, nor a list of these."""
    if not isinstance(cell, list):
        return _scalar_text(cell)
    if any(isinstance(part, Mapping) for part in cell):
        return _text(cell)
    each = [_scalar_text(part) for part in cell]
    if None in each:
        return None
    # A list of which a part is missing is no answer.
    return ", ".join(map(str, each)) if all(each) else ""


def _scalar_text(cell: Any) -> str | None:
    """Text or a number as text, empty where it is missing; None for anything else."""
    if missing(cell):
        return ""
    if isinstance(cell, Decimal):
        return format(cell, "f")
    known = isinstance(cell, str | int | float) and not isinstance(cell, bool)
    return str(cell) if known else None


def _messages(cell: Any) -> tuple[str, Messages] | None:
    """The user's last message and all messages; None where the cell holds no conversation."""
    if not isinstance(cell, list) or not cell:
        return None
    messages = []
    for message in cell:
        parts = message if isinstance(message, Mapping) else {}
        role, content = parts.get("role"), _text(parts.get("content"))
        if not isinstance(role, str) or content is None:
            return None
        messages.append((role, content))
    asked = [content for role, content in messages if role == "user"]
    return (asked[-1], tuple(messages)) if asked else None


def _text(content: Any) -> str | None:
    """Text in one piece or in parts; None for anything else, such as a picture."""
    if isinstance(content, str):
        return None if isinstance(content, Number) else content
    if not isinstance(content, list) or not content:
        return None
    pieces = []
    for part in content:
        piece = part
        if isinstance(part, Mapping):
            piece = part.get("text") if part.get("type", "text") == "text" else None
        if not isinstance(piece, str) or isinstance(piece, Number):
            return None
        pieces.append(piece)
    return "".join(pieces)


def _listed(cell: Any) -> list[Any] | None:
    """The entries of a list, which a text may hold as JSON; None for anything else."""
    if isinstance(cell, str) and not isinstance(cell, Number) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, list) else None


def _written_as_json(text: str) -> Any:
    """The list of objects with a role that a text holds as JSON; None where it holds none."""
    if not text.lstrip().startswith("[") or '"role"' not in text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
