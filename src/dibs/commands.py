"""What each command of ``dibs`` does: read the configuration, call, print.

What takes seconds to import waits until the configuration is known to be good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dibs.allocation.allocators import solve
from dibs.allocation.problem import Bounds, Penalty, pose, spendable
from dibs.allocation.statistics_file import count_lines, read_statistics
from dibs.allocation.target import Target
from dibs.config import BENCHMARKS
from dibs.config.load import load_config
from dibs.runs.room import check_samples
from dibs.types import InputError, Verdict, counted

if TYPE_CHECKING:
    from rich.console import Console


def _console(**options: Any) -> Console:
    """A terminal of rich, which takes time to import."""
    from rich.console import Console

    return Console(**options)


def train(path: Path | None, overrides: Mapping[str, str]) -> None:
    """Train, draw the figures, and print one line that sums the run up."""
    config = load_config(path, overrides)
    # Loading torch takes seconds; a bad configuration should not wait for it.
    from dibs.processes import joined_processes
    from dibs.report.figures import draw_figures
    from dibs.runs.console import view_for
    from dibs.runs.train_run import run_training

    with joined_processes() as processes:
        console = _console(quiet=not processes.main)
        with closing(view_for(console)) as view:
            summary = run_training(config, view, processes)
            if processes.main:
                view.phase("drawing figures")
                arm = {config.allocate.allocator: config.output_dir}
                draw_figures(arm, config.output_dir / "figures")
    if not processes.main:
        return
    before, accuracy, low, high = (
        "unknown" if summary[f"accuracy_{key}"] is None else f"{summary[f'accuracy_{key}']:.3f}"
        for key in ("before", "after", "after_low", "after_high")
    )
    console.print(
        f"accuracy {before} -> {accuracy} (95% {low} to {high}), "
        f"{counted(summary['optimizer_updates'], 'update')}, {counted(summary['rollouts'], 'rollout')} "
        f"({summary['pilot_rollouts']:,} of them pilots), {summary['wall_seconds']:.0f} s; "
        f"wrote {config.output_dir}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def variance(path: Path | None, overrides: Mapping[str, str], as_json: bool, shapes: bool) -> None:
    """Measure the gradient's variance, and print a table or JSON."""
    config = load_config(path, overrides)
    from dibs.report.terminal import (
        estimator_table,
        shapes_advice,
        shapes_table,
        shapes_title,
        steps_findings,
        steps_table,
        steps_title,
        variance_findings,
        variance_table,
        variance_title,
    )
    from dibs.runs.console import view_for

    # Progress goes elsewhere, so that the result can be piped.
    with closing(view_for(_console(stderr=True))) as view:
        view.message(f"Loading {config.policy.model}")
        # It loads torch, which takes seconds.
        from dibs.runs.measure_variance import run_variance

        result = run_variance(config, view, shapes=shapes)
    if as_json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return
    console = _console()
    if "steps" in result:
        console.print(steps_title(result), markup=False, highlight=False)
        console.print(steps_table(result), highlight=False)
        for sentence in steps_findings(result):
            console.print(sentence, markup=False, highlight=False)
        return
    console.print(variance_title(result), markup=False, highlight=False)
    console.print(variance_table(result), highlight=False)
    console.print(estimator_table(result), highlight=False)
    for sentence in variance_findings(result):
        console.print(sentence, markup=False, highlight=False)
    if shapes:
        console.print()
        console.print(shapes_title(result["shapes"]), markup=False, highlight=False)
        console.print(shapes_table(result["shapes"]), highlight=False)
        console.print(shapes_advice(result), markup=False, highlight=False)


def compare(
    paths: Sequence[Path], overrides: Mapping[str, str], dry_run: bool, as_json: bool
) -> None:
    """Make the runs of a study and print its tables; with ``dry_run``, only list the runs."""
    if len(paths) == 1 and paths[0].is_dir():
        if overrides or dry_run:
            raise InputError(
                f"{paths[0]}: the curves of a folder are only compared; give no other option"
            )
        from dibs.study.compare import compare_again

        _print_comparison(compare_again(paths[0]), as_json)
        return
    from dibs.study.matrix import read_study

    study = read_study(paths, overrides)
    if dry_run:
        from dibs.study.forecast import forecast, timing_command
        from dibs.study.make_runs import side_by_side
        from dibs.study.result_tables import matrix_table

        console = _console()
        console.print(matrix_table(study), highlight=False)
        timing = timing_command(study, paths, overrides)
        sentence = forecast(study).sentence(side_by_side(study), timing)
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        return
    from dibs.runs.console import view_for
    from dibs.study.compare import compare

    with closing(view_for(_console(stderr=True))) as view:
        rows = compare(study, view)
    _print_comparison(rows, as_json)
    if not as_json:
        print(f"Wrote {study.options.output_dir}")


def _print_comparison(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    from dibs.study.result_tables import EXPLANATION, failures, result_tables

    if as_json:
        print(json.dumps(rows, indent=1, allow_nan=False))
        return
    console = _console()
    for table in result_tables(rows):
        console.print(table, highlight=False)
        console.print()
    for text in (EXPLANATION, *failures(rows)):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def data(path: Path | None, overrides: Mapping[str, str], as_json: bool) -> None:
    """Print what a run would train on."""
    config = load_config(path, overrides)
    from dibs.report.terminal import data_lines
    from dibs.runs.describe_data import describe_data

    found = describe_data(config)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for line in data_lines(found):
        print(line)


def sources_of(benchmarks: Sequence[str], files: Sequence[str]) -> list[str]:
    """What to evaluate on, each once. InputError for an unknown benchmark, or nothing at all."""
    names = [each for name in benchmarks for each in (BENCHMARKS if name == "all" else (name,))]
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}, all")
    sources = list(dict.fromkeys([*names, *files]))
    if not sources:
        raise InputError("nothing to evaluate on; give --benchmark NAME or --data FILE")
    return sources


def evaluate(
    models: Sequence[str],
    sources: Sequence[str],
    overrides: Mapping[str, str],
    k_of_samples: tuple[int, int],
    out: Path | None,
    as_json: bool,
    form: str | None,
) -> None:
    """Evaluate one model, or two and their difference, and print a table or JSON.

    ``form``: a format of another tool, for ``out`` and JSON. InputError unless 1 <= k <= samples.
    """
    k, samples = k_of_samples
    check_samples(k, samples)
    configs = [
        load_config(None, {"policy.model": model, "data.template": "boxed", **overrides})
        for model in models
    ]
    from dibs.report import terminal
    from dibs.report.result_formats import format_named, write_as
    from dibs.runs.console import view_for
    from dibs.runs.evaluation import run_evaluation
    from dibs.runs.paired_evaluation import run_pair

    formed = None if form is None else format_named(form)
    if formed is not None and out is None and not as_json:
        raise InputError(f"--format {form} needs --out FOLDER or --json")
    with closing(view_for(_console(stderr=True))) as view:
        if len(configs) == 1:
            results = {"a": run_evaluation(configs[0], sources, k, samples, out, view)}
        else:
            results = run_pair((configs[0], configs[1]), sources, k_of_samples, out, view)
    alone = [each for name, each in results.items() if name != "difference"]
    written = [] if form is None or out is None else [write_as(each, form, out) for each in alone]
    if as_json:
        shown = {n: e if n == "difference" else (formed or dict)(e) for n, e in results.items()}
        print(json.dumps(shown if len(alone) > 1 else shown["a"], indent=1, allow_nan=False))
        return
    console = _console()
    for each in alone:
        console.print(terminal.evaluation_table(each), highlight=False)
        for note in terminal.evaluation_notes(each):
            console.print(note, markup=False, highlight=False)
    if "difference" in results:
        console.print()
        console.print(terminal.difference_table(results), highlight=False)
        for note in terminal.difference_notes(results):
            console.print(note, markup=False, highlight=False)
    for path in written:
        console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)


def verify(
    file: Path, overrides: Mapping[str, str], out: Path | None, as_json: bool, explain: bool
) -> None:
    """Judge the completions of a file, and print counts of the verdicts; ``explain``: each, too."""
    config = load_config(None, overrides).verify
    from dibs.report.terminal import verdict_table
    from dibs.rollouts.verify.verify_file import verify_file

    def show(answer: str, verdict: Verdict) -> None:
        print(f"{verdict.status}\t{' '.join(answer.split())[:40]}\t{verdict.reason}")

    console = _console(stderr=True)
    counts = verify_file(file, config, out, console, show if explain else None)
    if as_json:
        print(json.dumps(counts))
    else:
        _console().print(verdict_table(counts), highlight=False)


def report(runs: Sequence[Path], folder: Path | None, watch: float | None, as_json: bool) -> None:
    """Write a report once, or every ``watch`` seconds (1 to 86,400) until all runs have finished."""
    if watch is not None and not 1 <= watch <= 86_400:
        raise InputError(f"--watch {watch:g}: give seconds from 1 to 86400")
    from dibs.report.write import default_folder, report_lines, watch_report, write_report

    def show(written: Mapping[str, Any]) -> None:
        for line in () if as_json else report_lines(written):
            print(line, flush=True)

    out = folder or default_folder(runs)
    written = write_report(runs, out) if watch is None else watch_report(runs, out, watch, show)
    show(written)
    if as_json:
        print(json.dumps(written, indent=1, allow_nan=False))


def push(
    folder: Path,
    repo: str,
    *,
    private: bool,
    with_completions: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload a run's model and card; with ``dry_run``, print the card and the files that would go."""
    from dibs.sharing.push import prepare
    from dibs.sharing.push import push as send

    share = prepare(folder, repo, with_completions)
    if dry_run:
        if as_json:
            print(json.dumps({"card": share.card, **share.described()}, indent=1))
            return
        print(share.card)
        for each in share.files:
            print(f"{each.size:>14,}  {each.name}")
        return
    result = send(share, repo, private)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    size = result["bytes"] / 1e6
    print(f"{counted(len(share.files), 'file')}, {size:,.1f} MB, are at {result['url']}")


def allocate(
    stats: str,
    amounts: tuple[int | None, float | None],
    allocator: str,
    *,
    lower: int,
    upper: int | None,
    objective: str,
    baseline: str | None,
    order: int | None,
    accept_rate_penalty: float,
    accept_rate_power: float,
) -> None:
    """Print the counts of prompts whose statistics a file holds.

    Args:
        amounts: completions in all, and tokens in all; one of them is None.
        lower, upper, objective, baseline, order, accept_rate_penalty, accept_rate_power: as for
            :func:`dibs.allocate`.
    """
    rows = read_statistics(stats)
    problem = pose(
        rows,
        spendable(rows, *amounts),
        Target.named(objective, baseline, order),
        bounds=Bounds(lower, upper),
        penalty=Penalty(accept_rate_penalty, accept_rate_power),
    )
    for line in count_lines(solve(problem, allocator)):
        print(line)
