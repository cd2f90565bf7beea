"""The figures of runs: three PNG files for a run folder or the demo, and all figures of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dibs.report import panels
from dibs.report.arms import Arm, labeled_arms
from dibs.report.curves import AXES
from dibs.report.looks import PART_COLORS, SHARE_COLORS, SHARES, STEPS, STYLE
from dibs.runs.read import Run, read_run
from dibs.types import InputError

FIGURES = ("accuracy.png", "counts.png", "accept_rates.png")
POINTS = 12_000
"""Limit for the dots of all figures of counts together. A dot takes about 100 bytes of the page."""
_WIDTH, _HEIGHT = 4.6, 3.5
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page.

    ``arm``: label of the arm that it shows, or None if it shows all. ``steps``: training steps that the
    page can show one at a time.
    """

    name: str
    subject: str
    arm: str | None
    figure: Figure
    steps: Sequence[int] = ()


def draw_figures(runs: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw accuracy, counts and accept rates of labeled run folders as PNG files in ``folder``.

    Raises InputError for a folder that holds no run.
    """
    found = {}
    for label, path in runs.items():
        run = read_run(path)
        if not isinstance(run, Run):
            raise InputError(f"{path}: {run.reason}")
        found[label] = run
    arms = labeled_arms(found)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in FIGURES]
    with rc_context(STYLE):
        for path, figure in zip(paths, _of_a_folder(arms), strict=True):
            figure.savefig(path, dpi=150)
    return paths


def _of_a_folder(arms: Sequence[Arm]) -> Iterator[Figure]:
    figure, (axes,) = _row(1, width=6.4)
    panels.score_panel(axes, arms, "rollouts")
    axes.set_title("Accuracy against sampling cost (band: 95% interval)")
    axes.legend()
    yield figure

    figure, row = _row(len(arms))
    time = _time(arms)
    for axes, arm in zip(row, arms, strict=True):
        panels.counts_panel(axes, arm.runs, time, _NO_LIMIT)
        axes.set_title(arm.label)
        axes.label_outer()
    _step_bar(figure, row, time)
    figure.suptitle("What the budget was spent on")
    yield figure

    figure, row = _row(len(arms))
    for axes, arm in zip(row, arms, strict=True):
        panels.accept_rates_panel(axes, arm.runs)
        axes.set_title(arm.label)
        axes.label_outer()
    _share_bar(figure, row)
    figure.suptitle("Accept rates over training")
    yield figure


def page_figures(arms: Sequence[Arm]) -> Iterator[PageFigure]:
    """Draw every figure of the page. Each has one panel, so that a narrow screen can stack them.

    The caller draws and saves them inside ``rc_context(STYLE)``.
    """
    for axis in AXES:
        yield _with_legend(
            f"accuracy-{axis}",
            f"Held-out accuracy against {axis}",
            lambda axes, axis=axis: panels.score_panel(axes, arms, axis),  # type: ignore[misc]
            legend=len(arms),
        )
    if panels.has_score(arms, "log_accept_rate"):
        yield _with_legend(
            "log-accept-rate",
            "Held-out mean ln p against rollouts",
            lambda axes: panels.score_panel(axes, arms, "rollouts", "log_accept_rate"),
            legend=len(arms),
        )
    yield _with_legend(
        "budget",
        "Where the rollouts went",
        lambda axes: panels.budget_panel(axes, arms),
        legend=len(PART_COLORS) + 1,
        height=1.6 + 0.6 * len(arms),
    )
    time = _time(arms)
    for i, arm in enumerate(arms, 1):
        yield _counts(f"counts-{i}", arm, time, POINTS // len(arms))
        figure, row = _row(1)
        panels.accept_rates_panel(row[0], arm.runs)
        _share_bar(figure, row)
        yield PageFigure(
            f"accept-rates-{i}", "Accept rates of the prompts over time", arm.label, figure
        )
        yield _with_legend(
            f"spending-{i}",
            "Where the rollouts went, step by step",
            lambda axes, arm=arm: panels.spending_panel(axes, arm.runs),  # type: ignore[misc]
            legend=len(PART_COLORS) + 1,
            arm=arm.label,
        )
        if panels.has_variance(arm.runs):
            yield _with_legend(
                f"variance-{i}",
                "Variance of the gradient over time",
                lambda axes, arm=arm: panels.variance_panel(axes, arm.runs),  # type: ignore[misc]
                legend=4,
                arm=arm.label,
            )


def _counts(name: str, arm: Arm, time: Normalize, most_points: int) -> PageFigure:
    figure, row = _row(1)
    shown = panels.counts_panel(row[0], arm.runs, time, most_points)
    _step_bar(figure, row, time)
    subject = "Completions against accept rate, for each step"
    return PageFigure(name, subject, arm.label, figure, shown)


def _with_legend(
    name: str,
    subject: str,
    draw: Callable[[Axes], None],
    *,
    legend: int,
    arm: str | None = None,
    height: float = _HEIGHT,
) -> PageFigure:
    """Draw a figure of one panel with a legend of ``legend`` lines below it."""
    figure = Figure(figsize=(_WIDTH, height + 0.2 * legend), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    handles, labels = axes.get_legend_handles_labels()
    labels = [panels.wrapped(label, 48) for label in labels]
    figure.legend(handles, labels, loc="outside lower left")
    return PageFigure(name, subject, arm, figure)


def _time(arms: Sequence[Arm]) -> Normalize:
    last = max(
        (line["step"] for arm in arms for run in arm.runs for line in run.allocations), default=1
    )
    return Normalize(1, max(last, 2))


def _step_bar(figure: Figure, row: Sequence[Axes], time: Normalize) -> None:
    ticks = MaxNLocator(nbins=6, integer=True)
    figure.colorbar(ScalarMappable(time, STEPS), ax=list(row), label="step", ticks=ticks)


def _share_bar(figure: Figure, row: Sequence[Axes]) -> None:
    shares = ScalarMappable(panels.SHARE_CLASSES, SHARE_COLORS)
    bar = figure.colorbar(shares, ax=list(row), label="share of prompts", ticks=list(SHARES))
    bar.ax.set_yticklabels([f"{share:.0%}" for share in SHARES])


def _row(panels_: int, width: float = _WIDTH) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * panels_, 3.8), layout="constrained")
    return figure, list(figure.subplots(1, panels_, squeeze=False, sharey=True)[0])
