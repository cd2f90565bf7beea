"""Make the runs of a comparison, several at a time. Finished runs are not made again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from dibs.config import Config
from dibs.config.changes import changed_keys
from dibs.data.arithmetic import TASKS
from dibs.files import write_json
from dibs.report.costs import Evaluations, read_evaluations
from dibs.runs.console import PlainView
from dibs.study.matrix import Cell, Study
from dibs.study.workers import results, workers
from dibs.types import InputError

Progress = Callable[[str, int, int, str], None]
"""Reports progress: ``progress(what, done, total, note)``."""


@dataclass
class Outcome:
    """The runs of a cell.

    ``value``: key of metrics.jsonl that they are judged by. ``learning_rate``: the one that was chosen.
    ``finished``: runs at that rate, by seed. ``failures``: why runs failed, by what they are called.
    ``tuned``: mean value over evaluations and tuning seeds, by learning rate; None where a run failed.
    ``meters``: result of ``dibs variance`` at the ``start`` and the ``end`` of the first seed's run.
    """

    cell: Cell
    value: str = "accuracy"
    learning_rate: float | None = None
    finished: dict[int, Evaluations] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    tuned: dict[float, float | None] = field(default_factory=dict)
    meters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def read(self, config: Config, name: str, failure: str | None) -> Evaluations | None:
        """Read the evaluations of a run. If it failed, record that under ``name`` and return None.

        A run fails too if fewer than two of its evaluations have a score: it shows no learning.

        Args:
            config: of the run.
            name: what the run is called.
            failure: why it could not be made; None if it was made.
        """
        if failure is None:
            run = read_evaluations(
                config.output_dir, self.value, pilots_thrown_away=config.estimate.mode == "pilot"
            )
            if run.is_curve:
                return run
            failure = f"{len(run.value)} of its evaluations had any verdict; at least two must"
        self.failures[name] = failure
        return None


@dataclass(frozen=True)
class _Job:
    """A run to make (``train``), or its first (``start``) or last policy (``end``) to measure."""

    config: Config
    kind: str = "train"

    @property
    def result(self) -> Path:
        """The file that exists once the job is done."""
        name = "summary.json" if self.kind == "train" else f"variance-{self.kind}.json"
        return self.config.output_dir / name

    @property
    def is_done(self) -> bool:
        """Whether the result can be read and does not belong to an earlier run in the folder."""
        try:
            json.loads(self.result.read_text(encoding="utf-8"))
            run = self.config.output_dir / "summary.json"
            return self.result.stat().st_mtime_ns >= run.stat().st_mtime_ns
        except (OSError, ValueError):
            return False


def make_runs(study: Study, progress: Progress) -> list[Outcome]:
    """Make all runs of a study and return their outcomes, in the order of the study's cells.

    A run that fails is recorded in its outcome.

    Raises:
        InputError: a folder holds a run of another configuration, a process of the pool died, or no run
            at all could be made.
        KeyboardInterrupt: after Ctrl-C, once the runs in progress are saved. The same call resumes.
    """
    outcomes = [Outcome(cell, study.value_of(cell)) for cell in study.cells]
    for config in _all_configs(study):
        _refuse_another(config)
    with workers(side_by_side(study)) as pool:
        _warm_up(study, progress)
        _choose_learning_rates(pool, study, outcomes, progress)
        _compare(pool, study, outcomes, progress)
        _measure(pool, study, outcomes, progress)
    return outcomes


def _all_configs(study: Study) -> Iterator[Config]:
    for cell in study.cells:
        for rate in study.options.learning_rates or (None,):
            yield from (cell.config(seed, rate) for seed in study.options.seeds)
            if rate is not None:
                yield from (cell.tuning(seed, rate) for seed in study.options.tuning_seeds)


def _refuse_another(config: Config) -> None:
    """Raise InputError if the folder of a run holds a run with another configuration."""
    if not (config.output_dir / "config.yaml").exists():
        return
    changed = changed_keys(config)
    if changed:
        raise InputError(
            f"{config.output_dir} holds a run of another configuration ({'; '.join(changed)}); undo the "
            "changes or set another compare.output_dir"
        )


def _choose_learning_rates(
    pool: ProcessPoolExecutor, study: Study, outcomes: Sequence[Outcome], progress: Progress
) -> None:
    """Choose for each arm the rate of the highest mean value; of equal ones, the first.

    A rate with a failed run is not chosen.
    """
    grid = study.options.learning_rates
    if len(grid) < 2:
        for outcome in outcomes:
            outcome.learning_rate = next(iter(grid), None)
        return
    jobs = {
        (i, rate, seed): _Job(outcome.cell.tuning(seed, rate))
        for i, outcome in enumerate(outcomes)
        for rate in grid
        for seed in study.options.tuning_seeds
    }
    failures = _done(pool, list(jobs.values()), "learning rates", progress)
    for i, outcome in enumerate(outcomes):
        for rate in grid:
            runs = []
            for seed in study.options.tuning_seeds:
                job, name = jobs[i, rate, seed], f"learning rate {rate:g}, seed {seed}"
                runs.append(outcome.read(job.config, name, failures.get(job.result)))
            means = [run.mean_value for run in runs if run is not None]
            outcome.tuned[rate] = sum(means) / len(runs) if len(means) == len(runs) else None
        known = {rate: value for rate, value in outcome.tuned.items() if value is not None}
        outcome.learning_rate = max(known, key=lambda rate: known[rate]) if known else None


def _compare(
    pool: ProcessPoolExecutor, study: Study, outcomes: Sequence[Outcome], progress: Progress
) -> None:
    jobs = {
        (i, seed): _Job(outcome.cell.config(seed, outcome.learning_rate))
        for seed in study.options.seeds  # all arms once, before any comes again
        for i, outcome in enumerate(outcomes)
        if outcome.learning_rate is not None or not study.options.learning_rates
    }
    failures = _done(pool, list(jobs.values()), "runs", progress)
    for (i, seed), job in jobs.items():
        outcomes[i].learning_rate = job.config.update.learning_rate
        run = outcomes[i].read(job.config, f"seed {seed}", failures.get(job.result))
        if run is not None:
            outcomes[i].finished[seed] = run
    if not any(outcome.finished for outcome in outcomes):
        reason = next(why for outcome in outcomes for why in outcome.failures.values())
        raise InputError(f"no run could be made: {reason}")


def _measure(
    pool: ProcessPoolExecutor, study: Study, outcomes: Sequence[Outcome], progress: Progress
) -> None:
    first = study.options.seeds[0]
    jobs = [
        (outcome, _Job(outcome.cell.config(first, outcome.learning_rate), where))
        for outcome in outcomes
        if first in outcome.finished
        for where in study.options.meter
    ]
    failures = _done(pool, [job for _, job in jobs], "gradient variance", progress)
    for outcome, job in jobs:
        if job.result in failures:
            outcome.failures[f"gradient variance, {job.kind}"] = failures[job.result]
        else:
            outcome.meters[job.kind] = json.loads(job.result.read_text(encoding="utf-8"))


def _done(
    pool: ProcessPoolExecutor, jobs: Sequence[_Job], what: str, progress: Progress
) -> Mapping[Path, str]:
    """Do all jobs that are not done yet. Return why some failed, by their result files."""
    waiting = [job for job in jobs if not job.is_done]
    done = len(jobs) - len(waiting)
    failures = {}
    if waiting:
        progress(what, done, len(jobs), "")
    for job, failure in results(pool, _do, waiting):
        done += 1
        if failure is not None:
            failures[job.result] = failure
        progress(what, done, len(jobs), str(job.config.output_dir))
    return failures


def _do(job: _Job) -> str | None:
    """Make one run or measurement, in a process of the pool."""
    from dibs.runs.measure_variance import run_variance
    from dibs.runs.train_run import run_training

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    view = PlainView(Console(quiet=True))
    if job.kind == "train":
        job.result.unlink(missing_ok=True)  # it is damaged
        run_training(job.config, view)
        return None
    policy = job.config.policy
    if job.kind == "end":
        policy = policy.model_copy(update={"model": str(job.config.output_dir / "model")})
    write_json(job.result, run_variance(job.config.model_copy(update={"policy": policy}), view))
    return None


def _warm_up(study: Study, progress: Progress) -> None:
    """Make the starting policies of embedded tasks once, before several processes ask for them."""
    from dibs.runs.build import starting_policy

    class Forwarding(PlainView):
        def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
            progress(what, done, total, note)

    configs = [cell.config(0) for cell in study.cells]
    for policy in {config.policy.model_dump_json(): config.policy for config in configs}.values():
        starting_policy(policy, Forwarding(Console(file=sys.stderr)))


def side_by_side(study: Study) -> int:
    """Return how many runs to make at a time: as many as were asked for, or as this machine has room.

    That is one if a run uses a GPU or all cores, else one a core.
    """
    if study.options.jobs is not None:
        return study.options.jobs
    import torch

    policies = [cell.config(0).policy for cell in study.cells]
    if torch.cuda.is_available() and any(policy.device != "cpu" for policy in policies):
        return 1
    if any(policy.threads is None and policy.model not in TASKS for policy in policies):
        return 1
    threads = max(policy.threads or 1 for policy in policies)
    return max(1, (os.cpu_count() or 1) // threads)
