"""DIBS in a script or a notebook: ``dibs.train``, ``dibs.evaluate``, ``dibs.load_run`` and others.

Each does what the command of its name does, and returns what that prints. Bad input raises
:class:`dibs.InputError`, whose message is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dibs.config import BENCHMARKS, Config, VerifyConfig
from dibs.config.load import assign, read_values, validated
from dibs.runs.read import NoRun, Run, read_run
from dibs.runs.room import check_samples
from dibs.types import InputError, Verdict

if TYPE_CHECKING:
    from dibs.runs.console import View

Configuration = Config | Mapping[str, Any] | str | Path | None
"""A whole configuration, its keys (nested, or dotted as on the command line), or a YAML file."""
OnStep = Callable[[Mapping[str, Any]], None]


def train(
    config: Configuration = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Run:
    """Train a policy as ``dibs train`` does, and return the run that its folder then holds.

    Args:
        config: what to train; see ``Configuration``. None: the embedded task.
        overrides: keys, dotted or nested, that win over ``config``.
        on_step: called with the metrics of every step once it is written, first with those of step 0,
            the evaluation before training. What it raises stops the run, which can be resumed.
        progress: whether lines about the run are printed.

    Raises InputError for a bad configuration, and where the run had to stop.
    """
    whole = read_config(config, overrides)
    from dibs.processes import joined_processes
    from dibs.runs.train_run import run_training

    with joined_processes() as processes, _view(progress and processes.main, on_step) as view:
        run_training(whole, view, processes)
    return load_run(whole.output_dir)


def measure_variance(
    config: Configuration = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    shapes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """How noisy the gradient is, and what counts can save: the object of ``dibs variance --json``.

    ``shapes``: also compare shapes of a step. Writes nothing. Raises InputError as :func:`train` does.
    """
    whole = read_config(config, overrides)
    from dibs.runs.measure_variance import run_variance

    with _view(progress) as view:
        return run_variance(whole, view, shapes=shapes)


def evaluate(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    k: int = 1,
    samples: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a model: avg@k, pass@k and maj@k with intervals, the object of ``dibs eval --json``.

    Args:
        model: Hugging Face id, folder, or whatever else ``policy.model`` takes.
        data: a benchmark (``math-500``), a file of questions and answers, or several of either.
        k: of the three scores.
        samples: completions a prompt, at least ``k``; None: ``k``.
        overrides: keys of the sections policy, data, verify and sampling. The template is ``boxed``
            unless ``data.template`` names another.
        out: folder that keeps the results; the same call goes on where it stopped.

    Raises InputError for a model or data that cannot be read.
    """
    given = [data] if isinstance(data, str | Path) else list(data)
    sources = [str(each) for each in given]
    drawn = k if samples is None else samples
    if not sources:
        raise InputError(f"nothing to evaluate on; give a file or one of {', '.join(BENCHMARKS)}")
    check_samples(k, drawn)
    base = {"policy.model": str(model), "data.template": "boxed"}
    whole = read_config(base, overrides)
    from dibs.runs.evaluation import run_evaluation

    with _view(progress) as view:
        return run_evaluation(whole, sources, k, drawn, None if out is None else Path(out), view)


def verify(
    answers: Sequence[str], completions: Sequence[str], verifier: str = "math", **options: Any
) -> list[Verdict]:
    r"""Verdicts on completions, one each: reward, status and reason, in order.

    Args:
        answers: gold answers, one a completion.
        completions: texts of the policy, such as ``r"so \boxed{42}"``.
        verifier: as ``verify.verifier``.
        options: other keys of the section ``verify``, such as ``answer_from="anywhere"``.

    Raises InputError for an unknown verifier or option, and for lists of different lengths.
    """
    if len(answers) != len(completions):
        raise InputError(
            f"{len(answers)} answers and {len(completions)} completions; give one answer for each"
        )
    settings = validated({**options, "verifier": verifier}, VerifyConfig, "dibs.verify")
    from dibs.rollouts.verify.verifiers import build_verifier

    with closing(build_verifier(settings, "")) as judge:
        return list(judge.verdicts(zip(answers, completions, strict=True)))


def load_run(folder: str | Path) -> Run:
    """What a run folder holds, finished or not: ``metrics`` and other tables, ``summary``, ``config``.

    ``.metrics`` is a list of one dictionary a step; ``.frame()`` makes a pandas table of it. Raises
    InputError for a folder that holds no run.
    """
    found = read_run(Path(folder))
    if isinstance(found, NoRun):
        raise InputError(f"{folder}: {found.reason}")
    return found


def read_config(config: Configuration, overrides: Mapping[str, Any] | None = None) -> Config:
    """The whole, checked configuration. Raises InputError for an unknown key or a bad value."""
    if isinstance(config, Config):
        values, source = config.model_dump(), "configuration"
    elif isinstance(config, Mapping):
        values, source = _nested(config), "configuration"
    elif config is None or isinstance(config, str | Path):
        values = read_values(None if config is None else Path(config), {})
        source = "configuration" if config is None else str(config)
    else:
        raise InputError(
            f"configuration: got a {type(config).__name__}; give a dibs.config.Config, a dictionary of "
            "keys, or the path of a YAML file"
        )
    for key, value in _dotted(overrides or {}):
        assign(values, key, value)
    return validated(values, Config, source)


def _nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in _dotted(keys):
        assign(values, key, value)
    return values


def _dotted(keys: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """``(section.key, value)`` of sections however they are written; values that are mappings stay."""
    for key, value in keys.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and name in _SECTIONS:
            yield from _dotted(value, f"{name}.")
        else:
            yield name, value


def _sections(kind: Any = Config, before: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield f"{before}{name}"
            yield from _sections(field.annotation, f"{before}{name}.")


_SECTIONS = frozenset(_sections())


@contextmanager
def _view(progress: bool, on_step: OnStep | None = None) -> Iterator[View]:
    """Where a run shows itself: lines on the standard output, nowhere, and to ``on_step``."""
    from rich.console import Console

    from dibs.runs.console import NoView, view_for
    from dibs.runs.step_listener import StepListener

    with closing(view_for(Console()) if progress else NoView()) as shown:
        yield shown if on_step is None else StepListener(shown, on_step)
