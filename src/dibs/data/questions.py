r"""Questions with gold answers, from files, hub data sets and known benchmarks with any columns.

A source is a local JSON Lines, JSON, CSV or Parquet file, a Hugging Face data set id, or the name of a
known set (:data:`KNOWN`). A prompt may be text or, as TRL and verl write it, a list of messages. Where
there is no column for the gold answer, it is taken from a solution: the content of its last
``\boxed{...}``, or the text after ``####``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dibs.config import DataConfig
from dibs.data.cells import gold_of, question_of
from dibs.data.containers import (
    FILE_TYPES,
    JSON_TYPES,
    BadRows,
    Row,
    csv_entries,
    file_type,
    json_entries,
    with_numbers,
)
from dibs.data.gold_answers import GoldAnswer, forms_of
from dibs.data.hub import without_hub
from dibs.files import one_line
from dibs.types import InputError

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
    the last message of the user. ``answer`` is empty where the row has none. ``level``: see
    :class:`.Prompt`.
    """

    text: str
    answer: str
    messages: tuple[tuple[str, str], ...] = ()
    level: int = 1


def read_questions_of(
    config: DataConfig, source: str, split: str, bad: BadRows | None = None
) -> Iterator[Question]:
    """Yield the rows of a source as questions, at most ``data.max_rows``.

    Raises InputError, with the row, for a missing or malformed file, column or cell, once ``bad`` has
    as many of them as it may.
    """
    bad = BadRows(config.max_bad_rows) if bad is None else bad
    known = KNOWN.get(source)
    prompt_names = _names(config.prompt_column, known.prompt if known else None, PROMPT_COLUMNS)
    answer_names = _names(config.answer_column, known.answer if known else None, ANSWER_COLUMNS)
    for place, row in islice(read_rows(config, source, split), config.max_rows):
        try:
            if isinstance(row, InputError):
                raise row
            prompt_column, prompt = _cell(row, prompt_names, place, "prompt_column")
            answer_column, answer = _cell(row, answer_names, place, "answer_column")
            text, messages = question_of(prompt, f"{place}: column {prompt_column!r}")
            solved = answer_column == "solution"
            gold = gold_of(answer, f"{place}: column {answer_column!r}", solved, config.answers)
            if config.columns and gold:
                columns = {
                    name: with_numbers(_cell(row, (name,), place, "columns")[1])
                    for name in config.columns
                }
                gold = GoldAnswer(gold, forms_of(gold), columns)
        except InputError as fault:
            bad.add(fault)
            continue
        yield Question(text, gold, messages)


def read_rows(
    config: DataConfig, source: str, split: str
) -> Iterator[tuple[str, Row | InputError]]:
    """Yield each row, or what is wrong with it, with its place, ``file, row N``.

    Raises InputError where the source itself is unreadable.
    """
    path = Path(source)
    kind = file_type(path)
    if path.is_file() and kind not in FILE_TYPES:
        raise InputError(
            f"{source}: unknown file type; give one of {', '.join(FILE_TYPES)}, or all but the last "
            "with .gz"
        )
    if kind in FILE_TYPES and not path.is_file():
        raise InputError(f"{source}: no such file")
    rows: Iterator[Row | InputError]
    if kind in JSON_TYPES:
        rows = json_entries(path)
    elif kind == ".csv":
        rows = csv_entries(path)
    else:
        rows = _dataset_rows(config, source, split)
    for number, row in enumerate(rows, start=1):
        yield f"{source}, row {number}", row


def _dataset_rows(config: DataConfig, source: str, split: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file or of a hub data set, streamed with ``data.streaming``."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    known = KNOWN.get(source)
    unreached = without_hub(source, "a file")
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
        raise InputError(f"cannot read {source}: {one_line(error)}{hint}{unreached}") from error


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
