"""Questions of single-turn environments of the package verifiers: ``verifiers:ENVIRONMENT``.

An environment is a Python module with ``load_environment``. It brings its prompts, system message
included, and a rubric of reward functions.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from dibs.data.questions import Question
from dibs.files import one_line
from dibs.types import InputError

PREFIX = "verifiers:"


class Environment(NamedTuple):
    """What decides an environment: its name, and its arguments as JSON."""

    name: str
    arguments: str


class EnvironmentAnswer(str):
    """A gold answer that finds its row: ``row`` of the environment's training or evaluation set."""

    __slots__ = ("environment", "held_out", "row")
    environment: Environment
    held_out: bool
    row: int

    def __new__(
        cls, text: str, environment: Environment, held_out: bool, row: int
    ) -> EnvironmentAnswer:
        """The answer ``text``."""
        made = super().__new__(cls, text)
        made.environment = environment
        made.held_out = held_out
        made.row = row
        return made

    def __reduce__(self) -> tuple[type[EnvironmentAnswer], tuple[str, Environment, bool, int]]:
        """How pickle makes it again."""
        return EnvironmentAnswer, (str(self), self.environment, self.held_out, self.row)


def environment_name(source: str) -> str | None:
    """The environment that a source names; None for a source of another kind."""
    return source.removeprefix(PREFIX) if source.startswith(PREFIX) else None


def has_evaluation_set(source: str, options: Mapping[str, Any]) -> bool:
    """Whether the environment brings rows to evaluate on, which are not among those to train on."""
    loaded = environment(_environment(source, options))
    return getattr(loaded, "eval_dataset_source", None) is not None


def environment_questions(
    source: str, options: Mapping[str, Any], held_out: bool = False
) -> Iterator[Question]:
    """Yield the rows of an environment's training set, or of its evaluation set, in its order.

    Raises InputError where the environment cannot be loaded, or is not one of single turns.
    """
    named = _environment(source, options)
    for number, row in enumerate(rows(named, held_out)):
        # Some rubrics need no answer; then the row stands for it.
        answer = str(row.get("answer") or f"row {number}")
        gold = EnvironmentAnswer(answer, named, held_out, number)
        prompt = row["prompt"]
        if isinstance(prompt, str):
            yield Question(prompt, gold)
            continue
        messages = tuple((str(each["role"]), _content(each["content"])) for each in prompt)
        asked = [content for role, content in messages if role == "user"]
        yield Question(asked[-1] if asked else messages[-1][1], gold, messages)


def _content(content: Any) -> str:
    """A message's text, also where it comes in parts."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or ())


def _environment(source: str, options: Mapping[str, Any]) -> Environment:
    name = environment_name(source) or ""
    given = options.get(name) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"data.options.{name} must hold keys and values")
    try:
        return Environment(name, json.dumps(given, sort_keys=True))
    except TypeError as error:
        raise InputError(f"data.options.{name}: {error}; give numbers, texts and lists") from None


@cache
def rows(named: Environment, held_out: bool) -> Any:
    """The training or the evaluation set of an environment: a sequence of mappings."""
    loaded = environment(named)
    try:
        return loaded.get_eval_dataset() if held_out else loaded.get_dataset()
    except Exception as error:
        raise InputError(f"verifiers:{named.name}: no rows: {one_line(error)}") from error


@cache
def environment(named: Environment) -> Any:
    """The package's own object. Raises InputError where it cannot be had or has several turns."""
    try:
        import datasets
        from verifiers.envs.singleturn_env import SingleTurnEnv
        from verifiers.utils.env_utils import load_environment
    except ImportError as error:
        raise InputError(
            f"prompts of verifiers need that package, 0.3 or later but before 0.4 ({error}); "
            "pip install 'dibs-rl[verifiers]'"
        ) from None
    datasets.disable_progress_bars()
    try:
        with _own_signals():
            loaded = load_environment(named.name, **json.loads(named.arguments))
    except Exception as error:
        raise InputError(f"verifiers:{named.name} cannot be loaded: {one_line(error)}") from error
    if not isinstance(loaded, SingleTurnEnv):
        raise InputError(
            f"verifiers:{named.name} is a {type(loaded).__name__}; DIBS takes single-turn environments"
        )
    if loaded.rubric.has_group_rewards:
        raise InputError(
            f"verifiers:{named.name} rewards whole groups; DIBS judges each completion by itself"
        )
    return loaded


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give Ctrl-C and SIGTERM back their handlers: an environment that is made takes them over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
