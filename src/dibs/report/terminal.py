"""Results of ``dibs eval``, ``dibs data``, ``dibs verify`` and ``dibs variance`` for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dibs.allocation.intervals import Interval, interval_text, number_text
from dibs.types import counted


def _table(first: str, others: Sequence[str]) -> Table:
    """A table without rows: what each row is of, and columns of numbers."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """Make a table of benchmarks and their average; scores in percent with 95% intervals."""
    k = result["settings"]["k"]
    table = _table("benchmark", ("prompts", f"avg@{k}", f"pass@{k}", f"maj@{k}", "tokens"))
    for row in result["benchmarks"]:
        table.add_row(
            Path(row["benchmark"]).stem,
            f"{row['prompts']:,}",
            *(_score(row, name) for name in ("avg", "pass", "maj")),
            f"{row['completion_length']:,.0f}",
        )
    if len(result["benchmarks"]) > 1:
        average = result["average"]
        table.add_row(
            "average", "", *(_percent(average[name]) for name in ("avg", "pass", "maj")), ""
        )
    return table


def evaluation_notes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of the completions of each benchmark, and how they were sampled."""
    for row in result["benchmarks"]:
        by_count = sorted(row["statuses"].items(), key=lambda item: -item[1])
        statuses = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in by_count)
        cut = 100 * row["truncated_share"]
        if row["too_long"]:
            verb = "is" if row["too_long"] == 1 else "are"
            yield (
                f"{Path(row['benchmark']).stem}: {counted(row['too_long'], 'prompt')} {verb} too long "
                "for the model or data.max_prompt_length, and counted as not solved"
            )
        yield f"{Path(row['benchmark']).stem}: {statuses}; {cut:.0f}% cut off at the length limit"
    shown = {k.partition(".")[2] or k: v for k, v in result["settings"].items() if v is not None}
    yield "Settings: " + ", ".join(f"{key} {value}" for key, value in shown.items())
    yield "No top-k, top-p or repetition penalty."


def difference_table(result: Mapping[str, Any]) -> Table:
    """Make a table of what the second model scores beyond the first; percent, 95% intervals."""
    k = result["a"]["settings"]["k"]
    table = _table("benchmark", ("prompts", "score", "b - a", "better", "worse"))
    found = result["difference"]
    for row in found["benchmarks"]:
        counts = (f"{row[name]:,}" for name in ("better", "worse"))
        first = (Path(row["benchmark"]).stem, f"{row['prompts']:,}", f"avg@{k}", _gap(row, "avg"))
        table.add_row(*first, *counts)
        for name in ("pass", "maj"):
            table.add_row("", "", f"{name}@{k}", _gap(row, name))
    if len(found["benchmarks"]) > 1:
        for name in ("avg", "pass", "maj"):
            label = "average" if name == "avg" else ""
            table.add_row(label, "", f"{name}@{k}", _gap(found["average"], name))
    return table


def difference_notes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield which models were compared, and on which benchmarks avg@k shows a difference."""
    a, b = (result[name]["settings"]["model"] for name in ("a", "b"))
    yield f"a is {a}, b is {b}: same prompts and seeds, compared prompt by prompt"
    yield "better and worse: prompts on which b has more and fewer accepted completions than a"
    found = result["difference"]
    k = result["a"]["settings"]["k"]
    average = [{"benchmark": "the average", **found["average"]}] if found["benchmarks"][1:] else []
    for row in [*found["benchmarks"], *average]:
        name, low, high = Path(row["benchmark"]).stem, row["avg_low"], row["avg_high"]
        if row.get("unjudged"):
            left_out = counted(row["unjudged"], "prompt")
            yield f"{name}: {left_out} left out, since a model has no verdict there"
        if low is None:
            yield f"{name}: no prompt is compared"
        elif low > 0 or high < 0:
            yield f"{name}: avg@{k} of {'b' if low > 0 else 'a'} is higher"
        else:
            yield f"{name}: no difference of avg@{k} is shown"


def _gap(row: Mapping[str, Any], name: str) -> str:
    """A difference with the sign of both ends, which are far apart."""
    if row[name] is None:
        return "-"
    value, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def data_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that ``dibs data`` prints."""
    lengths = found["prompt_length"]
    step, steps = found["prompts_per_step"], found["steps_per_epoch"]
    levels = found.get("levels", ())
    epoch = f"an epoch{' of level 1' * bool(levels)} is {counted(steps, 'step')}"
    if steps == 0:
        epoch = f"too few for a step of train.prompts_per_step {step:,}; lower it or give more data"
    yield f"{counted(found['train'], 'training prompt')}, {found['eval']:,} held out; {epoch}"
    if levels:
        yield f"levels, added one after another: {', '.join(f'{size:,}' for size in levels)} prompts"
    yield (
        f"prompt length in tokens: {lengths['min']} to {lengths['max']}, median "
        f"{lengths['median']:.0f}, 95% below {lengths['p95']:.0f}"
    )
    for reason, rows in found["dropped"].items():
        yield f"{counted(rows, 'row')} dropped: {reason}"
    yield from found["notes"]
    unreadable = found["unreadable_answers"]
    if unreadable["count"]:
        first = ", ".join(repr(answer[:40]) for answer in unreadable["first"])
        yield (
            f"{unreadable['count']:,} gold answers cannot be read by the verifier, so they equal only "
            f"the same text: {first}"
        )
    for prompt in found["prompts"]:
        yield f"\n--- {prompt['prompt_id']}, answer {prompt['answer']!r}\n{prompt['text']}"
        yield f"last tokens: {' '.join(map(repr, prompt['last_tokens']))}"


def verdict_table(counts: Mapping[str, Any]) -> Table:
    """Make a table of how many completions have each status."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in counts:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{v:.1f}" if isinstance(v, float) else f"{v:,}" for v in counts.values()))
    return table


def _score(row: Mapping[str, Any], name: str) -> str:
    found = Interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))
    return interval_text(found, _percent)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def variance_table(result: Mapping[str, Any]) -> Table:
    """Make a table of allocations; a gain is uniform's variance over theirs, with a 95% interval."""
    table = _table("counts", ("rollouts", "gain", "gain a rollout", "gain a token"))
    for name, row in result["allocations"].items():
        pilots = f"+{row['pilot_rollouts']:,.0f}" if row["pilot_rollouts"] else ""
        table.add_row(
            name,
            f"{row['rollouts']:,.0f}{pilots}",
            *(_interval(row[key]) for key in ("gain", "gain_per_rollout", "gain_per_token")),
        )
    return table


def estimator_table(result: Mapping[str, Any]) -> Table:
    """Make a table of estimators, the configured one first: what they keep of the target, and gains."""
    chosen = result["allocator"] != "uniform"
    table = _table(
        "estimator",
        ("uniform keeps", *(("chosen keep", "gain", "gain, rescaled") if chosen else ())),
    )
    for name, row in result["estimators"].items():
        cells = [_percent_or_unknown(row["kept_uniform"])]
        if chosen:
            cells += [_percent_or_unknown(row["kept"])]
            cells += [_interval(row[key]) for key in ("gain", "gain_rescaled")]
        table.add_row(name, *cells)
    return table


def _percent_or_unknown(found: Mapping[str, float | None]) -> str:
    return "-" if found["value"] is None else _whole_percent(found["value"])


def variance_title(result: Mapping[str, Any]) -> str:
    """Return a title that names what was measured."""
    return (
        f"Gradient of {_target(result)}, estimator {result['estimator']}, estimate.mode "
        f"{result['mode']}: {result['prompts']} prompts, {result['completions_per_prompt']} completions "
        f"each, accept rate {result['accept_rate']:.3f}. Gain: the estimator's variance under uniform "
        "counts over that under others (95%)."
    )


def steps_title(result: Mapping[str, Any]) -> str:
    """Return a title that says which steps were simulated, and from what."""
    return (
        f"Steps of {result['rule']} for {_target(result)}, estimator {result['estimator']}, "
        f"estimate.mode {result['mode']}: {result['simulated_steps']:,} of each kind, simulated on "
        f"{result['prompts']} prompts with {result['completions_per_prompt']} completions each, accept "
        f"rate {result['accept_rate']:.3f}."
    )


def steps_table(result: Mapping[str, Any]) -> Table:
    """Make a table of simulated steps: what they cost, how noisy they are, what they keep."""
    table = _table(
        "steps", ("rollouts", "prompts", "gain a rollout", "gain a token", "keeps", "cosine")
    )
    for name, row in result["steps"].items():
        pilots = f"+{row['pilot_rollouts']:,.0f}" if row["pilot_rollouts"] else ""
        table.add_row(
            name,
            f"{row['rollouts']:,.0f}{pilots}",
            f"{row['trained_prompts']:.0f}",
            *(_interval(row[key]) for key in ("gain_per_rollout", "gain_per_token")),
            _interval(row["kept"], percent=True),
            _interval(row["cosine"]),
        )
    return table


def steps_findings(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the numbers mean."""
    rule, row = result["rule"], result["steps"][result["rule"]]
    gain = row["gain_per_rollout"]
    if gain["value"] is None:
        unknown = [each for each in result["steps"].values() if each["kept"]["value"] is None]
        yield (
            "No gradient along the target's is seen, so there is nothing to compare."
            if unknown
            else "The noise cannot be told from 0; raise variance.num_generations."
        )
        return
    if (gain["low"] or 0) > 1:
        yield f"At equal rollouts steps of {rule} are less noisy than uniform ones."
    elif gain["high"] is not None and gain["high"] < 1:
        yield f"At equal rollouts steps of {rule} are noisier than uniform ones."
    else:
        yield f"At equal rollouts steps of {rule} and uniform ones are not shown to differ in noise."
    yield (
        f"Gain: noise of uniform steps over that of {rule}'s, gradients as long along the target's. "
        "keeps: length of the expected gradient along that of the target, where 100% is no bias. "
        "cosine: between the two; below 1 the rule aims at another objective."
    )


def _target(result: Mapping[str, Any]) -> str:
    baseline = "" if result["baseline"] == "none" else f" with baseline {result['baseline']}"
    return f"{result['objective']}{baseline}"


def variance_findings(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the numbers mean, a sentence or two for each."""
    if result["estimators"][result["estimator"]]["kept_uniform"]["value"] is not None:
        yield _kept(result)
    yield _achievable(result)
    name = result["allocator"]
    if result["allocations"][name]["variance"] is None:
        yield (
            f"{name} leaves out prompts that have a gradient, so it estimates another gradient, and its "
            "variance for this one is infinite. Raise allocate.lower."
        )
    if _silent(result):
        yield f"Gradient noise scale: there is none, because {_silent(result)}"
        return
    if result["prompts"] < 3:
        yield "Gradient noise scale: not known. It takes three prompts or more."
        return
    scale, low = result["noise_scale"]["value"], result["noise_scale"]["low"]
    if scale is None:
        known = f" (at least {low:,.0f} rollouts)" if low is not None else ""
        yield (
            f"Gradient noise scale: too large to measure with {result['prompts']} prompts of "
            f"{result['completions_per_prompt']} completions each{known}: noise drowns the gradient."
        )
        return
    batch, update = result["step_rollouts"], result["update_rollouts"]
    yield (
        f"Gradient noise scale: {_interval(result['noise_scale'])} rollouts; a step has {batch:,.0f}, "
        f"an update {update:,.0f}. {_verdict(scale, update)}"
    )
    share = _interval(result["completion_share"], percent=True)
    yield (
        f"Of the noise of a step's gradient {share} comes from completions. The rest comes from which "
        "prompts were drawn. Counts inside a batch do not change it; more prompts with fewer "
        "completions of each do (--shapes)."
    )


def _silent(result: Mapping[str, Any]) -> str:
    """Why there is nothing to measure, and what to do; empty where a completion gave a gradient."""
    if result["allocations"]["uniform"]["variance"] != 0:
        return ""
    accepted = ": none was accepted. Take easier prompts, or another verifier."
    return f"no completion gave a gradient{accepted if result['accept_rate'] == 0 else '.'}"


def _kept(result: Mapping[str, Any]) -> str:
    """What the configured estimator keeps of its target."""
    row, name = result["estimators"][result["estimator"]], result["allocator"]
    keeps = f"{_interval(row['kept_uniform'], percent=True)} under uniform counts"
    if name != "uniform":
        keeps += f" and {_interval(row['kept'], percent=True)} under those of {name}"
    return (
        f"{result['estimator']} keeps {keeps}: its expected gradient over that of {_target(result)}, "
        "where 100% is no bias. A gradient that shrinks has less variance too, so the last gain has "
        "both gradients at one length."
    )


def _achievable(result: Mapping[str, Any]) -> str:
    """What the best counts could gain, and for how many prompts that is known."""
    found, known = result["achievable_gain"], result["achievable_prompts"]
    if found["value"] is None:
        return f"Achievable gain: not known. It takes rewards of 0 and 1, and {_enough(result)}."
    over = (
        "" if known == result["prompts"] else f" over the {known} prompts that show their variance"
    )
    return (
        f"Achievable gain of the best counts for this target with accept rates known, 1 + CV^2(sigma)"
        f"{over}: {_interval(found)}."
    )


def _enough(result: Mapping[str, Any]) -> str:
    """The prompts that the achievable gain of a target takes; see :func:`.sigma_posterior`."""
    own = {
        "log_likelihood": "two accepted completions",
        "grpo": "two accepted and two rejected completions",
    }.get(result["objective"], "an accepted completion")
    if result["estimator"] == "order_k":
        own = "an accepted completion"
    both = result["baseline"] != "none" and result["objective"] != "grpo"
    others = ", and as many with a rejected one" if both else ""
    return f"three prompts or more with {own} each{others}"


def _verdict(scale: float, update: float) -> str:
    if scale < update / 3:
        return "Updates are much larger: lower variance can hardly help."
    if scale > 3 * update:
        return "Updates are much smaller: lower variance can help."
    return "Updates are about as large: lower variance can help somewhat."


def _interval(values: Mapping[str, float | None], percent: bool = False) -> str:
    found = Interval(values["value"], values["low"], values["high"])
    number = _whole_percent if percent else number_text
    return interval_text(found, number, unknown_end="?")


def _whole_percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def shapes_title(found: Mapping[str, Any]) -> str:
    """Return a title of a comparison of shapes."""
    own, spent = found["configured"], f"{found['rollouts']:,} completions"
    if found["unit"] == "tokens":
        spent = f"the tokens of {spent}"
    return (
        f"Noise of {own['prompts']} x {own['completions']} over that of other ways to spend "
        f"{spent}, both gradients at one length (95%). The column completions "
        "has what they contribute to the noise of uniform shapes."
    )


def shapes_advice(result: Mapping[str, Any]) -> str:
    """Return what to set; where no completion gave a gradient, that nothing can be told."""
    silent = _silent(result)
    return f"Shapes cannot be compared: {silent}" if silent else str(result["shapes"]["advice"])


def shapes_table(found: Mapping[str, Any]) -> Table:
    """Make a table of shapes: one line for each number of completions of a prompt."""
    table = _table("prompts x completions", ("uniform", "completions", "with counts"))
    by_rule = {
        rule: {row["completions"]: row for row in found["shapes"] if row["rule"] == rule}
        for rule in ("uniform", "counts", "pool")
    }
    for size, row in by_rule["uniform"].items():
        share = row["completion_share"]
        table.add_row(
            f"{row['prompts']:,} x {size}",
            _interval(row["gain"]),
            "-" if share is None else _whole_percent(share),
            _interval(by_rule["counts"][size]["gain"]) if size in by_rule["counts"] else "-",
        )
    for size, row in by_rule["pool"].items():
        table.add_row(f"select.pool all, groups of {size}", _interval(row["gain"]), "", "")
    return table
