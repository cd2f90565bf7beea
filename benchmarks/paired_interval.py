"""How often intervals of the difference between two models hold the truth, and how wide they are.

Two simulated models answer the same prompts, k completions each. A prompt has the accept rate p in
one model and q in the other:

    same       q = p, with p from Beta(0.5, 0.5)
    rare       p is 0 or 1; a prompt in 30 goes from 0 to 1
    split      p is 0 or 1; a prompt in 8 goes from 0 to 1, and one in 8 the other way
    shifted    the logit of q is that of p plus 0.5, with p from Beta(0.5, 0.5)
    apart      p and q are independent, from Beta(1, 2) and Beta(2, 1)

The truth is the mean of q - p over all prompts that there could be. Intervals of avg@k, all of 95%:

    dibs       dibs.allocation.intervals.paired_interval, which `dibs eval A B` prints
    student    Student's t of the differences
    agresti    Agresti and Min (2005), half a prompt added to each of their four cells
    unpaired   Wilson's intervals of both scores, as if the prompts were others

    python benchmarks/paired_interval.py [--runs 4000] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit, logit, stdtrit
from shared import positive

from dibs.allocation.intervals import clustered_interval, paired_interval

WORLDS = ("same", "rare", "split", "shifted", "apart")
SIZES = ((30, 1), (30, 8), (500, 1), (500, 8))
"""Prompts and completions of each: of AIME24 and MATH-500."""
_MANY = 2_000_000


def drawn(world: str, m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Accept rates of m prompts in both models."""
    p = rng.beta(0.5, 0.5, m)
    if world == "same":
        return p, p
    if world == "shifted":
        return p, expit(logit(p.clip(1e-12, 1 - 1e-12)) + 0.5)
    if world == "apart":
        return rng.beta(1, 2, m), rng.beta(2, 1, m)
    p, u = (p < 0.5).astype(float), rng.random(m)
    if world == "rare":
        kind = u < 1 / 30
        return np.where(kind, 0.0, p), np.where(kind, 1.0, p)
    up, down = u < 1 / 8, u > 7 / 8
    return np.where(up, 0.0, np.where(down, 1.0, p)), np.where(up, 1.0, np.where(down, 0.0, p))


def student(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The interval of a mean that has no bounds."""
    d, m = second - first, len(first)
    half = float(stdtrit(m - 1, 0.975) * d.std(ddof=1) / math.sqrt(m))
    return float(d.mean()) - half, float(d.mean()) + half


def agresti(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The same with two prompts more, on one of which the models differ, half in either direction."""
    d, m = second - first, len(first) + 2
    mean = float(d.sum()) / m
    half = 1.959964 * math.sqrt(((float((d**2).sum()) + 1) / m - mean**2) / m)
    return mean - half, mean + half


def unpaired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The two intervals as if they were independent."""
    (a, a_low, a_high), (b, b_low, b_high) = (
        (float(each.mean()), *clustered_interval(each)) for each in (first, second)
    )
    below, above = math.hypot(b - b_low, a_high - a), math.hypot(b_high - b, a - a_low)
    return b - a - below, b - a + above


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, float]]] = {
    "dibs": lambda first, second: paired_interval(second - first),
    "student": student,
    "agresti": agresti,
    "unpaired": unpaired,
}


def measured(world: str, m: int, k: int, runs: int) -> list[dict[str, Any]]:
    """Coverage and mean width of each method."""
    rng = np.random.default_rng([WORLDS.index(world), m, k])
    p, q = drawn(world, _MANY, rng)
    truth = float((q - p).mean())
    held = dict.fromkeys(METHODS, 0)
    width = dict.fromkeys(METHODS, 0.0)
    for _ in range(runs):
        p, q = drawn(world, m, rng)
        first, second = rng.binomial(k, p) / k, rng.binomial(k, q) / k
        for name, method in METHODS.items():
            low, high = method(first, second)
            held[name] += low <= truth <= high
            width[name] += high - low
    return [
        {
            "world": world,
            "prompts": m,
            "k": k,
            "truth": truth,
            "method": name,
            "coverage": held[name] / runs,
            "width": width[name] / runs,
        }
        for name in METHODS
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    """One line a world and size; coverage in percent, and the mean width."""
    shown = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("world", "prompts", "k", *METHODS):
        shown.add_column(name, justify="left" if name == "world" else "right")
    for i in range(0, len(rows), len(METHODS)):
        part = rows[i : i + len(METHODS)]
        cells = [f"{100 * row['coverage']:.1f}% ({row['width']:.3f})" for row in part]
        shown.add_row(part[0]["world"], str(part[0]["prompts"]), str(part[0]["k"]), *cells)
    return shown


def main() -> None:
    """Measure all worlds and sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=positive, default=4000, help="simulations of each world and size"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    options = parser.parse_args()
    rows = [
        row for world in WORLDS for m, k in SIZES for row in measured(world, m, k, options.runs)
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    Console(width=110).print(table(rows), highlight=False)


if __name__ == "__main__":
    main()
