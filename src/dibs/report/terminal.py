"""Results of ``dibs eval``, ``dibs data`` and ``dibs verify`` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """One line a benchmark and their average; scores in percent with 95% intervals."""
    k = result["settings"]["k"]
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("benchmark", overflow="fold")
    for name in ("prompts", f"avg@{k}", f"pass@{k}", f"maj@{k}", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
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
    """What became of the completions, and how they were sampled."""
    for row in result["benchmarks"]:
        counted = sorted(row["statuses"].items(), key=lambda item: -item[1])
        statuses = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in counted)
        cut = 100 * row["truncated_share"]
        yield f"{Path(row['benchmark']).stem}: {statuses}; {cut:.0f}% cut off at the length limit"
    shown = {k.partition(".")[2] or k: v for k, v in result["settings"].items() if v is not None}
    yield "Settings: " + ", ".join(f"{key} {value}" for key, value in shown.items())
    yield "No top-k, top-p or repetition penalty."


def data_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What ``dibs data`` prints."""
    lengths = found["prompt_length"]
    yield (
        f"{found['train']:,} training prompts, {found['eval']:,} held out; an epoch is "
        f"{found['steps_per_epoch']:,} steps"
    )
    yield (
        f"prompt length in tokens: {lengths['min']} to {lengths['max']}, median "
        f"{lengths['median']:.0f}, 95% below {lengths['p95']:.0f}"
    )
    for reason, rows in found["dropped"].items():
        yield f"{rows:,} rows dropped: {reason}"
    for prompt in found["prompts"]:
        yield f"\n--- {prompt['prompt_id']}, answer {prompt['answer']!r}\n{prompt['text']}"


def verdict_table(counts: Mapping[str, Any]) -> Table:
    """How many completions have which status."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in counts:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{v:.1f}" if isinstance(v, float) else f"{v:,}" for v in counts.values()))
    return table


def _score(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{_percent(row[name])} ({_percent(row[f'{name}_low'])}-{_percent(row[f'{name}_high'])})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def variance_table(result: Mapping[str, Any]) -> Table:
    """One line an allocation; gains are uniform's variance over its own, with 95% intervals."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("counts", no_wrap=True)
    for name in ("rollouts", "gain", "gain a rollout", "gain a token"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in result["allocations"].items():
        pilots = f"+{row['pilot_rollouts']:,.0f}" if row["pilot_rollouts"] else ""
        table.add_row(
            name.replace("_held_out", ", held out"),
            f"{row['rollouts']:,.0f}{pilots}",
            *(_interval(row[key]) for key in ("gain", "gain_per_rollout", "gain_per_token")),
        )
    return table


def variance_title(result: Mapping[str, Any]) -> str:
    """What was measured."""
    baseline = "" if result["baseline"] == "none" else f", baseline {result['baseline']}"
    return (
        f"Gradient of {result['objective']}{baseline}, estimate.mode {result['mode']}: "
        f"{result['prompts']} prompts, {result['completions_per_prompt']} completions each, accept rate "
        f"{result['accept_rate']:.3f}. Gain: variance of uniform counts over that of others (95%)."
    )


def variance_findings(result: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers say, a sentence or two each."""
    yield (
        f"Achievable gain, 1 + CV^2(sigma): {_interval(result['achievable_gain'])}. It and the oracle "
        "are flattered by chance, since they choose and judge by the same completions; held out, the "
        "oracle chooses by one half and is judged by the other."
    )
    name = result["allocator"]
    if result["allocations"][name]["variance"] is None:
        yield (
            f"{name} leaves out prompts that have a gradient: it estimates another one, and for this "
            "one its variance is infinite. Raise allocate.lower."
        )
    elif name != "uniform" and result["captured"]["value"] is not None:
        share = _interval(result["captured"], percent=True)
        yield f"{name} captures {share} of the oracle's gain."
    scale, low = result["noise_scale"]["value"], result["noise_scale"]["low"]
    if scale is None:
        known = f" (at least {low:,.0f} rollouts)" if low is not None else ""
        yield (
            f"Gradient noise scale: beyond what {result['prompts']} prompts with "
            f"{result['completions_per_prompt']} completions can tell{known}: noise drowns the gradient."
        )
        return
    batch, update = result["step_rollouts"], result["update_rollouts"]
    yield (
        f"Gradient noise scale: {_interval(result['noise_scale'])} rollouts; a step has {batch:,.0f}, "
        f"an update {update:,.0f}. {_verdict(scale, update)}"
    )
    share = _interval(result["completion_share"], percent=True)
    yield (
        f"Of the noise of a step's gradient {share} comes from completions; the rest comes from which "
        "prompts were drawn, and no allocation changes that."
    )


def _verdict(scale: float, update: float) -> str:
    if scale < update / 3:
        return "Updates are large against it: lower variance can hardly help here."
    if scale > 3 * update:
        return "Updates are small against it: lower variance can help."
    return "Updates are about as large: lower variance can help somewhat."


def _interval(values: Mapping[str, float | None], percent: bool = False) -> str:
    if values["value"] is None:
        return "-"
    one, low, high = (_number(values[key], percent) for key in ("value", "low", "high"))
    return f"{one} ({low}-{high})"


def _number(value: float | None, percent: bool) -> str:
    if value is None:
        return "?"
    if percent:
        return f"{100 * value:.0f}%"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
