"""The arguments and help texts of every command. Loads nothing that takes time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dibs import __version__
from dibs.allocation.allocators import ALLOCATORS
from dibs.allocation.objectives import BASELINES
from dibs.config import BENCHMARKS, VerifyConfig
from dibs.config.load import config_keys
from dibs.study.matrix import CompareConfig

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
VERIFY_OPTIONS = {
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

CONFIGURED = {"train": _TRAIN_HELP, "variance": _VARIANCE_HELP, "data": _DATA_HELP}
"""Commands that take a configuration of ``dibs train``, and their help."""

_REPORT_HELP = """\
Figures and one HTML page from run folders, or folders of them: finished, unfinished or damaged.

Writes FOLDER/index.html, which needs nothing but itself, and FOLDER/figures. Runs that differ in the
seed only are one arm, with intervals over seeds."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; it leaves keys of the configuration to ``dibs.config.load``."""
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
        for name, text in CONFIGURED.items()
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
    for name, key in VERIFY_OPTIONS.items():
        field = VerifyConfig.model_fields[key]
        default = "math" if key == "verifier" else field.default
        verify.add_argument(
            f"--{name}",
            metavar="VALUE",
            help=f"{field.description} (default: {default})".replace("%", "%%"),
        )

    _add_report(commands)

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


def _add_report(commands: Any) -> None:
    """Add the command to argparse's ``commands``: runs, out, watch (None without it) and json."""
    report = commands.add_parser(
        "report",
        help="figures and one HTML page from run folders",
        description=_REPORT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    report.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    report.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="where to write (default: RUN/report; of several: report)",
    )
    report.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        nargs="?",
        const=10.0,
        help="write anew every so many seconds (default: 10) until all runs are finished",
    )
    report.add_argument("--json", action="store_true", help=_JSON_HELP)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; put --watch after RUN") from None


def _keys_help(more: Sequence[tuple[str, Any, str]] = ()) -> str:
    lines = ["configuration keys, for CONFIG (nested) and the command line (dotted):"]
    for key, default, description in [*more, *config_keys()]:
        shown = "null" if default is None else default
        lines.append(f"  --{key} (default: {shown})\n        {description}")
    return "\n".join(lines).replace("%", "%%")
