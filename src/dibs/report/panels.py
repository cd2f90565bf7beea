"""Draw what each figure shows on one pair of axes, for run folders, the demo and the page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dibs.report.arms import Arm
from dibs.report.curves import arm_curve, run_curve
from dibs.report.looks import INK, PART_COLORS, SHARE_COLORS, SHARES, STEPS
from dibs.report.measured_gain import measured_variance
from dibs.report.spending import PARTS, mean_spending, total_spending
from dibs.runs.read import Record, Run, finite_number
from dibs.training.records import HISTOGRAM_BINS

_COSTS = {
    "steps": "training steps",
    "rollouts": "rollouts (pilots counted)",
    "tokens": "tokens sampled (pilots counted)",
    "seconds": "seconds of training",
}
_SCORES = {"accuracy": "held-out accuracy", "log_accept_rate": "held-out mean ln p_i"}
_STRIP = 0.12
"""Half the width of the strips in which dots of accept rate 0 and 1 stand."""
SHARE_CLASSES = BoundaryNorm(SHARES, len(SHARES) - 1)
"""Classes of shares of prompts, by their place in ``SHARE_COLORS``."""
_COLUMNS = 1000
"""Largest number of columns of an image over the steps; a page has fewer pixels for it."""


def score_panel(axes: Axes, arms: Sequence[Arm], axis: str, score: str = "accuracy") -> None:
    """Draw a held-out score of every arm against a cost, with 95% intervals and thin lines for seeds."""
    for arm in arms:
        color, marker = arm.look.color, arm.look.marker
        if len(arm.runs) > 1:
            for run in arm.runs:
                alone = run_curve(run, axis, score)
                axes.plot(alone.x, alone.mean, color=color, linewidth=0.7, alpha=0.6)
        curve = arm_curve(arm, axis, score)
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
        axes.plot(curve.x, curve.mean, color=color, marker=marker, ms=4, label=arm.label)
    axes.set(xlabel=_COSTS[axis], ylabel=_SCORES[score])
    short_numbers(axes.xaxis, 5, whole=axis != "seconds")


def has_score(arms: Sequence[Arm], score: str) -> bool:
    """Whether every arm has an evaluation with a score that all of its seeds have reached."""
    return all(len(arm_curve(arm, "steps", score).x) for arm in arms)


def counts_panel(axes: Axes, runs: Sequence[Run], time: Normalize, most_points: int) -> list[int]:
    """Draw the count n_i against the accept rate for every prompt of every step. Return the steps shown.

    Each step is a collection of its own, named ``step-N``. If there are more than ``most_points``
    prompts, evenly spaced steps are shown, each with as many of its prompts as there is room for. The
    accept rate is that of the pilots, which decided the count, or of the group if there are no pilots.
    Rates of exactly 0 and 1, where most prompts may be, have strips of their own.
    """
    by_step: dict[int, list[Record]] = {}
    for run in runs:
        for line in run.allocations:
            by_step.setdefault(line["step"], []).append(line)
    widest = max((sum(len(x["count"]) for x in lines) for lines in by_step.values()), default=1)
    shown = _evenly(sorted(by_step), max(most_points // max(widest, 1), 8))
    random = np.random.default_rng(0)
    room = max(most_points // max(len(shown), 1), 1)
    drawn_rates, most = [], 0.0
    for step in shown:
        rates, counts = (
            np.array([value for line in by_step[step] for value in line[key]], dtype=float)
            for key in ("accept_rate", "count")
        )
        most = max(most, counts.max(initial=0))
        known = np.flatnonzero(~np.isnan(rates))
        drawn_rates.append(rates[known])
        if len(known) > room:
            known = random.choice(known, room, replace=False)
        dots = axes.scatter(
            _spread_rates(rates[known], float(time(step)), random),
            counts[known] + random.uniform(-0.4, 0.4, len(known)),
            color=STEPS(time(step)),
            s=7,
            alpha=0.55,
            linewidths=0,
        )
        dots.set_gid(f"step-{step}")
    # Panels in a row share their axis, which has to reach the largest count of all of them.
    axes.set(ylim=(-0.8, max(axes.get_ylim()[1], 1.05 * most + 1)), ylabel="completions n_i")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    _rate_axis(axes, np.concatenate([np.zeros(0), *drawn_rates]))
    return shown


def _spread_rates(rates: np.ndarray, time: float, random: np.random.Generator) -> np.ndarray:
    """Return where the dots of a step stand: close to their rates, or in the strips of 0 and 1.

    ``time``: of the step, between 0 and 1. A strip has early steps on its left and late ones on its
    right, so that late dots do not cover early ones.
    """
    spread = random.uniform(-1, 1, len(rates))
    inner = np.clip(rates + 0.02 * spread, 0, 1)
    ends = np.where(rates <= 0, -_STRIP, 1 + _STRIP)
    ends += _STRIP * (1.3 * (time - 0.5) + 0.2 * spread)
    return np.where((rates <= 0) | (rates >= 1), ends, inner)


def _rate_axis(axes: Axes, rates: np.ndarray) -> None:
    """Mark the strips of rates of exactly 0 and 1, and print above each which share of dots is there."""
    for place, inside in ((-_STRIP, rates <= 0), (1 + _STRIP, rates >= 1)):
        axes.axvspan(place - _STRIP, place + _STRIP, color=INK, alpha=0.07, linewidth=0)
        if len(rates):
            share = f"{100 * inside.mean():.0f}%"
            at = axes.get_xaxis_transform()
            axes.text(place, 1.01, share, transform=at, ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(-2 * _STRIP, 1 + 2 * _STRIP), xlabel="accept rate p_i")
    axes.set_xticks([-_STRIP, 0.25, 0.5, 0.75, 1 + _STRIP], ["0", "0.25", "0.5", "0.75", "1"])


def accept_rates_panel(axes: Axes, runs: Sequence[Run]) -> None:
    """Draw a histogram of the accept rates of each step's prompts, for all seeds together.

    A column is a step. If there are more than 1,000 steps, neighboring steps share a column.
    """
    bins: dict[int, np.ndarray] = {}
    for run in runs:
        for line in run.metrics:
            found = line.get("accept_rate_histogram")
            if isinstance(found, list) and len(found) == HISTOGRAM_BINS:
                counted = np.array([finite_number({"n": value}, "n") for value in found])
                bins[line["step"]] = bins.get(line["step"], 0.0) + np.nan_to_num(counted)
    axes.set(xlabel="training steps", ylabel="accept rate p_i")
    axes.set_yticks(np.linspace(0, 1, HISTOGRAM_BINS + 1))
    if not bins:
        return
    steps = np.array(sorted(bins))
    first, width = steps[0], -(-(steps[-1] - steps[0] + 1) // _COLUMNS)
    places = (steps - first) // width
    columns = np.zeros((places[-1] + 1, HISTOGRAM_BINS))
    np.add.at(columns, places, [bins[step] for step in steps])
    columns[np.setdiff1d(np.arange(len(columns)), places)] = np.nan  # steps without a histogram
    totals = np.maximum(columns.sum(axis=1, keepdims=True), 1)
    axes.imshow(
        (columns / totals).T,
        origin="lower",
        aspect="auto",
        cmap=SHARE_COLORS,
        norm=SHARE_CLASSES,
        interpolation="nearest",
        extent=(first - 0.5, first + width * len(columns) - 0.5, 0, 1),
    ).set_gid("ink-shares")
    axes.hlines(np.linspace(0, 1, HISTOGRAM_BINS + 1), *axes.get_xlim(), INK, alpha=0.3, lw=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def variance_panel(axes: Axes, runs: Sequence[Run]) -> None:
    """Draw the gradient's variance over time, divided by that of uniform counts.

    Shown are the chosen counts and the best ones by the estimates, as means over seeds, and the chosen
    counts as measured, pooled over seeds and over the latest steps. Bars are 95% intervals.
    """
    axes.axhline(1, color=INK, linewidth=1, linestyle=":", label="uniform counts")
    for key, label, color, line in (
        ("expected_gain", "chosen counts, by the estimates", INK, "-"),
        ("achievable_gain", "best counts (oracle), by the estimates", INK, "--"),
    ):
        steps, mean = _relative_variance(runs, key)
        axes.plot(steps, mean, color=color, linestyle=line, marker=".", label=label)
    steps, mean, low, high = measured_variance(runs)
    if len(steps):
        axes.errorbar(
            steps,
            mean,
            yerr=np.nan_to_num([mean - low, high - mean]).clip(min=0),
            color=INK,
            marker="D",
            ms=4,
            linestyle="none",
            capsize=3,
            label="chosen counts, measured",
        )
    axes.set(xlabel="training steps", ylabel="variance over uniform's")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def has_variance(runs: Sequence[Run]) -> bool:
    """Whether any line of the runs has a variance that is drawn."""
    keys = ("expected_gain", "achievable_gain")
    believed = any(finite_number(x, key) > 0 for run in runs for x in run.metrics for key in keys)
    return believed or len(measured_variance(runs)[0]) > 0


def spending_panel(axes: Axes, runs: Sequence[Run]) -> None:
    """Draw what the rollouts of every step were spent on, stacked; means over seeds."""
    found = mean_spending(runs)
    axes.stackplot(found.steps, found.parts, labels=PARTS, colors=PART_COLORS, step="mid")
    axes.plot(found.steps, found.learned, color=INK, linewidth=1.2, label="learned from")
    axes.set(xlabel="training steps", ylabel="rollouts a step")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    short_numbers(axes.yaxis, 8)


def budget_panel(axes: Axes, arms: Sequence[Arm]) -> None:
    """Draw a bar for each arm of what its rollouts were spent on, and below it those learned from."""
    rows = np.arange(len(arms))[::-1]
    found = [total_spending(arm.runs) for arm in arms]
    parts = np.array([each for each, _ in found])
    ends = parts.cumsum(axis=1)
    for i, (label, color) in enumerate(zip(PARTS, PART_COLORS, strict=True)):
        axes.barh(
            rows, parts[:, i], left=ends[:, i] - parts[:, i], color=color, label=label, height=0.5
        )
    learned = [each for _, each in found]
    axes.barh(rows - 0.36, learned, color=INK, label="learned from", height=0.1)
    for row, arm in zip(rows, arms, strict=True):
        look, at = arm.look, axes.get_yaxis_transform()
        axes.plot(-0.035, row, look.marker, color=look.color, ms=6, transform=at, clip_on=False)
    axes.set_yticks(rows, [wrapped(arm.label) for arm in arms])
    axes.tick_params(axis="y", length=0, pad=16)
    axes.set(xlabel="rollouts", ylim=(-0.7, len(arms) - 0.4))
    short_numbers(axes.xaxis, 4)


def short_numbers(axis: Axis, most: int, *, whole: bool = True) -> None:
    """Set at most ``most`` intervals between the ticks of an axis, and print 12000 as 12k."""
    axis.set_major_locator(MaxNLocator(nbins=most, integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def wrapped(label: str, width: int = 24, most: int = 4) -> str:
    """Wrap a label in at most ``most`` lines. A longer one, such as a path, loses its beginning."""
    lines = textwrap.wrap(label, width, break_on_hyphens=False)
    return "\n".join(lines if len(lines) <= most else ["...", *lines[1 - most :]])


def short_number(value: float) -> str:
    """Print 1500 as 1.5k and 2000000 as 2M, and small numbers in full."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _relative_variance(runs: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and the mean over seeds of 1 / gain; float64 [steps] each."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for line in run.metrics:
            value = finite_number(line, key)
            if value > 0:
                found.setdefault(line["step"], []).append(1 / value)
    steps = sorted(found)
    return np.array(steps, dtype=float), np.array([np.mean(found[step]) for step in steps])


def _evenly(values: Sequence[int], most: int) -> list[int]:
    """Pick at most ``most`` evenly spaced values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]
