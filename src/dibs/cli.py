"""The ``dibs`` command: its subcommands and their options. ``dibs.commands`` does the work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from dibs import __version__, commands
from dibs.allocation.allocators import ALLOCATORS
from dibs.arguments import (
    VERIFY_KEYS,
    BaselineName,
    BenchmarkNames,
    Command,
    CompareCommand,
    DataFiles,
    EvalCommand,
    Json,
    KeysCommand,
    ObjectiveName,
    Penalty,
    ReportCommand,
    ResultFormat,
    SampleCount,
    TokenBudget,
    VerifyCommand,
    report_error,
)
from dibs.config.load import split_config, split_configs
from dibs.config.wording import worded
from dibs.types import InputError

_USAGE_ERROR: Any = typer.BadParameter.__base__
"""typer's own, or that of click: newer versions of typer bring a copy of click."""
_READS_KEYS = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ConfigFile = Annotated[list[str] | None, typer.Argument(metavar="[CONFIG]", hidden=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 well, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = typer.main.get_command(app).main(words, prog_name="dibs", standalone_mode=False)
    except typer.Abort:
        report_error("dibs", "interrupted")
        return 130
    except _USAGE_ERROR as error:
        # An option without its value has no context.
        name = error.ctx.command_path if error.ctx else f"dibs {words[0]}"
        if isinstance(error.__cause__, ValidationError):  # of newer versions of typer
            error.message = worded(error.__cause__.errors()[0])
        message = error.format_message().rstrip(".")
        report_error(name, f"{message}; see {name} --help")
        return 2
    return status or 0


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dibs {__version__}")
        raise typer.Exit


@app.callback()
def dibs(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train language-model reasoners, and decide how many completions each prompt deserves.

    A first run, some minutes on a CPU: dibs train --output_dir runs/first
    """


@app.command(cls=KeysCommand, context_settings=_READS_KEYS, short_help="Train a policy.")
def train(context: typer.Context, config: ConfigFile = None) -> None:
    """Train a policy: estimate, allocate, sample, verify, weigh, update, evaluate.

    CONFIG is a YAML file of configuration keys. Without one, the defaults train the embedded task.

    Writes metrics.jsonl, summary.json, figures, checkpoints and the final model to output_dir. To
    train on K devices of one machine: torchrun --nproc_per_node K -m dibs train CONFIG ...

    Most runs set these keys: policy.model, data.train, sampling.max_completion_length,
    algorithm.name, allocate.num_generations, train.steps, train.prompts_per_step,
    update.learning_rate and output_dir.
    """
    commands.train(*split_config([*(config or ()), *context.args]))


@app.command(
    cls=KeysCommand,
    context_settings=_READS_KEYS,
    short_help="Measure the noise of the gradient and what counts can save.",
)
def variance(
    context: typer.Context,
    config: ConfigFile = None,
    shapes: Annotated[
        bool,
        typer.Option(
            "--shapes",
            help="Also compare shapes of a step at equal rollouts: more prompts with fewer completions, "
            "counts inside each, prompts and counts together. Ends with one sentence of advice.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how noisy the gradient is, and how much better counts could make it.

    Samples completions of one step's prompts from the configured policy. Compares uniform counts with
    those of the configured allocator, which sees pilots only. Prints the gain in variance of the
    configured estimator's gradient, also for each rollout and each token (pilots counted); what the
    estimator keeps of its target's gradient; the gain that the best counts could reach; and the
    gradient noise scale.

    With allocate.rounds, allocate.keep or select.pool it simulates steps of the rule on the measured
    completions, beside uniform ones: rollouts, noise, and whether they expect the target's gradient.

    CONFIG is that of dibs train. Writes nothing. The keys variance.* below matter most.
    """
    commands.variance(*split_config([*(config or ()), *context.args]), as_json, shapes)


@app.command(
    cls=KeysCommand, context_settings=_READS_KEYS, short_help="Show what a run would train on."
)
def data(context: typer.Context, config: ConfigFile = None, as_json: Json = False) -> None:
    """Show what a run would train on: counts, lengths, five prompts, dropped rows and why.

    CONFIG is that of dibs train. Loads the policy's tokenizer, and not the policy.
    """
    commands.data(*split_config([*(config or ()), *context.args]), as_json)


@app.command(
    cls=CompareCommand,
    context_settings=_READS_KEYS,
    short_help="Compare algorithms and allocators at equal updates.",
)
def compare(
    context: typer.Context,
    config: Annotated[list[str] | None, typer.Argument(metavar="CONFIG...", hidden=True)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs that would be made, and make none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare algorithms, allocators and seeds at equal optimizer updates, pilots counted.

    CONFIG is a study: keys of dibs train, and the matrix under compare (examples are in studies/).
    Several CONFIGs of dibs train become one arm each. A single one is compared with itself under
    uniform counts. Every arm's learning rate is chosen on the same grid, by runs that serve no other
    purpose.

    Writes results.json, results.md, curves.jsonl, figures and all runs to compare.output_dir. The same
    command goes on where it stopped. Given that folder, the command makes no runs: it prints the
    comparison anew from the stored curves.
    """
    commands.compare(*split_configs([*(config or ()), *context.args]), dry_run, as_json)


@app.command(
    "eval",
    cls=EvalCommand,
    context_settings=_READS_KEYS,
    short_help="Evaluate a model on benchmarks.",
)
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", hidden=True)],
    other: Annotated[str | None, typer.Argument(metavar="[OTHER]", hidden=True)] = None,
    benchmark: BenchmarkNames = None,
    data: DataFiles = None,
    k: Annotated[int, typer.Option("--k", help="The k of avg@k, pass@k and maj@k.")] = 1,
    samples: SampleCount = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that keeps the results; the same command goes on where it stopped.",
        ),
    ] = None,
    form: ResultFormat = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on benchmarks: avg@k, pass@k and maj@k, with 95% intervals.

    pass@k is the unbiased estimate from all samples.

    MODEL is a Hugging Face id, the folder of a model, a GGUF file, or an embedded task. Given OTHER
    too, both get the same prompts and seeds, and the differences of OTHER's scores from MODEL's follow,
    with intervals that pair the prompts. The prompt template is boxed unless data.template names
    another.
    """
    path, overrides = split_config(context.args)
    if path is not None:
        raise InputError(f"unexpected {str(path)!r}; give MODEL or two, and files with --data")
    models = [model] if other is None else [model, other]
    sources = commands.sources_of(benchmark or (), data or ())
    drawn = (k, k if samples is None else samples)
    commands.evaluate(models, sources, overrides, drawn, out, as_json, form)


@app.command(cls=VerifyCommand, context_settings=_READS_KEYS)
def verify(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="VERDICTS", help="File to write one verdict a line to, in order."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Print a line for each row first: status, gold answer, and the stage that decided.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge completions against gold answers.

    FILE holds one JSON object a line, with completion and answer.

    Prints how many were accepted, rejected, without an answer, out of time (timeout) or impossible to
    judge (error). A verdict holds reward (null where there is none), status and reason. The reason of
    the verifier math begins with the stage that decided: find, text, choice, read or compare.
    """
    path, given = split_config(context.args)
    if path is not None:
        raise InputError(f"unexpected {str(path)!r}; give one FILE")
    overrides = {"verify.verifier": "math"}
    for option, text in given.items():
        key = option.replace("-", "_")
        if key not in VERIFY_KEYS:
            known = ", ".join(f"--{each.replace('_', '-')}" for each in VERIFY_KEYS)
            raise InputError(f"unknown option --{option}; known: {known}, --out, --explain, --json")
        overrides[f"verify.{key}"] = text
    commands.verify(file, overrides, out, as_json, explain and not as_json)


@app.command(cls=ReportCommand, short_help="Draw figures and one HTML page from run folders.")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", hidden=True)],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to write to.",
            show_default="RUN/report; report for several RUNs",
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="[SECONDS]",
            help="Write again every so many seconds (10 without a number) until all runs have "
            "finished.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw figures and one HTML page from run folders: finished, unfinished or damaged.

    RUN is a run folder, or a folder of them.

    Writes FOLDER/index.html, which needs no other file, and FOLDER/figures. Runs that differ in the
    seed only form one arm, with intervals over seeds.
    """
    commands.report(runs, out, watch, as_json)


@app.command(cls=Command, short_help="Upload a run's model and card to the Hugging Face Hub.")
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True)],
    repo: Annotated[str, typer.Argument(metavar="REPO", hidden=True)],
    private: Annotated[
        bool,
        typer.Option("--private", help="Make a private repository, and upload to no public one."),
    ] = False,
    with_completions: Annotated[
        bool,
        typer.Option(
            "--with-completions",
            help="Also upload samples.jsonl (prompts, answers, completions) and allocations.jsonl "
            "(accept rates and counts of single prompts).",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the card, and every file with its size; upload nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a finished run to the Hugging Face Hub: model, tokenizer, and a card made from the run.

    RUN is the folder of a finished run. REPO is USER/NAME, or NAME for a repository of your own; it is
    made where there is none. The card names data, rule, rollouts, accuracy before and after with
    intervals, the curve and versions. Prompts and completions stay here unless --with-completions is
    given.

    The token comes from hf auth login, or from HF_TOKEN. All files arrive as one commit. After an
    interruption the same command goes on: files that had arrived are not sent again.
    """
    commands.push(
        run,
        repo,
        private=private,
        with_completions=with_completions,
        dry_run=dry_run,
        as_json=as_json,
    )


@app.command(cls=Command, short_help="Spread a budget over prompts, by their statistics.")
def allocate(
    stats: Annotated[str, typer.Argument(metavar="STATS", hidden=True)],
    budget: Annotated[
        int | None, typer.Option(help="Completions to spread over all prompts.")
    ] = None,
    token_budget: TokenBudget = None,
    allocator: Annotated[
        str,
        typer.Option(
            help=f"Allocator: {', '.join(sorted(ALLOCATORS))}, or your own function as "
            "module:function.",
        ),
    ] = "min_variance",
    objective: ObjectiveName = "log_likelihood",
    baseline: BaselineName = None,
    order: Annotated[
        int | None,
        typer.Option(
            help="Order of estimator order_k, for log_likelihood: terms that are kept of it. No "
            "prompt gets fewer completions.",
            show_default="all terms",
        ),
    ] = None,
    lower: Annotated[int, typer.Option(help="Fewest completions that a prompt gets.")] = 0,
    upper: Annotated[
        int | None,
        typer.Option(help="Most completions that a prompt gets.", show_default="no limit"),
    ] = None,
    accept_rate_penalty: Penalty = 1e-3,
    accept_rate_power: Annotated[
        float, typer.Option(help="Beta of GVM: the power of the accept rate in that penalty.")
    ] = 2.0,
) -> None:
    """Spread a budget of completions over prompts: prompt statistics in, counts out.

    STATS is a file, or - for standard input. It holds one JSON object a line: prompt_id, trials,
    successes and grad_norm (the mean gradient norm of the accepted completions; null is allowed where
    successes is 0). The keys grad_norm_rejected and mean_tokens are optional.

    Prints one {"prompt_id", "count"} a line, in input order. The counts sum to --budget, or are
    expected to take at most --token-budget tokens.
    """
    if (budget is None) == (token_budget is None):
        raise InputError("give either --budget or --token-budget")
    commands.allocate(
        stats,
        (budget, token_budget),
        allocator,
        lower=lower,
        upper=upper,
        objective=objective,
        baseline=baseline,
        order=order,
        accept_rate_penalty=accept_rate_penalty,
        accept_rate_power=accept_rate_power,
    )


if __name__ == "__main__":
    raise SystemExit(main())
