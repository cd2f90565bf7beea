"""The ``dibs`` command: parse, build, call. The only place that prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from dibs import __version__
from dibs.allocate import ALLOCATORS, pose, solve, spendable
from dibs.config_file import config_keys, load_config, split_config
from dibs.objectives import BASELINES
from dibs.statistics_file import count_lines, read_statistics
from dibs.types import InputError

_TRAIN_HELP = """\
Train a policy: estimate, allocate, sample, verify, weigh, update, evaluate.

Writes OUT/metrics.jsonl, OUT/summary.json, figures, checkpoints and the final model, where OUT is
output_dir. CONFIG is a YAML file; without one the embedded task is trained with the defaults."""

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

_CONFIGURED = {"train": _TRAIN_HELP, "variance": _VARIANCE_HELP}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 well, 2 bad input, 130 interrupted."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in _CONFIGURED:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "train":
            _train(*split_config(rest))
        elif options.command == "variance":
            _variance(*split_config(rest), options.json)
        else:
            _allocate(options)
    except InputError as error:
        print(f"dibs {options.command}: {error}", file=sys.stderr)
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
            + (" [--json]" if name == "variance" else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for name, text in _CONFIGURED.items()
    }
    configured["variance"].add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )

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


def _keys_help() -> str:
    lines = ["configuration keys, for CONFIG (nested) and the command line (dotted):"]
    for key, default, description in config_keys():
        shown = "null" if default is None else default
        lines.append(f"  --{key} (default: {shown})\n        {description}")
    return "\n".join(lines).replace("%", "%%")


def _train(path: Path | None, overrides: Mapping[str, str]) -> None:
    config = load_config(path, overrides)
    # Loading torch takes seconds; a bad configuration should not wait for it.
    from dibs.report.views import view_for
    from dibs.run import run_training

    console = Console()
    with closing(view_for(console)) as view:
        summary = run_training(config, view)
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
