"""Whether ``dibs compare`` tells arms apart that do not differ: coverage and false verdicts (A/A tests).

Both arms of a test are the same. ``simulated``: learning curves of 5 seeds an arm. Their time scale,
final value and noise differ from seed to seed. ``stored``: two draws of 5 of the seeds of one arm of a
study that was run, from its curves.

``coverage`` is the share of tests whose 95% interval contains 1. ``faster`` and ``slower`` are the
shares whose interval lies wholly above and below. ``undefined`` has no speed-up. ``covers 2`` is the
coverage of the truth where one arm is twice as fast.

    python benchmarks/study_aa.py [--curves docs/studies/polar/curves.jsonl] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shared import positive

from dibs.files import read_lines
from dibs.report.costs import COSTS, Evaluations, compare_evaluations
from dibs.study.results import stored_runs

SEEDS, EVALUATIONS = 5, 13
KINDS = {
    # time scale in evaluations, its spread, spread of the final value, noise, its persistence
    "steep": (3.0, 0.15, 0.03, 0.02, 0.5),
    "slow": (15.0, 0.15, 0.10, 0.02, 0.5),
    "noisy": (4.0, 0.30, 0.10, 0.08, 0.5),
    "flat": (30.0, 0.20, 0.10, 0.06, 0.0),
    "heavy": (4.0, 0.60, 0.10, 0.03, 0.5),
    "nothing learned": (1e9, 0.0, 0.0, 0.05, 0.5),
}


def evaluations(value: np.ndarray) -> Evaluations:
    """A run whose evaluations cost the same each."""
    spent = np.arange(len(value)) * 100.0
    steps = np.arange(len(value))
    return Evaluations(
        steps, dict.fromkeys(COSTS, spent), value, value, value, {}, np.zeros((0, 2))
    )


def simulated(kind: str, rng: np.random.Generator, speed: float = 1.0) -> list[Evaluations]:
    """Curves of one arm."""
    scale, spread, final, noise, persistence = KINDS[kind]
    runs = []
    for _ in range(SEEDS):
        own_scale = scale / speed * np.exp(rng.normal(0, spread))
        top = 1 + rng.normal(0, final)
        errors = rng.normal(0, noise, EVALUATIONS)
        for i in range(1, EVALUATIONS):
            errors[i] = persistence * errors[i - 1] + np.sqrt(1 - persistence**2) * errors[i]
        clean = top * (1 - np.exp(-np.arange(EVALUATIONS) / own_scale))
        runs.append(evaluations(clean + errors))
    return runs


def judged(draw: Callable[[], tuple[list[Evaluations], list[Evaluations]]], tests: int) -> dict:
    """Shares of tests by what their interval says of a speed-up of 1, and of one of 2."""
    ends, undefined = [], 0
    for _ in range(tests):
        (found,) = compare_evaluations(*draw())
        interval = found.speed_up["rollouts"]
        if interval.low is None or interval.high is None:
            undefined += 1
        else:
            ends.append((interval.low, interval.high))
    low, high = np.array(ends).T if ends else np.full((2, 1), np.nan)
    return {
        "tests": tests,
        "coverage": float(np.mean((low <= 1) & (high >= 1))),
        "faster": float(np.mean(low > 1)),
        "slower": float(np.mean(high < 1)),
        "undefined": undefined / tests,
        "covers_2": float(np.mean((low <= 2) & (high >= 2))),
        "width": float(np.median(high / low)),
    }


def rows(args: argparse.Namespace) -> Iterator[dict]:
    """One row a kind of curves."""
    rng = np.random.default_rng(0)
    for kind in track(KINDS, "simulated", console=Console(stderr=True)):
        same = judged(lambda kind=kind: (simulated(kind, rng), simulated(kind, rng)), args.tests)
        twice = judged(
            lambda kind=kind: (simulated(kind, rng), simulated(kind, rng, speed=2)), args.tests
        )
        yield {"arms": f"simulated, {kind}", **same, "covers_2": twice["covers_2"]}
    if args.curves:
        stored = stored_runs(read_lines(args.curves))
        for name, by_seed in track(stored.items(), "stored", console=Console(stderr=True)):
            runs = list(by_seed.values())
            if len(runs) < 2 * SEEDS:
                continue

            def halves(
                runs: list[Evaluations] = runs,
            ) -> tuple[list[Evaluations], list[Evaluations]]:
                order = rng.permutation(len(runs))[: 2 * SEEDS]
                return [runs[i] for i in order[:SEEDS]], [runs[i] for i in order[SEEDS:]]

            yield {"arms": ", ".join(name), **judged(halves, args.tests), "covers_2": None}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", type=positive, default=2000, help="tests a row (default: 2000)")
    parser.add_argument("--curves", type=Path, help="curves.jsonl of a study of 10 seeds or more")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    args = parser.parse_args()
    found = list(rows(args))
    if args.json:
        print(json.dumps(found, indent=1))
        return
    names = ("coverage", "faster", "slower", "undefined", "covers_2")
    table = Table("arms", *names, "high over low")
    for row in found:
        shares = ["-" if row[name] is None else f"{100 * row[name]:.1f}%" for name in names]
        table.add_row(row["arms"], *shares, f"{row['width']:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
