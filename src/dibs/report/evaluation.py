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
