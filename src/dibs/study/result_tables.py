"""A comparison as tables for the terminal, as figures, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.table import Table

from dibs.allocation.intervals import Interval, interval_text
from dibs.report.costs import NO_DIFFERENCE, Evaluations, mean_evaluations
from dibs.report.looks import COLORS, STYLE
from dibs.report.panels import short_numbers
from dibs.study.make_runs import Outcome
from dibs.study.matrix import Study

Row = Mapping[str, Any]
_COLUMNS = (
    ("arm", "left"),
    ("lr", "right"),
    ("value after", "right"),
    ("rollouts needed", "right"),
    ("fewer rollouts", "right"),
    ("fewer tokens", "right"),
    ("fewer steps", "right"),
    ("verdict", "left"),
)
_MORE_OF_THE_PAGE = (
    ("fewer seconds", "right"),
    ("rollouts a run", "right"),
    ("tokens a run", "right"),
    ("seconds a run", "right"),
)
EXPLANATION = (
    "The columns fewer are the reference's cost over the arm's, until values from 25% to 90% of the way "
    "that both arms went, with a 95% interval for few seeds. Rollouts needed are those until the last "
    "of these values. Rollouts and tokens include pilots; steps do not, as in arXiv 2505.02391. The "
    "verdict is on rollouts, corrected for the arms of a task; unclear means that no difference is "
    "shown, not that there is none. A star marks a learning rate at an end of its grid."
)
_ABOUT_RUNS = (
    "Rollouts, tokens and seconds a run are means over seeds. Seconds leave evaluation out, and depend "
    "on what else the machine did."
)


def matrix_table(study: Study) -> Table:
    """Make a table of the runs that a study needs: one line for each arm, with what its step costs."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("task", "algorithm", "arm", "counts"):
        table.add_column(name, overflow="fold")
    for name in ("a step", "pilots", "updates", "runs"):
        table.add_column(name, justify="right", overflow="fold")
    options = study.options
    runs = len(options.seeds) + len(study.tuning_rates) * len(options.tuning_seeds)
    for cell in study.cells:
        config = cell.config(options.seeds[0])
        drawn = config.estimate.mode in ("pilot", "cross_fit")
        pilots = config.estimate.num_pilots * config.train.prompts_per_step if drawn else 0
        table.add_row(
            cell.task,
            cell.algorithm,
            cell.arm,
            f"{config.allocate.allocator} {config.estimate.mode}",
            "tokens" if config.budget is None else f"{config.budget:,}",
            f"{pilots:,}",
            f"{config.train.steps * config.update.updates_per_step:,}",
            str(runs),
        )
    return table


def result_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Make a table of results for each task and algorithm."""
    for title, group in _grouped(rows):
        updates = {row["optimizer_updates"] for row in group if row["value_after"] is not None}
        table = Table(
            title=f"{title}: {', '.join(f'{each:,.0f}' for each in sorted(updates))} updates",
            title_justify="left",
            box=None,
            header_style="bold",
            padding=(0, 1, 0, 0),
        )
        for name, side in _COLUMNS:
            # 80 columns hold the table when intervals stand below their values.
            table.add_column(name.replace(" ", "\n"), justify=side, no_wrap=True)  # type: ignore[arg-type]
        for row in group:
            arm, *texts = _texts(row)
            table.add_row(arm, *(text.replace(" ", "\n") for text in texts))
        yield table


def failures(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each run that failed."""
    for row in rows:
        for run, why in row["failures"].items():
            yield f"{row['task']}, {row['algorithm']}, {row['arm']}, {run}: {why}"


def markdown(rows: Sequence[Row], figures: Mapping[str, str], notes: Iterable[str]) -> str:
    """Write the page of Markdown: a table and a figure for each task and algorithm.

    Args:
        rows: of :func:`dibs.study.results.rows`.
        figures: file names by title, as :func:`study_figures` returns them.
        notes: sentences about the whole comparison.
    """
    lines = ["# Comparison", "", f"{EXPLANATION} {_ABOUT_RUNS}", ""]
    lines += [f"- {note}" for note in notes]
    for title, group in _grouped(rows):
        updates = ", ".join(f"{row['optimizer_updates'] or 0:,.0f} {row['arm']}" for row in group)
        lines += ["", f"## {title}", "", f"Optimizer updates: {updates}.", ""]
        columns = _COLUMNS + _MORE_OF_THE_PAGE
        lines.append("| " + " | ".join(name for name, _ in columns) + " |")
        lines.append("|" + "|".join("---" if s == "left" else "---:" for _, s in columns) + "|")
        lines += ["| " + " | ".join([*_texts(row), *_page_texts(row)]) + " |" for row in group]
        if title in figures:
            lines += ["", f"![Value against rollouts and tokens, {title}]({figures[title]})"]
        lines += _target_lines(group)
        lines += _variance_lines(group)
    lines += ["", *failures(rows)]
    return "\n".join(lines).rstrip() + "\n"


def _target_lines(group: Sequence[Row]) -> Iterator[str]:
    """Yield a table of speed-ups in rollouts for the other targets."""
    measured = [row for row in group if row["targets"] and row["arm"] != row["reference"]]
    if not measured:
        return
    names = [_target_name(each) for each in measured[0]["targets"]]
    yield from ("", "Fewer rollouts until other targets:", "")
    yield "| arm | " + " | ".join(names) + " |"
    yield "|---|" + "---:|" * len(names)
    for row in measured:
        yield (
            f"| {row['arm']} | "
            + " | ".join(_speed_up_until(each) for each in row["targets"])
            + " |"
        )


def _target_name(target: Row) -> str:
    score = "pass@k" if target["score"] == "pass_at_k" else str(target["score"])
    if target["level"] is not None:
        return f"{score} {target['level']:g}"
    if target["share"] is None:
        return score
    return f"{target['share']:.0%} of the way"


def _measured(found: Row, name: str) -> str:
    """Print an interval that studies of earlier versions do not have."""
    return _interval(found[name]) if name in found else "-"


def _variance_lines(group: Sequence[Row]) -> Iterator[str]:
    """Yield a table of what the variance meter measured."""
    measured = [row for row in group if row["variance"]]
    if not measured:
        return
    yield from ("", "Variance of the gradient, uniform's over the arm's, first seed:", "")
    yield "| arm | when | gain a rollout | kept | achievable gain | noise scale | an update |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for row in measured:
        for when, found in row["variance"].items():
            yield (
                f"| {row['arm']} | {when} | {_interval(found['gain_per_rollout'])} "
                f"| {_measured(found, 'kept')} | {_measured(found, 'achievable')} "
                f"| {_interval(found['noise_scale'])} | {found['update_rollouts']:,.0f} |"
            )


def study_figures(study: Study, outcomes: Sequence[Outcome], folder: Path) -> dict[str, str]:
    """Draw a figure for each task and algorithm. Return the file names by title."""
    names = {}
    by_cell = {id(outcome.cell): outcome for outcome in outcomes}
    for reference, cells in study.groups():
        title = f"{reference.task}, {reference.algorithm}"
        runs = {cell.arm: list(by_cell[id(cell)].finished.values()) for cell in cells}
        runs = {arm: each for arm, each in runs.items() if each}
        if runs:
            names[title] = f"figures/{reference.task}/{reference.algorithm}.png"
            ln_p = study.value_of(reference) == "log_accept_rate"
            label = "held-out mean ln p" if ln_p else "held-out accuracy"
            path = folder / names[title]
            path.parent.mkdir(parents=True, exist_ok=True)
            with rc_context(STYLE):
                curves_figure(runs, title, label).savefig(path, dpi=120)
    return names


_ARMS_INSIDE, _ARMS_A_ROW = 8, 6
"""Arms of which the names fit into a panel, and those that fit side by side below both."""
_DASHES = ("-", "--", ":", "-.", (0, (1, 3)))


def curves_figure(arms: Mapping[str, Sequence[Evaluations]], title: str, value: str) -> Figure:
    """Draw the value against rollouts and tokens: a thin line for each seed, a thick one for a mean."""
    rows = -(-len(arms) // _ARMS_A_ROW) if len(arms) > _ARMS_INSIDE else 0
    figure = Figure(figsize=(9.2, 3.8 + 0.22 * rows), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost in zip(panels, ("rollouts", "tokens"), strict=True):
        for number, (arm, runs) in enumerate(arms.items()):
            color = COLORS[number % len(COLORS)]
            for run in runs:
                axes.plot(run.costs[cost], run.value, color=color, alpha=0.2, linewidth=0.8)
            mean = mean_evaluations(runs)
            axes.plot(
                mean.costs[cost][0],
                mean.scores["value"][0],
                linestyle=_DASHES[number // len(COLORS) % len(_DASHES)],  # where colors come again
                color=color,
                linewidth=2,
                label=arm,
            )
        axes.set(xlabel=f"{cost} (pilots counted)")
        short_numbers(axes.xaxis, 5)
    panels[0].set_ylabel(value)
    if rows:
        lines = panels[1].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", fontsize=8, ncols=_ARMS_A_ROW)
    else:
        panels[1].legend(fontsize=8)
    figure.suptitle(title)
    return figure


def _grouped(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for task, algorithm in dict.fromkeys((row["task"], row["algorithm"]) for row in rows):
        group = [row for row in rows if (row["task"], row["algorithm"]) == (task, algorithm)]
        yield f"{task}, {algorithm}", group


def _texts(row: Row) -> list[str]:
    if row["value_after"] is None:
        return [row["arm"], "-", *["failed"] * 5, "-"]
    spread = np.std(row["value_after_seeds"], ddof=1) if len(row["value_after_seeds"]) > 1 else 0.0
    error = spread / np.sqrt(len(row["value_after_seeds"]))
    rollouts = row["rollouts_to_target"]
    reached = "not reached" if row["target"] is not None else "-"
    return [
        row["arm"],
        f"{row['learning_rate']:g}" + "*" * row["learning_rate_at_edge"],
        f"{row['value_after']:.3f} ±{error:.3f}",
        reached if rollouts is None else f"{rollouts:,.0f}",
        *(_speed_up(row, cost) for cost in ("rollouts", "tokens", "steps")),
        {None: "-", NO_DIFFERENCE: "unclear"}.get(row["verdict"], row["verdict"]),
    ]


def _page_texts(row: Row) -> list[str]:
    if row["value_after"] is None:
        return ["-"] * len(_MORE_OF_THE_PAGE)
    return [
        _speed_up(row, "seconds"),
        f"{row['rollouts']:,.0f}",
        f"{row['completion_tokens']:,.0f}",
        f"{row['seconds']:,.1f}",
    ]


def _speed_up(row: Row, cost: str) -> str:
    return "1" if row["arm"] == row["reference"] else _speed_up_until(row, cost)


def _speed_up_until(target: Row, cost: str = "rollouts") -> str:
    if target["target"] is None:
        return "-"
    ends = (target[f"speedup_{cost}{end}"] for end in ("", "_low", "_high"))
    return interval_text(Interval(*ends), "{:.2f}".format, unknown_value="not reached")


def _interval(values: Mapping[str, float | None]) -> str:
    return interval_text(Interval(values["value"], values["low"], values["high"]))
