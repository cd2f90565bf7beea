"""Makes the runs of a comparison, several at a time; what is there already is not made again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from dibs.config import Config
from dibs.report.views import PlainView
from dibs.study.curves import Curve, read_curve
from dibs.study.matrix import Cell, Study
from dibs.types import InputError
from dibs.whole_files import write_json

Progress = Callable[[str, int, int, str], None]
"""``progress(what, done, total, note)``"""


@dataclass
class Outcome:
    """The runs of a cell: at the learning rate that was chosen, one a seed, and why others failed.

    ``tuned``: mean value over evaluations and tuning seeds, by learning rate; None where a run failed.
    ``meters``: what ``dibs variance`` says at the start and at the end of the first seed's run.
    """

    cell: Cell
    learning_rate: float | None = None
    curves: dict[int, Curve] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    tuned: dict[float, float | None] = field(default_factory=dict)
    meters: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """A run to make, or a policy of one to measure; and who hears of it."""

    config: Config
    kind: str = "train"

    @property
    def result(self) -> Path:
        """The file that is there when it is done."""
        name = "summary.json" if self.kind == "train" else f"variance-{self.kind}.json"
        return self.config.output_dir / name


def make_runs(study: Study, progress: Progress) -> list[Outcome]:
    """All runs of a study, in order of its cells. An arm with a run that failed is not an error here.

    Raises InputError where a process of the pool died; KeyboardInterrupt after the runs at hand have
    been saved. The same call goes on.
    """
    options = study.options
    outcomes = [Outcome(cell) for cell in study.cells]
    with _workers(options.jobs or _jobs(study)) as pool:
        _warm_up(study, progress)
        if options.learning_rates:
            grid = {
                (i, rate, seed): _Job(each.cell.config(seed, rate))
                for i, each in enumerate(outcomes)
                for rate in options.learning_rates
                for seed in options.tuning_seeds
            }
            failures = _done(pool, list(grid.values()), "learning rates", progress)
            for i, each in enumerate(outcomes):
                _choose(
                    each,
                    {key[1:]: job.config for key, job in grid.items() if key[0] == i},
                    failures,
                )
        jobs = {
            (i, seed): _Job(each.cell.config(seed, each.learning_rate))
            for i, each in enumerate(outcomes)
            for seed in options.seeds
            if each.learning_rate is not None or not options.learning_rates
        }
        failures = _done(pool, list(jobs.values()), "runs", progress)
        for (i, seed), job in jobs.items():
            outcomes[i].learning_rate = job.config.update.learning_rate
            run = job.config.output_dir
            if run in failures:
                outcomes[i].failures[f"seed {seed}"] = failures[run]
            else:
                outcomes[i].curves[seed] = read_curve(run, job.config.algorithm.objective)
        _measure(pool, study, outcomes, progress)
    return outcomes


def _choose(
    outcome: Outcome, runs: dict[tuple[float, int], Config], failures: dict[Path, str]
) -> None:
    """The rule: of the rates without a failed run, the one of highest mean value; ties: the first."""
    for rate in dict.fromkeys(rate for rate, _ in runs):
        configs = [config for (other, _), config in runs.items() if other == rate]
        failed = [c for c in configs if c.output_dir in failures]
        for config in failed:
            outcome.failures[f"learning rate {rate:g}, seed {config.seed}"] = failures[
                config.output_dir
            ]
        curves = [read_curve(c.output_dir, c.algorithm.objective) for c in configs if not failed]
        outcome.tuned[rate] = sum(c.mean_value for c in curves) / len(curves) if curves else None
    known = {rate: value for rate, value in outcome.tuned.items() if value is not None}
    outcome.learning_rate = max(known, key=lambda rate: known[rate]) if known else None


def _measure(
    pool: ProcessPoolExecutor, study: Study, outcomes: Sequence[Outcome], progress: Progress
) -> None:
    jobs = [
        (each, _Job(each.cell.config(study.options.seeds[0], each.learning_rate), where))
        for each in outcomes
        if study.options.seeds[0] in each.curves
        for where in study.options.meter
    ]
    failures = _done(pool, [job for _, job in jobs], "gradient variance", progress)
    for outcome, job in jobs:
        if job.result in failures:
            outcome.failures[f"gradient variance, {job.kind}"] = failures[job.result]
        else:
            outcome.meters[job.kind] = json.loads(job.result.read_text(encoding="utf-8"))


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that make runs. Left by an error, they stop after those at hand."""
    pool = ProcessPoolExecutor(jobs, get_context("spawn"))
    try:
        yield pool
    except BrokenProcessPool:
        raise InputError(
            "a process of a run died, of lack of memory perhaps; the same command goes on, with "
            "--compare.jobs 1 if need be"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _done(
    pool: ProcessPoolExecutor, jobs: Sequence[_Job], what: str, progress: Progress
) -> dict[Path, str]:
    """Do all jobs that are not done yet; why some failed, by run folder or result file."""
    waiting: dict[Future[str | None], _Job] = {
        pool.submit(_do, job): job for job in jobs if not job.result.exists()
    }
    done = len(jobs) - len(waiting)
    failures = {}
    if waiting:
        progress(what, done, len(jobs), "")
    for future in as_completed(waiting):
        job, failure = waiting[future], future.result()
        done += 1
        if failure is not None:
            failures[job.config.output_dir if job.kind == "train" else job.result] = failure
        progress(what, done, len(jobs), str(job.config.output_dir))
    return failures


def _do(job: _Job) -> str | None:
    """In a process of the pool: one run or measurement; why it failed."""
    from dibs.run import run_variance
    from dibs.session import run_training

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        view = PlainView(Console(file=nowhere))
        try:
            if job.kind == "train":
                run_training(job.config, view)
                return None
            policy = job.config.policy
            if job.kind == "end":
                model = job.config.output_dir / "model"
                policy = policy.model_copy(update={"model": str(model)})
            config = job.config.model_copy(update={"policy": policy})
            write_json(job.result, run_variance(config, view))
        except InputError as error:
            return str(error)
    return None


def _warm_up(study: Study, progress: Progress) -> None:
    """Starting policies of embedded tasks, made once before the processes all ask for them."""
    from dibs.run import starting_policy

    class Told(PlainView):
        def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
            progress(what, done, total, note)

    policies = {
        cell.config(0).policy.model_dump_json(): cell.config(0).policy for cell in study.cells
    }
    for policy in policies.values():
        starting_policy(policy, Told(Console(file=sys.stderr)))


def _jobs(study: Study) -> int:
    import torch

    devices = {cell.config(0).policy.device for cell in study.cells}
    if torch.cuda.is_available() and devices != {"cpu"}:
        return 1
    threads = max(cell.config(0).policy.threads or 1 for cell in study.cells)
    return max(1, (os.cpu_count() or 1) // threads)
