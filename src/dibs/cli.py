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

from dibs import __version__
from dibs.allocate import ALLOCATORS, pose, solve, spendable
from dibs.config import BENCHMARKS, VerifyConfig
from dibs.config_file import config_keys, load_config, split_config, split_configs
from dibs.objectives import BASELINES
from dibs.report.arguments import add_report
from dibs.statistics_file import count_lines, read_statistics
from dibs.study.matrix import CompareConfig, read_study
from dibs.types import InputError

_TRAIN_HELP = """\
Train a policy: estimate, allocate, sample, verify, weigh, update, evaluate.

Writes OUT/metrics.jsonl, OUT/summary.json, figures, checkpoints and the final model, where OUT is
output_dir. CONFIG is a YAML file; without one the embedded task is trained with the defaults. On K
devices of one machine: torchrun --nproc_per_node K -m dibs train CONFIG ..."""

_ALLOCATE_HELP = """\
Spread a budget of completions over prompts.

STATS holds one JSON object a line: prompt_id, trials, successes and grad_norm (mean gradient norm of
the accepted completions; may be null where successes is 0), and optionally grad_norm_rejected and
mean_tokens. Prints one {"prompt_id", "count"} a line, in input order; the counts sum to the budget, or
are expected to take --token-budget tokens at most."""


_VARIANCE_HELP = """\
Measure how noisy the gradient is, and what counts can do about it.

Samples completions of one step's prompts from the configured policy and compares uniform counts, the
configured allocator (seeing pilots only) and an oracle, at the same budget: variance of the gradient,
gain over uniform a rollout and a token (pilots counted), achievable gain, captured share, gradient noise
scale. CONFIG is that of dibs train; nothing is written. See the keys variance.* below."""

_JSON_HELP = "print one JSON object and nothing else"
_VERIFY_OPTIONS = {
    "verifier": "verifier",
    "answer-from": "answer_from",
    "timeout": "timeout",
    "workers": "workers",
    "memory-limit": "memory_limit",
    "tolerance": "tolerance",
    "accept-threshold": "accept_threshold",
}
"""Options of dibs verify and the keys of the configuration they set."""

_DATA_HELP = """\
Show what would be trained on: counts, lengths, five rendered prompts, dropped rows and why.

CONFIG is that of dibs train; only the policy's tokenizer is loaded."""

_EVAL_HELP = """\
Evaluate a model on benchmarks: avg@k, pass@k (unbiased) and maj@k, with 95% intervals.

MODEL is a Hugging Face id or folder, or an embedded task. With --out each part is kept as it is done,
and the same command goes on where it stopped. Keys of the configuration follow as --section.key VALUE,
such as --sampling.max_completion_length 3072; the template is boxed unless given."""

_VERIFY_HELP = """\
Judge completions against gold answers.

FILE holds one JSON object a line with completion and answer. Prints how many were accepted, rejected,
without an answer, out of time (timeout) or beyond judging (error). --out writes one verdict a line, in
order: reward (null where there is none), status and reason."""

_COMPARE_HELP = """\
Compare algorithms x allocators x learning rates x seeds at equal optimizer updates, pilots counted.

CONFIG is a study: keys of dibs train, and under compare the matrix (see studies/). Several CONFIGs of
dibs train are an arm each; a single one is compared with itself under uniform counts. Every arm's
learning rate is chosen on the same grid by runs that do nothing else. Writes results.json, results.md,
figures and all runs to compare.output_dir; the same command goes on where it stopped."""

_CONFIGURED = {"train": _TRAIN_HELP, "variance": _VARIANCE_HELP, "data": _DATA_HELP}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 well, 2 bad input, 130 interrupted."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (*_CONFIGURED, "compare", "eval"):
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dibs", description="Decide how many completions each prompt deserves, and train."
    )
    parser.add_argument("--version", action="version", version=f"dibs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    configured = {
        name: commands.add_parser(
            name,
            help=text.partition("\n")[0].partition(":")[0].rstrip(".").lower(),
            description=text,
            epilog=_keys_help(),
            usage=f"dibs {name} [CONFIG] [--section.key VALUE ...]"
            + (" [--json]" if name != "train" else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for name, text in _CONFIGURED.items()
    }
    for name in ("variance", "data"):
        configured[name].add_argument("--json", action="store_true", help=_JSON_HELP)

    compare = commands.add_parser(
        "compare",
        help="arms of an experiment at equal updates, pilots counted",
        description=_COMPARE_HELP,
        epilog=_keys_help(config_keys(CompareConfig, "compare.")),
        usage="dibs compare CONFIG... [--dry-run] [--json] [--section.key VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    compare.add_argument("--dry-run", action="store_true", help="show the runs and make none")
    compare.add_argument("--json", action="store_true", help=_JSON_HELP)

    evaluate = commands.add_parser(
        "eval",
        help="evaluate a model on benchmarks",
        description=_EVAL_HELP,
        usage="dibs eval MODEL [--benchmark NAME ...] [--data FILE ...] [--k K] "
        "[--section.key VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    evaluate.add_argument("model", metavar="MODEL")
    evaluate.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}, or all; may be repeated",
    )
    evaluate.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="a file of questions and answers",
    )
    evaluate.add_argument("--k", type=int, default=1, help="of avg@k, pass@k, maj@k (default: 1)")
    evaluate.add_argument(
        "--samples", type=int, help="completions a prompt, at least k (default: k)"
    )
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="keep results here; resumable")
    evaluate.add_argument("--json", action="store_true", help=_JSON_HELP)

    verify = commands.add_parser(
        "verify",
        help="judge completions against gold answers",
        description=_VERIFY_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verify.add_argument("file", metavar="FILE", type=Path)
    verify.add_argument("--json", action="store_true", help=_JSON_HELP)
    verify.add_argument("--out", type=Path, metavar="VERDICTS", help="write verdicts to this file")
    for name, key in _VERIFY_OPTIONS.items():
        field = VerifyConfig.model_fields[key]
        default = "math" if key == "verifier" else field.default
        verify.add_argument(
            f"--{name}",
            metavar="VALUE",
            help=f"{field.description} (default: {default})".replace("%", "%%"),
        )

    add_report(commands, _JSON_HELP)

    allocate = commands.add_parser(
        "allocate",
        help="prompt statistics in, sample counts out",
        description=_ALLOCATE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    allocate.add_argument("stats", metavar="STATS", help="JSON Lines file, or - for standard input")
    amount = allocate.add_mutually_exclusive_group(required=True)
    amount.add_argument("--budget", type=int, help="completions in all")
    amount.add_argument(
        "--token-budget",
        type=float,
        metavar="TOKENS",
        help="tokens in all, as far as mean_tokens tells; prompts with short completions get more",
    )
    allocate.add_argument(
        "--allocator",
        default="min_variance",
        help=f"{', '.join(sorted(ALLOCATORS))}, or your own function as module:function "
        "(default: min_variance)",
    )
    allocate.add_argument(
        "--objective",
        default="log_likelihood",
        choices=BASELINES,
        help="target that min_variance allocates for (default: log_likelihood)",
    )
    allocate.add_argument(
        "--baseline", help="none, mean or leave_one_out (default: the first the objective has)"
    )
    allocate.add_argument("--lower", type=int, default=0, help="fewest a prompt (default: 0)")
    allocate.add_argument("--upper", type=int, help="most a prompt (default: no limit)")
    allocate.add_argument(
        "--accept-rate-penalty",
        type=float,
        default=1e-3,
        help="GVM's alpha: gives prompts without hope less, for log_likelihood (default: 0.001)",
    )
    allocate.add_argument(
        "--accept-rate-power", type=float, default=2.0, help="GVM's beta (default: 2)"
    )
    return parser


def _keys_help(more: Sequence[tuple[str, Any, str]] = ()) -> str:
    lines = ["configuration keys, for CONFIG (nested) and the command line (dotted):"]
    for key, default, description in [*more, *config_keys()]:
        shown = "null" if default is None else default
        lines.append(f"  --{key} (default: {shown})\n        {description}")
    return "\n".join(lines).replace("%", "%%")


def _train(path: Path | None, overrides: Mapping[str, str]) -> None:
    config = load_config(path, overrides)
    # Loading torch takes seconds; a bad configuration should not wait for it.
    from dibs.processes import joined_processes
    from dibs.report.views import view_for
    from dibs.session import run_training

    with joined_processes() as processes:
        console = Console(quiet=not processes.main)
        with closing(view_for(console)) as view:
            summary = run_training(config, view, processes)
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
    from dibs.report.meter import variance_findings, variance_table, variance_title
    from dibs.report.views import view_for
    from dibs.run import run_variance

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
    from dibs.study.report import EXPLANATION, failures, matrix_table, result_tables

    console = Console()
    if options.dry_run:
        console.print(matrix_table(study), highlight=False)
        return
    from dibs.report.views import view_for
    from dibs.study.session import compare

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
    from dibs.report.evaluation import data_lines
    from dibs.run import describe_data

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
    from dibs.report.evaluation import evaluation_notes, evaluation_table
    from dibs.report.views import view_for
    from dibs.run import run_evaluation

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
    given = {key: getattr(options, name.replace("-", "_")) for name, key in _VERIFY_OPTIONS.items()}
    overrides = {f"verify.{key}": text for key, text in given.items() if text is not None}
    config = load_config(None, {"verify.verifier": "math", **overrides}).verify
    from dibs.report.evaluation import verdict_table
    from dibs.verify.files import verify_file

    counts = verify_file(options.file, config, options.out, Console(stderr=True))
    if options.json:
        print(json.dumps(counts))
    else:
        Console().print(verdict_table(counts), highlight=False)


def _report(options: argparse.Namespace) -> None:
    if options.watch is not None and not 1 <= options.watch <= 86_400:
        raise InputError(f"--watch {options.watch:g}: give seconds from 1 to 86400")
    from dibs.report.build import default_folder, report_lines, watch_report, write_report

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
