"""The pictures of docs/concepts, drawn from formulas and from the package's own functions.

    python website/pictures.py [--out docs/images]

``fixed_batch`` has a model small enough to check by hand: every prompt has one parameter of its own,
the logit of its accept rate p. For the objective log_likelihood a completion's share of the gradient is
``a s`` with ``a = r / p`` and ``s = r - p``. So ``mu = E[a s] = 1 - p``, and ``S = E[(a s)^2]`` is
``(1 - p)^2 / p``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from count_factors import ROWS, factor
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dibs.allocation.fractional import expected_counts

COLORS = {"prompts": "#b0bec5", "completions": "#3f51b5", "ours": "#e65100", "idle": "#eceff1"}
RATES = np.array([0.95, 1 / 16])
SHARES = np.array([7 / 8, 1 / 8])
BUDGET = 128


def fixed_batch() -> dict[str, tuple[float, float]]:
    """Variance of a step's gradient: the part from which prompts are drawn, and from completions.

    Seven eighths of the prompts have p = 0.95 and the others 1/16. A step has 128 completions.
    """
    mean, square = 1 - RATES, (1 - RATES) ** 2 / RATES
    deviation = np.sqrt(square - mean**2)
    between = float(SHARES @ mean**2)  # every prompt moves a parameter of its own
    uniform = float(SHARES @ deviation**2) / BUDGET
    counts = float(SHARES @ deviation) ** 2 / BUDGET
    found = {f"{m} x {BUDGET // m}\nuniform": (between / m, uniform) for m in (16, 32, 64, BUDGET)}
    found["16 x 8\nbest counts"] = (between / 16, counts)
    together = float(SHARES @ np.sqrt(square)) ** 2 / BUDGET
    found["prompts and\ncounts together"] = (0.0, together)
    return found


def grid_counts(expected: np.ndarray, start: float) -> np.ndarray:
    """How many marks of the grid ``start, start + 1, ...`` fall on each piece of the line."""
    ends = np.cumsum(expected)
    return np.diff(np.floor(ends - start + 1), prepend=0).astype(int)


def draw_fixed_batch(axes: Axes) -> None:
    """Bars of variance, in two parts."""
    found = fixed_batch()
    prompts, completions = np.array(list(found.values())).T
    colors = [COLORS["completions"]] * (len(found) - 1) + [COLORS["ours"]]
    axes.bar(list(found), completions, color=colors, label="from completions")
    axes.bar(
        list(found), prompts, bottom=completions, color=COLORS["prompts"], label="from prompts"
    )
    for i, total in enumerate(prompts + completions):
        axes.annotate(f"{total:.4f}", (i, total), ha="center", va="bottom")
    axes.set_ylabel("variance of a step's gradient")
    axes.set_title("128 completions, spent in six ways")
    axes.legend(frameon=False)


def draw_fractional_counts(axes: Axes) -> None:
    """Pieces of a line, one a prompt, and a grid that falls on them."""
    rates = np.array([0.97, 0.9, 0.5, 1 / 16, 0.95, 0.3])
    square = (1 - rates) ** 2 / rates
    floor = np.full(len(rates), 0.25)
    expected = expected_counts(np.sqrt(square), 6.0, np.ones(len(rates)), floor)
    start = 0.35
    counts = grid_counts(expected, start)
    ends = np.cumsum(expected)
    for i, (end, width) in enumerate(zip(ends, expected, strict=True)):
        color = COLORS["ours"] if counts[i] else COLORS["idle"]
        axes.barh(0, width, left=end - width, height=0.5, color=color, edgecolor="black")
        label = f"p = {rates[i]:.2f}\n$e$ = {width:.2f}\n$n$ = {counts[i]}"
        axes.annotate(label, (end - width / 2, 0.34 + 0.55 * (i % 2)), ha="center", va="bottom")
    marks = np.arange(start, ends[-1], 1.0)
    axes.vlines(marks, -0.45, 0.25, color="black", linewidth=2)
    axes.annotate(
        "a grid of distance 1 with a random start", (marks[2], -0.6), ha="center", va="top"
    )
    axes.set_xlim(-0.1, 6.1)
    axes.set_ylim(-0.95, 1.6)
    axes.axis("off")
    axes.set_title("Six prompts share a budget of 6 completions")


def draw_unbiased_modes(axes: Axes) -> None:
    """Which completions decide the counts of a step, and which are trained on."""
    rows = [
        ("all pilots decide,\nall are trained on", [("pilots", "both"), ("rest", "train")]),
        ("pilot", [("pilots", "decide"), ("budget", "train")]),
        ("cross_fit, part 1", [("half A", "decide"), ("half B", "train"), ("rest", "train")]),
        ("cross_fit, part 2", [("half A", "train"), ("half B", "decide"), ("rest", "train")]),
        ("online", [("earlier steps", "decide"), ("this step", "train")]),
    ]
    colors = {"decide": COLORS["prompts"], "train": COLORS["completions"], "both": "#c62828"}
    for row, (_, parts) in enumerate(rows):
        for i, (name, role) in enumerate(parts):
            width = 2 if len(parts) == 2 and i == 1 else 1
            axes.barh(row, width - 0.06, left=i, color=colors[role], height=0.6)
            ink = "black" if role == "decide" else "white"
            axes.annotate(name, (i + width / 2, row), ha="center", va="center", color=ink)
        verdict = "biased" if any(role == "both" for _, role in parts) else "unbiased"
        axes.annotate(verdict, (3.1, row), va="center")
    handles = [mpl.patches.Patch(color=color) for color in colors.values()]
    words = ["decides the counts", "is trained on", "both at once"]
    axes.legend(handles, words, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlim(0, 3.7)
    axes.invert_yaxis()
    axes.tick_params(bottom=False, labelbottom=False, left=False)
    axes.spines[:].set_visible(False)
    axes.set_title("Which completions decide, and which are trained on")


def draw_what_counts_change(axes: Axes) -> None:
    """Expected over target gradient of a prompt with accept rate 1/16, by its count."""
    counts = np.arange(1, 33)
    lines = {
        "self_normalized": ("self_normalized, none", 1, "-"),
        "GRPO, as TRL computes it": ("grpo of TRL", 2, "--"),
        "order_k, order 4": ("order_k, none", 4, "-."),
        "GRPO with deviation: expected": ("grpo, expected", 2, ":"),
    }
    for label, (name, least, style) in lines.items():
        assert name in ROWS
        of = counts[counts >= least]
        axes.plot(of, [factor(name, 1 / 16, int(n)) for n in of], style, label=label, linewidth=2)
    axes.set_xlabel("completions of the prompt")
    axes.set_ylabel("expected over target gradient")
    axes.set_ylim(0, 1.05)
    axes.set_title("How strongly a prompt with accept rate 1/16 is trained on")
    axes.legend(frameon=False, loc="center right")


PICTURES = {
    "fixed-batch": (draw_fixed_batch, (9, 4.2)),
    "fractional-counts": (draw_fractional_counts, (9, 3)),
    "unbiased-modes": (draw_unbiased_modes, (9, 3.6)),
    "what-counts-change": (draw_what_counts_change, (9, 4.2)),
}


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out
    mpl.use("svg")
    plt.rcParams.update({"svg.hashsalt": "dibs", "svg.fonttype": "none", "font.size": 10})
    for name, (draw, size) in PICTURES.items():
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        path = out / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
