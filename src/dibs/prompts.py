"""Rows to prompts: where they come from, how they are rendered, which are held out.

A source is a local JSON Lines, JSON, CSV or Parquet file, a Hugging Face data set id, or the name of
an embedded task. ``prompt_id`` is a hash of question and answer.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dibs.config import DataConfig
from dibs.tasks.arithmetic import TASKS, draw_problems
from dibs.types import InputError, Prompt

_JSON_TYPES = (".jsonl", ".ndjson", ".json")
_FILE_TYPES = (*_JSON_TYPES, ".csv", ".parquet")
_EVAL_SEED_OFFSET = 1_000_003


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Question:
    """One row: a question and its gold answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Questions:
    """Rows to train on, and rows to evaluate on where those come from a source of their own."""

    train: list[Question]
    eval: list[Question] | None


@dataclass(frozen=True)
class PromptSet:
    """Training and evaluation prompts, and how many rows were dropped for which reason."""

    train: list[Prompt]
    eval: list[Prompt]
    dropped: dict[str, int]


def read_questions(config: DataConfig, seed: int) -> Questions:
    """Read the rows of a run; no tokenizer is needed yet.

    Raises InputError for a missing or malformed file, a missing column, or no rows.
    """
    if config.train in TASKS:
        return _embedded_questions(config, seed)
    train = list(_read_rows(config, config.train, config.split))
    held_out = list(_read_rows(config, config.eval, config.eval_split)) if config.eval else None
    for source, rows in ((config.train, train), (config.eval, held_out)):
        if rows is not None and not rows:
            raise InputError(f"{source}: no usable prompts, the data set is empty")
    return Questions(train, held_out)


def build_prompts(
    questions: Questions,
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    context: int | None = None,
) -> PromptSet:
    """Render, tokenise and split the rows of a run.

    No question is in both sets, whatever its answers. Prompts longer than ``max_prompt_length``, or
    than ``context`` tokens where that is given, are dropped, and so is a question that occurred
    before. Raises InputError when no prompt is left to train or to evaluate on.
    """
    longest = min(config.max_prompt_length, context or config.max_prompt_length)
    dropped: Counter[str] = Counter()
    train = _render(questions.train, config, tokenizer, longest, dropped)
    if not train:
        raise InputError(f"{config.train}: no usable prompts{_reasons(dropped)}")
    if questions.eval is None:
        order = np.random.default_rng([seed, 0]).permutation(len(train))
        size = min(config.eval_size, len(train) // 10)
        evaluation = [train[i] for i in sorted(order[:size])]
        train = [train[i] for i in sorted(order[size:])]
    else:
        dropped_here: Counter[str] = Counter()
        evaluation = _render(questions.eval, config, tokenizer, longest, dropped_here)
        evaluation = evaluation[: config.eval_size]
        dropped.update({f"{reason} (evaluation)": n for reason, n in dropped_here.items()})
        held_out = {prompt.text for prompt in evaluation}
        kept = [prompt for prompt in train if prompt.text not in held_out]
        if len(kept) < len(train):
            dropped["also in the evaluation set"] = len(train) - len(kept)
        train = kept
    if not train:
        raise InputError(f"{config.train}: no prompts left to train on{_reasons(dropped)}")
    if not evaluation:
        raise InputError(
            f"{config.eval or config.train}: no prompts to evaluate on{_reasons(dropped)}; set "
            "data.eval, or train on at least ten prompts so that some can be held out"
        )
    return PromptSet(train, evaluation, dict(dropped))


def check_batch_size(prompts: Sequence[Prompt], size: int) -> None:
    """InputError when there are fewer prompts than a step draws."""
    if len(prompts) < size:
        raise InputError(
            f"train.prompts_per_step is {size}, but there are {len(prompts)} training prompts; "
            "lower it or give more data"
        )


def batches(prompts: Sequence[Prompt], size: int, seed: int) -> Iterator[list[Prompt]]:
    """Endless batches of ``size`` distinct prompts, reshuffled each epoch; the tail is left out."""
    epoch = 0
    while True:
        epoch += 1
        order = np.random.default_rng([seed, epoch]).permutation(len(prompts))
        for start in range(0, len(prompts) - size + 1, size):
            yield [prompts[i] for i in order[start : start + size]]


def prompt_id(question: str, answer: str) -> str:
    """16 hex digits that name a question with its answer."""
    return blake2b(f"{question}\0{answer}".encode(), digest_size=8).hexdigest()


def _embedded_questions(config: DataConfig, seed: int) -> Questions:
    low, high = TASKS[config.train]
    if config.eval not in (None, config.train):
        raise InputError(
            f"data.eval: the embedded task {config.train} evaluates on its own prompts"
        )
    draw = partial(draw_problems, min_steps=low, max_steps=high)
    try:
        held_out = draw(config.eval_size, seed=seed + _EVAL_SEED_OFFSET)
        exclude = frozenset(problem.prompt for problem in held_out)
        train = draw(config.size, seed=seed, exclude=exclude)
    except ValueError as error:
        raise InputError(f"data.size or data.eval_size: {error}") from None
    return Questions(
        [Question(problem.prompt, str(problem.answer)) for problem in train],
        [Question(problem.prompt, str(problem.answer)) for problem in held_out],
    )


def _read_rows(config: DataConfig, source: str, split: str) -> Iterator[Question]:
    path = Path(source)
    kind = path.suffix.lower()
    if path.is_file() and kind not in _FILE_TYPES:
        raise InputError(f"{source}: unknown file type; give one of {', '.join(_FILE_TYPES)}")
    if kind in _FILE_TYPES and not path.is_file():
        raise InputError(f"{source}: no such file")
    if kind in _JSON_TYPES:
        rows = _json_rows(path)
    elif kind == ".csv":
        rows = _csv_rows(path)
    else:
        rows = _dataset_rows(config, source, split)
    for number, row in enumerate(rows, start=1):
        for key in ("prompt_column", "answer_column"):
            if getattr(config, key) not in row:
                raise InputError(
                    f"{source}, row {number}: no column {getattr(config, key)!r}; it has "
                    f"{', '.join(map(str, row)) or 'none'}. Set data.{key}"
                )
        question, answer = row[config.prompt_column], row[config.answer_column]
        if not isinstance(question, str) or isinstance(question, _Number):
            raise InputError(
                f"{source}, row {number}: column {config.prompt_column!r} holds "
                f"{question!r:.40}, not text"
            )
        if not isinstance(answer, str | int | float | None) or isinstance(answer, bool):
            raise InputError(
                f"{source}, row {number}: column {config.answer_column!r} holds "
                f"{answer!r:.40}, neither text nor a number"
            )
        yield Question(question, "" if answer is None else str(answer))


class _Number(str):
    """A number as it stands in a JSON file: 0.50 stays 0.50, since verifiers compare text."""

    __slots__ = ()


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a JSON Lines file or a JSON array of objects, with numbers as written."""
    parse = partial(json.loads, parse_float=_Number, parse_int=_Number)
    place = str(path)
    try:
        if path.suffix.lower() == ".json":
            rows = parse(path.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list):
                raise InputError(
                    f"{path}: expected an array of objects; or give JSON Lines, .jsonl"
                )
        else:
            rows = []
            with path.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    place = f"{path}, line {number}"
                    if line.strip():
                        rows.append(parse(line))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {place}: {_one_line(error)}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: expected an object, got {row!r:.40}")
        yield row


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a CSV file, every cell as text: a reader that guesses turns 007 into 7."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {_one_line(error)}") from None


def _dataset_rows(config: DataConfig, source: str, split: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a Parquet file or of a hub data set."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        if Path(source).suffix.lower() == ".parquet":
            yield from datasets.load_dataset("parquet", data_files=source, split="train")
        else:
            yield from datasets.load_dataset(source, config.subset, split=split)
    except Exception as error:
        raise InputError(f"cannot read {source}: {_one_line(error)}") from error


def _render(
    questions: Iterable[Question],
    config: DataConfig,
    tokenizer: Tokenizer,
    longest: int,
    dropped: Counter[str],
) -> list[Prompt]:
    prompts: dict[str, Prompt] = {}
    for question in questions:
        if not question.text.strip() or not question.answer.strip():
            dropped["empty question or answer"] += 1
            continue
        text, token_ids = _tokenise(config, question.text, tokenizer)
        if text in prompts:
            dropped["duplicate question"] += 1
        elif len(token_ids) > longest:
            dropped[f"longer than {longest} tokens"] += 1
        else:
            identity = prompt_id(question.text, question.answer)
            prompts[text] = Prompt(identity, text, tuple(token_ids), question.answer)
    return list(prompts.values())


def _tokenise(config: DataConfig, question: str, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    text = config.template.replace("{prompt}", question)
    templated = bool(config.chat_template and tokenizer.chat_template)
    try:
        if templated:
            messages = [{"role": "user", "content": text}]
            if config.system_prompt:
                messages.insert(0, {"role": "system", "content": config.system_prompt})
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        # A chat template already wrote the special tokens.
        return text, tokenizer.encode(text, add_special_tokens=not templated)
    except Exception as error:
        raise InputError(
            f"the policy's tokenizer cannot encode the prompt {question[:40]!r} "
            f"({_one_line(error)}); does policy.model fit {config.train}?"
        ) from error


def _one_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _reasons(dropped: Mapping[str, int]) -> str:
    return f" (dropped: {json.dumps(dict(dropped))})" if dropped else ""
