"""From questions to prompts: how they are rendered, which are held out, and in which order they come."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b

import numpy as np

from dibs.config import DataConfig
from dibs.data.arithmetic import Part, parts_of
from dibs.data.containers import BadRows
from dibs.data.levels import embedded_questions
from dibs.data.packages import (
    check_growth_of_source,
    check_options,
    evaluation_source,
    held_out_questions,
    is_packaged,
    training_questions,
)
from dibs.data.questions import Question, read_questions_of
from dibs.data.rendering import Renderer, Tokenizer
from dibs.types import InputError, Prompt

_TOO_LONG = "longer than"
"""How the reason begins for which a prompt was dropped that has too many tokens."""


@dataclass(frozen=True)
class Questions:
    """Rows to train on and to evaluate on; ``eval`` is None where the latter come from ``train``.

    ``dropped``: the number of rows that could not be read, by reason.
    """

    train: list[Question]
    eval: list[Question] | None
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSet:
    """Training and evaluation prompts, and the number of dropped rows by reason.

    ``notes``: what the user should know of how they were rendered. ``too_long``: questions of
    ``data.eval`` that are too long to be asked, and count as not solved.
    """

    train: list[Prompt]
    eval: list[Prompt]
    dropped: dict[str, int]
    notes: tuple[str, ...] = ()
    too_long: int = 0

    def fingerprint(self) -> str:
        """16 hex digits that differ where a prompt, its tokens, its answer or their order does."""
        digest = blake2b(digest_size=8)
        for prompt in [*self.train, *self.eval]:
            digest.update(f"{prompt.prompt_id}\0{prompt.text}\0".encode(errors="replace"))
            digest.update(np.array(prompt.token_ids, dtype=np.int64).tobytes())
        return digest.hexdigest()


def read_questions(config: DataConfig, seed: int) -> Questions:
    """Read the rows of a run, which needs no tokenizer.

    Raises InputError for a missing or malformed file, a missing column, or no rows. Generated questions
    are the same for the same seed, and none of those to train on is held out.
    """
    parts = parts_of(config.train)
    if config.columns and (parts is not None or is_packaged(config.train)):
        raise InputError(
            f"data.columns {', '.join(config.columns)}: prompts of {config.train} have no columns; "
            "leave it out"
        )
    if parts is not None:
        return _embedded_questions(config, parts, seed)
    check_options(config)
    check_growth_of_source(config)
    held_out = None
    dropped: dict[str, int] = {}
    source = evaluation_source(config)
    if source is not None and is_packaged(source):
        held_out = held_out_questions(config, source, seed)
    elif source is not None:
        held_out, dropped_here = _read(config, source, config.eval_split)
        dropped = {f"{reason} (evaluation)": rows for reason, rows in dropped_here.items()}
    if is_packaged(config.train):
        texts = frozenset(question.text for question in held_out or ())
        return Questions(training_questions(config, seed, texts), held_out, dropped)
    train, dropped_here = _read(config, config.train, config.split)
    return Questions(train, held_out, dropped_here | dropped)


def _read(config: DataConfig, source: str, split: str) -> tuple[list[Question], dict[str, int]]:
    """All questions of a source, of which there must be one, and the rows left out by reason."""
    bad = BadRows(config.max_bad_rows)
    rows = list(read_questions_of(config, source, split, bad))
    if not rows:
        why = _reasons(bad.dropped) or ", the data set is empty"
        raise InputError(f"{source}: no usable prompts{why}")
    return rows, bad.dropped


def build_prompts(
    questions: Questions,
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    context: int | None = None,
    clock: datetime | None = None,
) -> PromptSet:
    """Render, tokenize and split the rows of a run.

    No question is in both sets, even with different answers. A prompt longer than ``max_prompt_length``
    tokens, or than ``context`` where that is given, is dropped, and so is a question that occurred
    before. ``clock``: see :class:`.Renderer`. Raises InputError when no prompt is left to train on or to
    evaluate on; and so for each level, where the levels of ``data.grow`` need them.
    """
    renderer = Renderer(config, tokenizer, clock)
    longest = min(config.max_prompt_length, context or config.max_prompt_length)
    dropped = Counter(questions.dropped)
    too_long = 0
    train = _render(questions.train, renderer, longest, dropped)
    if not train:
        raise InputError(f"{config.train}: no usable prompts{_reasons(dropped)}")
    if questions.eval is None:
        order = np.random.default_rng([seed, 0]).permutation(len(train))
        size = min(config.eval_size, len(train) // 10)
        evaluation = [train[i] for i in sorted(order[:size])]
        train = [train[i] for i in sorted(order[size:])]
    else:
        dropped_here: Counter[str] = Counter()
        evaluation = _render(questions.eval, renderer, longest, dropped_here, config.eval_size)
        dropped.update({f"{reason} (evaluation)": n for reason, n in dropped_here.items()})
        too_long = too_long_of(dropped_here)
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
    _check_levels(train, config, "to train on", dropped)
    if config.grow.when == "held_out":
        _check_levels(evaluation, config, "to evaluate on", dropped)
    return PromptSet(train, evaluation, dict(dropped), tuple(renderer.notes), too_long)


def too_long_of(dropped: Mapping[str, int]) -> int:
    """How many prompts were dropped since they have too many tokens."""
    return sum(rows for reason, rows in dropped.items() if reason.startswith(_TOO_LONG))


def _check_levels(
    prompts: Sequence[Prompt], config: DataConfig, purpose: str, dropped: Mapping[str, int]
) -> None:
    """InputError for a level without a prompt: it would have no accept rate, and end the growth."""
    there = {prompt.level for prompt in prompts}
    for level in range(1, config.grow.count + 1):
        if level not in there:
            raise InputError(
                f"level {level} of data.grow has no prompts {purpose}{_reasons(dropped)}; raise "
                "data.max_prompt_length where they are too long, or choose other levels"
            )


def render_all(
    questions: Iterable[Question], renderer: Renderer, room: int | None
) -> tuple[list[Prompt], dict[str, int]]:
    """Every usable question as a prompt, and the number of dropped rows by reason.

    ``room``: most tokens of a prompt, beside ``max_prompt_length``; None: no other limit.
    """
    dropped: Counter[str] = Counter()
    longest = renderer.config.max_prompt_length
    return _render(questions, renderer, min(longest, room or longest), dropped), dict(dropped)


def check_batch_size(
    prompts: Sequence[Prompt], size: int, key: str = "train.prompts_per_step"
) -> None:
    """Raise InputError when there are fewer prompts than a step draws, as ``key`` says."""
    if len(prompts) < size:
        raise InputError(
            f"{key} is {size}, but there are {len(prompts)} training prompts; lower it or give more data"
        )


def prompt_id(question: str, answer: str) -> str:
    """16 hex digits: a hash of a question and its answer."""
    return blake2b(f"{question}\0{answer}".encode(), digest_size=8).hexdigest()


def _embedded_questions(config: DataConfig, parts: Sequence[Part], seed: int) -> Questions:
    if config.eval not in (None, config.train):
        raise InputError(
            f"data.eval: the embedded task {config.train} evaluates on its own prompts"
        )
    return Questions(*embedded_questions(config, parts, seed))


def _render(
    questions: Iterable[Question],
    renderer: Renderer,
    longest: int,
    dropped: Counter[str],
    most: int | None = None,
) -> list[Prompt]:
    """The first ``most`` usable prompts, and in ``dropped`` what was left out until then."""
    prompts: dict[str, Prompt] = {}
    for question in questions:
        if len(prompts) == most:
            break
        if not question.text.strip() or not question.answer.strip():
            dropped["empty question or answer"] += 1
            continue
        text, token_ids = renderer(question)
        if text in prompts:
            dropped["duplicate question"] += 1
        elif len(token_ids) > longest:
            dropped[f"{_TOO_LONG} {longest} tokens"] += 1
        else:
            asked = json.dumps(question.messages) if question.messages else question.text
            identity = prompt_id(asked, question.answer)
            prompts[text] = Prompt(
                identity, text, tuple(token_ids), question.answer, question.level
            )
    return list(prompts.values())


def _reasons(dropped: Mapping[str, int]) -> str:
    return f" (dropped: {json.dumps(dict(dropped))})" if dropped else ""
