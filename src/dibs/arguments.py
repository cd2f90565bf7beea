"""How commands read their words: options, configuration keys beside them, and errors of one line.

Loads nothing that takes time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dibs.allocation.target import BASELINES
from dibs.config import BENCHMARKS, VerifyConfig
from dibs.config.key_help import keys_help
from dibs.types import ElsewhereError, InputError, printable

_OF_SAMPLED = ("failures", "require_end")
VERIFY_KEYS = tuple(name for name in VerifyConfig.model_fields if name not in _OF_SAMPLED)
"""Keys that are options of ``dibs verify``; the others are about completions as they are sampled."""
_KEYS_TITLE = (
    "Configuration keys. CONFIG holds them nested, in YAML; on the command line they are dotted, as\n"
    "--section.key VALUE or --section.key=VALUE, and win over CONFIG."
)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Penalty = Annotated[
    float,
    typer.Option(
        help="Alpha of GVM, for log_likelihood: raise it to give fewer completions to prompts that "
        "are hardly ever solved."
    ),
]
TokenBudget = Annotated[
    float | None,
    typer.Option(
        metavar="TOKENS",
        help="Tokens to spread over all prompts, in place of --budget: mean_tokens gives the "
        "expected length, and prompts with short completions get more of them.",
    ),
]
ObjectiveName = Annotated[
    str,
    typer.Option(
        metavar="|".join(BASELINES), help="Objective whose gradient min_variance allocates for."
    ),
]
BaselineName = Annotated[
    str | None,
    typer.Option(
        metavar="none|mean|leave_one_out",
        help="Baseline subtracted from a prompt's rewards.",
        show_default="the first that the objective has",
    ),
]

BenchmarkNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        show_default=False,
        help=f"Benchmark to evaluate on: {', '.join(BENCHMARKS)}, or all. May be repeated.",
    ),
]
DataFiles = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="File of questions and answers to evaluate on. May be repeated.",
    ),
]
SampleCount = Annotated[
    int | None,
    typer.Option(help="Completions drawn for each prompt, at least k.", show_default="k"),
]
ResultFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="lm-eval|lighteval",
        show_default=False,
        help="Format of another tool in which --out and --json also give the results.",
    ),
]


def report_error(command: str, message: object) -> None:
    """Print an error as one line; processes other than the first name themselves."""
    who = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""
    print(f"{command}: {who}{printable(message)}", file=sys.stderr)


class Command(TyperCommand):
    """A command whose result is the exit status: 0 well, 2 bad input, 130 interrupted."""

    keys_usage = ""
    """How the usage line shows that keys of the configuration may follow."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments first, then options, then keys."""
        parameters: list[Any] = self.get_params(ctx)
        arguments = [each.metavar for each in parameters if not each.opts[0].startswith("-")]
        return [*arguments, "[OPTIONS]", *([self.keys_usage] if self.keys_usage else [])]

    def invoke(self, ctx: Any) -> int:
        """Run the command."""
        try:
            super().invoke(ctx)
        except InputError as error:
            report_error(ctx.command_path, error)
            return 2
        except ElsewhereError:
            return 2
        except KeyboardInterrupt:
            report_error(ctx.command_path, "interrupted")
            return 130
        except BrokenPipeError:
            # The reader of our output is gone; Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return 0


class KeysCommand(Command):
    """A command that takes configuration keys besides its options; ``ctx.args`` holds their words."""

    keys_usage = "[--section.key VALUE ...]"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command's own words, and leave those of keys as they are."""
        own, keys = self._split(ctx, args)
        super().parse_args(ctx, own)
        ctx.args = [*ctx.args, *keys]
        return list(ctx.args)

    def _split(self, ctx: Any, args: Iterable[str]) -> tuple[list[str], list[str]]:
        """Own options, with their values, and positional words; keys with theirs."""
        options: dict[str, bool] = {
            name: not getattr(option, "is_flag", False)
            for option in self.get_params(ctx)
            for name in option.opts
            if name.startswith("--")
        }
        own: list[str] = []
        keys: list[str] = []
        words = list(args)
        while words:
            word = words.pop(0)
            name, equals, _ = word.partition("=")
            is_key = word.startswith("--") and name not in options
            part = keys if is_key else own
            part.append(word)
            if not word.startswith("--") or equals or not words:
                continue
            if options.get(name, not words[0].startswith("--")):
                part.append(words.pop(0))
        return own, keys

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the keys below the options."""
        formatter.write(f"\n{_KEYS_TITLE}\n\n{self._keys(formatter.width)}\n")

    def _keys(self, width: int) -> str:
        return keys_help(width=width)


class CompareCommand(KeysCommand):
    """Takes the keys of a study before those of a run."""

    def _keys(self, width: int) -> str:
        from dibs.study.matrix import CompareConfig

        study = keys_help(CompareConfig, "compare.", width=width)
        return f"{study}\n\n{super()._keys(width)}"


class EvalCommand(KeysCommand):
    """Points to where the keys are listed: few of them matter here."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write where the keys are listed."""
        formatter.write(
            "\nKeys of the configuration follow as --section.key VALUE; those of the sections policy,\n"
            "data, verify and sampling are of use here. dibs train --help lists them.\n"
        )


class VerifyCommand(KeysCommand):
    """Takes the keys of the section ``verify`` as options, with dashes."""

    keys_usage = ""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the options that are keys of the section; here the verifier is math by default."""
        text = keys_help(VerifyConfig, width=formatter.width, only=VERIFY_KEYS)
        for key in VERIFY_KEYS:
            text = text.replace(f"--{key} ", f"--{key.replace('_', '-')} ")
        text = text.replace("(default: auto)", "(default: math)")
        formatter.write(f"\n{text}\n")


class ReportCommand(Command):
    """Lets ``--watch`` stand without a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--watch`` its 10 seconds where no number follows."""
        words: list[str] = []
        for i, word in enumerate(args):
            words.append(word)
            if word == "--watch" and not _is_number(" ".join(args[i + 1 : i + 2])):
                words.append("10")
        return super().parse_args(ctx, words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
