"""The figures of one run or of several, drawn from run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dibs.report.metrics import HISTOGRAM_BINS

FIGURES = ("accuracy.png", "counts.png", "accept_rates.png")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def draw_figures(runs: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw accuracy, counts and accept rates of labelled run folders as PNG files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {label: read_lines(run / "metrics.jsonl") for label, run in runs.items()}
    allocations = {label: read_lines(run / "allocations.jsonl") for label, run in runs.items()}
    paths = [folder / name for name in FIGURES]
    accuracy_figure(metrics).savefig(paths[0], dpi=150)
    counts_figure(allocations).savefig(paths[1], dpi=150)
    accept_rates_figure(metrics).savefig(paths[2], dpi=150)
    return paths


def accuracy_figure(metrics: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Held-out accuracy against rollouts, pilots counted, with its 95% interval."""
    figure, (axes,) = figure_row(1, width=6.4)
    for colour, (label, lines) in zip(cycle(COLOURS), metrics.items(), strict=False):
        measured = [line for line in lines if line.get("accuracy") is not None]
        rollouts = [line["rollouts"] for line in measured]
        low, high = ([line[key] for line in measured] for key in ("accuracy_low", "accuracy_high"))
        axes.fill_between(rollouts, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            rollouts, [line["accuracy"] for line in measured], "o-", color=colour, label=label, ms=3
        )
    axes.set(xlabel="rollouts (pilots counted)", ylabel="held-out accuracy")
    axes.set_title("Accuracy against sampling cost (band: 95% interval)", fontsize=10)
    axes.legend(frameon=False)
    return figure


def counts_figure(allocations: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Count n_i against accept rate, every prompt of every step.

    The accept rate is the pilots', on which the count was decided, or the group's own without pilots.
    """
    figure, panels = figure_row(len(allocations))
    last_step = max((line["step"] for lines in allocations.values() for line in lines), default=1)
    time = Normalize(1, max(last_step, 2))
    for axes, (label, lines) in zip(panels, allocations.items(), strict=True):
        rates = np.array([rate for line in lines for rate in line["accept_rate"]], dtype=float)
        counts = np.array([count for line in lines for count in line["count"]], dtype=float)
        steps = np.repeat([line["step"] for line in lines], [len(line["count"]) for line in lines])
        known = ~np.isnan(rates)
        jitter = np.random.default_rng(0).uniform(-0.4, 0.4, size=(2, len(rates)))
        axes.scatter(
            (rates + jitter[0] / 20)[known],
            (counts + jitter[1])[known],
            c=steps[known],
            cmap="viridis",
            norm=time,
            s=6,
            alpha=0.5,
            linewidths=0,
        )
        axes.set(xlabel="accept rate p_i (jittered)", xlim=(-0.05, 1.05))
        axes.set_title(label, fontsize=10)
    ticks = MaxNLocator(nbins=6, integer=True)
    figure.colorbar(ScalarMappable(time, "viridis"), ax=panels, label="step", ticks=ticks)
    panels[0].set_ylabel("completions n_i")
    figure.suptitle("What the budget was spent on", fontsize=10)
    return figure


def accept_rates_figure(metrics: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Histogram of the accept rates of a step's prompts, over the steps."""
    figure, panels = figure_row(len(metrics))
    for axes, (label, lines) in zip(panels, metrics.items(), strict=True):
        measured = [line for line in lines if line.get("accept_rate_histogram")]
        columns = np.array([line["accept_rate_histogram"] for line in measured], dtype=float)
        if not len(columns):
            continue
        totals = np.maximum(columns.sum(axis=1, keepdims=True), 1)
        first, last = measured[0]["step"], measured[-1]["step"]
        axes.imshow(
            (columns / totals).T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=0,
            vmax=1,
            extent=(first - 0.5, last + 0.5, 0, 1),
        )
        axes.set_yticks(np.linspace(0, 1, HISTOGRAM_BINS + 1))
        axes.set(xlabel="step")
        axes.set_title(label, fontsize=10)
    shares = ScalarMappable(Normalize(0, 1), "magma")
    figure.colorbar(shares, ax=panels, label="share of prompts")
    panels[0].set_ylabel("accept rate p_i")
    figure.suptitle("Accept rates over training", fontsize=10)
    return figure


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def figure_row(panels: int, width: float = 4.4) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, ``width`` inches each, that share their vertical axis."""
    figure = Figure(figsize=(width * panels, 3.8), layout="constrained")
    row = figure.subplots(1, panels, squeeze=False, sharey=True)[0]
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(row)
