r"""Questions with gold answers, from files, hub data sets and known benchmarks with any columns.

A source is a local JSON Lines, JSON, CSV or Parquet file, a Hugging Face data set id, or the name of a
known set (:data:`KNOWN`). A prompt may be text or, as TRL and verl write it, a list of messages. Where
there is no column for the gold answer, it is taken from a solution: the content of its last
``\boxed{...}``, or the text after ``####``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from dibs.config import DataConfig
from dibs.data.answers import final_answer
from dibs.files import one_line
from dibs.types import InputError

_JSON_TYPES = (".jsonl", ".ndjson", ".json")
_FILE_TYPES = (*_JSON_TYPES, ".csv", ".parquet")
PROMPT_COLUMNS = ("prompt", "problem", "question")
ANSWER_COLUMNS = ("answer", "reward_model.ground_truth", "final_answer", "solution")
"""Columns that are tried in this order where the configuration names none."""


@dataclass(frozen=True)
class KnownSet:
    """Where a well-known data set lives, and its columns."""

    hub_id: str
    split: str
    prompt: str
    answer: str
    subset: str | None = None


KNOWN = {
    "math": KnownSet("DigitalLearningGmbH/MATH-lighteval", "train", "problem", "solution"),
    "gsm8k": KnownSet("openai/gsm8k", "train", "question", "answer", "main"),
    "numina-math": KnownSet("AI-MO/NuminaMath-CoT", "train", "problem", "solution"),
    "math-500": KnownSet("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    "minerva-math": KnownSet("math-ai/minervamath", "test", "question", "answer"),
    "olympiad-bench": KnownSet(
        "Hothan/OlympiadBench", "train", "question", "final_answer", "OE_TO_maths_en_COMP"
    ),
    "aime24": KnownSet("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "amc23": KnownSet("math-ai/amc23", "test", "question", "answer"),
}


@dataclass(frozen=True)
class Question:
    """One row.

    ``messages``: role and content of each message, where the prompt is a conversation. ``text`` is then
    the last message of the user. ``answer`` is empty where the row has none.
    """

    text: str
    answer: str
    messages: tuple[tuple[str, str], ...] = ()


class Number(str):
    """A number as it is written in a JSON file: 0.50 stays 0.50, since verifiers compare text."""

    __slots__ = ()


def read_questions_of(config: DataConfig, source: str, split: str) -> Iterator[Question]:
    """Yield the rows of a source as questions, at most ``data.max_rows``.

    Raises InputError, with the row, for a missing or malformed file, column or cell.
    """
    known = KNOWN.get(source)
    prompt_names = _names(config.prompt_column, known.prompt if known else None, PROMPT_COLUMNS)
    answer_names = _names(config.answer_column, known.answer if known else None, ANSWER_COLUMNS)
    for place, row in islice(read_rows(config, source, split), config.max_rows):
        prompt_column, prompt = _cell(row, prompt_names, place, "prompt_column")
        answer_column, answer = _cell(row, answer_names, place, "answer_column")
        text, messages = _prompt_of(prompt, f"{place}: column {prompt_column!r}")
        gold = _answer_of(answer, f"{place}: column {answer_column!r}", answer_column == "solution")
        yield Question(text, gold, messages)


def read_rows(
    config: DataConfig, source: str, split: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place, ``file, row N``. Raises InputError where it is unreadable."""
    path = Path(source)
    kind = path.suffix.lower()
    if path.is_file() and kind not in _FILE_TYPES:
        raise InputError(f"{source}: unknown file type; give one of {', '.join(_FILE_TYPES)}")
    if kind in _FILE_TYPES and not path.is_file():
        raise InputError(f"{source}: no such file")
    if kind in _JSON_TYPES:
        rows = json_rows(path)
    elif kind == ".csv":
        rows = _csv_rows(path)
    else:
        rows = _dataset_rows(config, source, split)
    for number, row in enumerate(rows, start=1):
        yield f"{source}, row {number}", row


def json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a JSON Lines file or of a JSON array of objects, with numbers as written."""
    parse = partial(json.loads, parse_float=Number, parse_int=Number)
    place = str(path)
    try:
        if path.suffix.lower() == ".json":
            rows = parse(path.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list):
                raise InputError(
                    f"{path}: expected an array of objects; or give JSON Lines, .jsonl"
                )
            yield from (_object(row, f"{path}, row {i}") for i, row in enumerate(rows, start=1))
            return
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{path}, line {number}"
                if line.strip():
                    yield _object(parse(line), place)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {place}: {one_line(error)}") from None


def _object(row: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, got {row!r:.40}")
    return row


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a CSV file with every cell as text: a reader that guesses turns 007 into 7."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from None


def _dataset_rows(config: DataConfig, source: str, split: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a Parquet file or of a hub data set, streamed with ``data.streaming``."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    known = KNOWN.get(source)
    try:
        if Path(source).suffix.lower() == ".parquet":
            rows = datasets.load_dataset(
                "parquet", data_files=source, split="train", streaming=config.streaming
            )
        elif known is not None:
            rows = datasets.load_dataset(
                known.hub_id, known.subset, split=known.split, streaming=config.streaming
            )
        else:
            rows = datasets.load_dataset(
                source, config.subset, split=split, streaming=config.streaming
            )
        yield from rows
    except Exception as error:
        hint = "" if known else f"; known sets: {', '.join(KNOWN)}"
        raise InputError(f"cannot read {source}: {one_line(error)}{hint}") from error


def _names(given: str | None, known: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    if given is not None:
        return (given,)
    return usual if known is None else (known,)


def _cell(row: Mapping[str, Any], names: tuple[str, ...], place: str, key: str) -> tuple[str, Any]:
    """Name and cell of the first of the columns that the row has; a dot leads into a nested column."""
    for name in names:
        cell: Any = row
        for part in [name] if name in row else name.split("."):
            cell = cell[part] if isinstance(cell, Mapping) and part in cell else _MISSING
        if cell is not _MISSING:
            return name, cell
    wanted = repr(names[0]) if len(names) == 1 else "any of " + ", ".join(map(repr, names))
    raise InputError(
        f"{place}: no column {wanted}; it has {', '.join(map(str, row)) or 'none'}. Set data.{key}"
    )


_MISSING = object()


def _prompt_of(cell: Any, place: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    if isinstance(cell, str) and not isinstance(cell, Number):
        return cell, ()
    if isinstance(cell, list) and cell:
        messages = []
        for message in cell:
            parts = message if isinstance(message, Mapping) else {}
            role, content = parts.get("role"), parts.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                break
            messages.append((role, content))
        asked = [content for role, content in messages if role == "user"]
        if len(messages) == len(cell) and asked:
            return asked[-1], tuple(messages)
    raise InputError(f"{place} holds {cell!r:.40}, neither text nor messages with role and content")


def _answer_of(cell: Any, place: str, is_solution: bool) -> str:
    if isinstance(cell, list) and cell and all(isinstance(part, str) for part in cell):
        cell = ", ".join(cell)
    if not isinstance(cell, str | int | float | None) or isinstance(cell, bool):
        raise InputError(f"{place} holds {cell!r:.40}, neither text nor a number")
    text = "" if cell is None else str(cell)
    boxed = final_answer(text)
    if boxed is not None:
        return boxed
    _, mark, after = text.rpartition("####")
    if mark:
        return after.strip()
    return "" if is_solution else text
