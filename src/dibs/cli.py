"""The ``dibs`` command: parse, build, call. The only place that prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from dibs.allocation.allocators import solve
from dibs.allocation.problem import pose, spendable
from dibs.allocation.statistics_file import count_lines, read_statistics
from dibs.arguments import CONFIGURED, VERIFY_OPTIONS, build_parser
from dibs.config import BENCHMARKS
from dibs.config.load import load_config, split_config, split_configs
from dibs.study.matrix import read_study
from dibs.types import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 well, 2 bad input, 130 interrupted."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (*CONFIGURED, "compare", "eval"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "train":
            _train(*split_config(rest))
        elif options.command == "variance":
            _variance(*split_config(rest), options.json)
        elif options.command == "data":
            _data(*split_config(rest), options.json)
        elif options.command == "compare":
            _compare(*split_configs(rest), options)
        elif options.command == "eval":
            _evaluate(options, *split_config(rest))
        elif options.command == "verify":
            _verify(options)
        elif options.command == "report":
            _report(options)
        else:
            _allocate(options)
    except InputError as error:
        who = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""
        print(f"dibs {options.command}: {who}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dibs {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _train(path: Path | None, overrides: Mapping[str, str]) -> None:
    config = load_config(path, overrides)
    # Loading torch takes seconds; a bad configuration should not wait for it.
    from dibs.processes import joined_processes
    from dibs.report.figures import draw_figures
    from dibs.runs.console import view_for
    from dibs.runs.train_run import run_training

    with joined_processes() as processes:
        console = Console(quiet=not processes.main)
        with closing(view_for(console)) as view:
            summary = run_training(config, view, processes)
            if processes.main:
                view.phase("drawing figures")
                arm = {config.allocate.allocator: config.output_dir}
                draw_figures(arm, config.output_dir / "figures")
    if not processes.main:
        return
    console.print(
        f"accuracy {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f} "
        f"(95% {summary['accuracy_after_low']:.3f} to {summary['accuracy_after_high']:.3f}), "
        f"{summary['optimizer_updates']} updates, {summary['rollouts']:,} rollouts "
        f"({summary['pilot_rollouts']:,} of them pilots), {summary['wall_seconds']:.0f} s; "
        f"wrote {config.output_dir}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _variance(path: Path | None, overrides: Mapping[str, str], as_json: bool) -> None:
    config = load_config(path, overrides)
    from dibs.report.terminal import variance_findings, variance_table, variance_title
    from dibs.runs.console import view_for
    from dibs.runs.measure_variance import run_variance

    # Progress goes elsewhere, so that the result can be piped.
    with closing(view_for(Console(stderr=True))) as view:
        result = run_variance(config, view)
    if as_json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return
    console = Console()
    console.print(variance_title(result), markup=False, highlight=False)
    console.print(variance_table(result), highlight=False)
    for sentence in variance_findings(result):
        console.print(sentence, markup=False, highlight=False)


def _compare(
    paths: Sequence[Path], overrides: Mapping[str, str], options: argparse.Namespace
) -> None:
    study = read_study(paths, overrides)
    from dibs.study.result_tables import EXPLANATION, failures, matrix_table, result_tables

    console = Console()
    if options.dry_run:
        console.print(matrix_table(study), highlight=False)
        return
    from dibs.runs.console import view_for
    from dibs.study.compare import compare

    with closing(view_for(Console(stderr=True))) as view:
        rows = compare(study, view)
    if options.json:
        print(json.dumps(rows, indent=1, allow_nan=False))
        return
    for table in result_tables(rows):
        console.print(table, highlight=False)
        console.print()
    for text in (EXPLANATION, *failures(rows), f"Wrote {study.options.output_dir}"):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _data(path: Path | None, overrides: Mapping[str, str], as_json: bool) -> None:
    config = load_config(path, overrides)
    from dibs.report.terminal import data_lines
    from dibs.runs.describe_data import describe_data

    found = describe_data(config)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for line in data_lines(found):
        print(line)


def _evaluate(options: argparse.Namespace, path: Path | None, overrides: Mapping[str, str]) -> None:
    if path is not None:
        raise InputError(f"unexpected {str(path)!r}; give one MODEL, and files with --data")
    names = [
        each for name in options.benchmark for each in (BENCHMARKS if name == "all" else (name,))
    ]
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}, all")
    sources = list(dict.fromkeys([*names, *options.data]))
    if not sources:
        raise InputError("nothing to evaluate on; give --benchmark NAME or --data FILE")
    samples = options.k if options.samples is None else options.samples
    if not 1 <= options.k <= samples:
        raise InputError(f"k is {options.k} and there are {samples} samples; 1 <= k <= samples")
    config = load_config(
        None, {"policy.model": options.model, "data.template": "boxed", **overrides}
    )
    from dibs.report.terminal import evaluation_notes, evaluation_table
    from dibs.runs.console import view_for
    from dibs.runs.evaluation import run_evaluation

    with closing(view_for(Console(stderr=True))) as view:
        result = run_evaluation(config, sources, options.k, samples, options.out, view)
    if options.json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return
    console = Console()
    console.print(evaluation_table(result), highlight=False)
    for note in evaluation_notes(result):
        console.print(note, markup=False, highlight=False)


def _verify(options: argparse.Namespace) -> None:
    given = {key: getattr(options, name.replace("-", "_")) for name, key in VERIFY_OPTIONS.items()}
    overrides = {f"verify.{key}": text for key, text in given.items() if text is not None}
    config = load_config(None, {"verify.verifier": "math", **overrides}).verify
    from dibs.report.terminal import verdict_table
    from dibs.rollouts.verify.verify_file import verify_file

    counts = verify_file(options.file, config, options.out, Console(stderr=True))
    if options.json:
        print(json.dumps(counts))
    else:
        Console().print(verdict_table(counts), highlight=False)


def _report(options: argparse.Namespace) -> None:
    if options.watch is not None and not 1 <= options.watch <= 86_400:
        raise InputError(f"--watch {options.watch:g}: give seconds from 1 to 86400")
    from dibs.report.write import default_folder, report_lines, watch_report, write_report

    def show(written: Mapping[str, Any]) -> None:
        for line in () if options.json else report_lines(written):
            print(line, flush=True)

    out = options.out or default_folder(options.runs)
    if options.watch is None:
        written = write_report(options.runs, out)
    else:
        written = watch_report(options.runs, out, options.watch, show)
    show(written)
    if options.json:
        print(json.dumps(written, indent=1, allow_nan=False))


def _allocate(options: argparse.Namespace) -> None:
    stats = read_statistics(options.stats)
    budget, cost = spendable(stats, options.budget, options.token_budget)
    problem = pose(
        stats,
        budget,
        cost=cost,
        lower=options.lower,
        upper=options.upper,
        objective=options.objective,
        baseline=options.baseline,
        accept_rate_penalty=options.accept_rate_penalty,
        accept_rate_power=options.accept_rate_power,
    )
    allocation = solve(problem, options.allocator)
    for line in count_lines(allocation):
        print(line)


if __name__ == "__main__":
    raise SystemExit(main())
