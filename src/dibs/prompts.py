"""Rows to prompts: where they come from, how they are rendered, which are held out.

A source is a local JSON Lines, JSON, CSV or Parquet file, a Hugging Face data set id, or the name of
an embedded task. ``prompt_id`` is a hash of question and answer.
"""

from __future__ import annotations

import json
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

_READERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_EVAL_SEED_OFFSET = 1_000_003


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@dataclass(frozen=True)
class PromptSet:
    """Training and evaluation prompts, and how many rows were dropped for which reason."""

    train: list[Prompt]
    eval: list[Prompt]
    dropped: dict[str, int]


def load_prompts(
    config: DataConfig, tokenizer: Tokenizer, seed: int, context: int | None = None
) -> PromptSet:
    """Read, render and split the prompts of a run.

    Evaluation prompts never occur in the training set. Prompts longer than ``max_prompt_length``,
    or than ``context`` tokens where that is given, are dropped. Raises InputError for a missing file
    or column, an empty set, or one in which every prompt is too long.
    """
    dropped: dict[str, int] = {}
    longest = min(config.max_prompt_length, context or config.max_prompt_length)
    read = partial(_render, config=config, tokenizer=tokenizer, longest=longest)
    if config.train in TASKS:
        train_rows, eval_rows = _embedded_rows(config, seed)
    else:
        train_rows = list(_read_rows(config, config.train, config.split))
        eval_rows = list(_read_rows(config, config.eval, config.eval_split)) if config.eval else []
    train = read(train_rows, dropped=dropped)
    if not train:
        raise InputError(f"{config.train}: no usable prompts{_reasons(dropped)}")
    rng = np.random.default_rng([seed, 0])
    if config.train in TASKS or config.eval:
        evaluation = read(eval_rows, dropped={})[: config.eval_size]
        held_out = {prompt.prompt_id for prompt in evaluation}
        kept = [prompt for prompt in train if prompt.prompt_id not in held_out]
        if len(kept) < len(train):
            dropped["also in the evaluation set"] = len(train) - len(kept)
        train = kept
    else:
        order = rng.permutation(len(train))
        size = min(config.eval_size, len(train) // 10)
        evaluation = [train[i] for i in sorted(order[:size])]
        train = [train[i] for i in sorted(order[size:])]
    if not train:
        raise InputError(f"{config.train}: no prompts left to train on{_reasons(dropped)}")
    if not evaluation:
        raise InputError(
            f"{config.eval or config.train}: no prompts to evaluate on; set data.eval, or train on "
            "at least ten prompts so that some can be held out"
        )
    return PromptSet(train, evaluation, dropped)


def batches(prompts: Sequence[Prompt], size: int, seed: int) -> Iterator[list[Prompt]]:
    """Endless batches of ``size`` distinct prompts, reshuffled each epoch; the tail is left out.

    Raises InputError at once when there are fewer prompts than ``size``.
    """
    if len(prompts) < size:
        raise InputError(
            f"train.prompts_per_step is {size}, but there are {len(prompts)} training prompts; "
            "lower it or give more data"
        )
    return _shuffled(prompts, size, seed)


def _shuffled(prompts: Sequence[Prompt], size: int, seed: int) -> Iterator[list[Prompt]]:
    epoch = 0
    while True:
        epoch += 1
        order = np.random.default_rng([seed, epoch]).permutation(len(prompts))
        for start in range(0, len(prompts) - size + 1, size):
            yield [prompts[i] for i in order[start : start + size]]


def prompt_id(question: str, answer: str) -> str:
    """16 hex digits that name a question with its answer."""
    return blake2b(f"{question}\0{answer}".encode(), digest_size=8).hexdigest()


def _embedded_rows(config: DataConfig, seed: int) -> tuple[list[tuple[str, str]], ...]:
    low, high = TASKS[config.train]
    if config.eval not in (None, config.train):
        raise InputError(
            f"data.eval: the embedded task {config.train} evaluates on its own prompts"
        )
    try:
        evaluation = draw_problems(
            config.eval_size, seed=seed + _EVAL_SEED_OFFSET, min_steps=low, max_steps=high
        )
        held_out = frozenset(problem.prompt for problem in evaluation)
        train = draw_problems(
            config.size, seed=seed, min_steps=low, max_steps=high, exclude=held_out
        )
    except ValueError as error:
        raise InputError(f"data.size or data.eval_size: {error}") from None
    return (
        [(problem.prompt, str(problem.answer)) for problem in train],
        [(problem.prompt, str(problem.answer)) for problem in evaluation],
    )


def _read_rows(config: DataConfig, source: str, split: str) -> Iterator[tuple[str, str]]:
    """``(question, answer)`` of every row of a file or hub data set."""
    rows = _open(config, source, split)
    columns = list(rows.column_names)
    for key in ("prompt_column", "answer_column"):
        column = getattr(config, key)
        if column not in columns:
            raise InputError(
                f"{source} has no column {column!r}; it has {', '.join(columns) or 'none'}. "
                f"Set data.{key}"
            )
    for number, row in enumerate(rows.select_columns([config.prompt_column, config.answer_column])):
        question, answer = row[config.prompt_column], row[config.answer_column]
        if not isinstance(question, str):
            raise InputError(
                f"{source}, row {number}: column {config.prompt_column!r} holds "
                f"{type(question).__name__}, not text"
            )
        yield question, "" if answer is None else str(answer)


def _open(config: DataConfig, source: str, split: str):  # type: ignore[no-untyped-def]
    import datasets

    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if path.is_file():
        if reader is None:
            raise InputError(f"{source}: unknown file type; give one of {', '.join(_READERS)}")
        if path.stat().st_size == 0 or (reader == "json" and _is_blank(path)):
            raise InputError(f"{source}: no usable prompts, the file is empty")
    elif reader is not None:
        raise InputError(f"{source}: no such file")
    datasets.disable_progress_bars()
    try:
        if reader is not None:
            return datasets.load_dataset(reader, data_files=str(path), split="train")
        return datasets.load_dataset(source, config.subset, split=split)
    except Exception as error:
        raise InputError(f"cannot read {source}: {_root_cause(error)}") from error


def _is_blank(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as lines:
        return not any(line.strip() for line in lines)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _render(
    rows: Iterable[tuple[str, str]],
    *,
    config: DataConfig,
    tokenizer: Tokenizer,
    longest: int,
    dropped: dict[str, int],
) -> list[Prompt]:
    prompts: dict[str, Prompt] = {}

    def drop(reason: str) -> None:
        dropped[reason] = dropped.get(reason, 0) + 1

    for question, answer in rows:
        identity = prompt_id(question, answer)
        if identity in prompts:
            drop("duplicate")
            continue
        if not question.strip() or not answer.strip():
            drop("empty question or answer")
            continue
        text, token_ids = _tokenise(config, question, tokenizer)
        if len(token_ids) > longest:
            drop(f"longer than {longest} tokens")
            continue
        prompts[identity] = Prompt(identity, text, tuple(token_ids), answer)
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
            f"({_root_cause(error)}); does policy.model fit {config.train}?"
        ) from error


def _reasons(dropped: Mapping[str, int]) -> str:
    return f" (dropped: {json.dumps(dict(dropped))})" if dropped else ""
