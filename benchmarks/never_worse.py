"""Whether min_variance's counts are ever worse than uniform ones, measured on many completions.

Steps are played on measured policies of the embedded task (``measured_policies.py``; 256 completions a
prompt), on prompts that are simulated, and with ``--model`` on a language model. A step draws 16 prompts
and 8 completions a prompt. Its counts are decided by what an allocator would see:

    cross_fit  4 pilots a prompt, each half of which decides the counts of one part of the gradient
    online     8 completions a prompt of one earlier step

``true_gain`` is the variance of uniform counts, summed over steps, over that of the chosen counts, by
the moments of all completions. ``achievable`` is the same of the best counts within the same bounds.
``believed_gain`` is what the allocator expected, the geometric mean over steps. ``low`` and ``high`` are
95% of a bootstrap over steps.

    python benchmarks/never_worse.py [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measured_policies import (
    PROMPTS,
    RECIPES,
    SAMPLES,
    Pilots,
    Truth,
    add_options,
    language_model,
    measured,
    policy,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shared import positive

from dibs.allocation.allocators import expected_gain, solve, uniform
from dibs.allocation.cross_fit import GradientPart, cross_fit
from dibs.allocation.history import History
from dibs.allocation.least_variance import least_variance
from dibs.allocation.problem import AllocationProblem, Bounds, pose
from dibs.allocation.target import Target
from dibs.types import PromptStats

PER_STEP, PER_PROMPT, PILOTS, EARLIER = 16, 8, 4, 8
TARGETS = {
    "log_likelihood": Target("log_likelihood", "none"),
    "expected_reward": Target("expected_reward", "none"),
    "leave_one_out": Target("expected_reward", "leave_one_out"),
    "grpo": Target("grpo", "mean"),
}
MODES = ("cross_fit", "online")


def simulated(kind: str, seed: int = 0) -> Truth:
    """Prompts with accept rates Beta(.3, .6) that follow no policy, 512 completions each.

    ``hard``: norms grow with the rarity of the class. ``tails``: the same, with norms of Student's t (4)
    on the log scale. ``flat``: norms are unrelated to accept rates and vary from prompt to prompt.
    ``easy``: norms fall with the rarity, against what is usual. A log-probability is that of the class,
    less an exponential amount.
    """
    rng = np.random.default_rng(seed)
    p = rng.beta(0.3, 0.6, PROMPTS).clip(0.01, 0.99)
    accepted = rng.random((PROMPTS, 2 * SAMPLES)) < p[:, None]
    rarity = np.where(accepted, -np.log(p)[:, None], -np.log(1 - p)[:, None])
    level = {"hard": 2.0, "tails": 2.0, "flat": 0.0, "easy": -1.0}[kind] * np.log(rarity)
    own = rng.normal(0, 1.0 if kind == "flat" else 0.4, (PROMPTS, 1))
    noise = (
        rng.standard_t(4, accepted.shape)
        if kind == "tails"
        else rng.standard_normal(accepted.shape)
    )
    squares = np.exp((level + own + 0.5 * noise).clip(-30, 30))
    logprobs = -rarity - rng.exponential(np.where(accepted, 0.2, 1.0))
    return Truth(accepted, squares, logprobs, np.full(accepted.shape, 10), np.zeros(PROMPTS))


@dataclass
class Steps:
    """Variances of steps, one entry a step: of uniform, chosen and best counts, true and as believed."""

    even: list[float]
    chosen: list[float]
    best: list[float]
    believed: list[float]

    def row(self) -> dict[str, float]:
        even, chosen, best = map(np.array, (self.even, self.chosen, self.best))
        draws = np.random.default_rng(0).multinomial(len(even), [1 / len(even)] * len(even), 1000)
        low, high = np.quantile((draws @ even) / (draws @ chosen), (0.025, 0.975))
        gain, achievable = even.sum() / chosen.sum(), even.sum() / best.sum()
        return {
            "true_gain": float(gain),
            "low": float(low),
            "high": float(high),
            "believed_gain": float(np.exp(np.log(self.believed).mean())),
            "achievable": float(achievable),
            "captured": float((gain - 1) / (achievable - 1)),
        }


def parts_of_step(mode: str, pilots: Pilots, chosen: Sequence[int]) -> list[PromptStats]:
    """The statistics that decide the counts of each part of a step's gradient."""
    if mode == "cross_fit":
        parts: Sequence[GradientPart] = cross_fit(*pilots.draw(PILOTS, chosen)).parts
        return [part.stats for part in parts]
    history = History(half_life=20.0)
    history.add(*pilots.draw(EARLIER, chosen), step=0)
    return [history.statistics([str(i) for i in chosen], step=1)]


def play(truth: Truth, mode: str, steps: int, allocator: str, seed: int = 1) -> dict[str, Steps]:
    """Play steps, and judge the counts of every target by the truth."""
    rng = np.random.default_rng(seed)
    pilots = Pilots(truth, seed)
    squares = {name: truth.sigma_squared(target) for name, target in TARGETS.items()}
    found = {name: Steps([], [], [], []) for name in TARGETS}
    size = min(PER_STEP, len(truth.squares))
    for _ in range(steps):
        chosen = rng.choice(len(truth.squares), size, replace=False)
        stats = parts_of_step(mode, pilots, chosen)
        lower = PILOTS // 2 if mode == "cross_fit" else 1
        budget = PER_PROMPT * size // len(stats)
        for name, target in TARGETS.items():
            problems = [pose(each, budget, target, bounds=Bounds(lower)) for each in stats]
            judge(found[name], squares[name][chosen], problems, allocator)
    return found


def judge(
    found: Steps, square: np.ndarray, problems: Sequence[AllocationProblem], allocator: str
) -> None:
    """Add a step whose gradient is the mean of parts with the same true sigma^2, [m]."""
    parts = len(problems)

    def variance(n: np.ndarray) -> float:
        return float((square / n).sum()) / parts**2

    counts = [solve(problem, allocator).counts for problem in problems]
    best = [least_variance(np.sqrt(square), p.budget, p.lower, p.upper, p.cost) for p in problems]
    found.even.append(sum(variance(uniform(p)) for p in problems))
    found.chosen.append(sum(map(variance, counts)))
    found.best.append(sum(map(variance, best)))
    gain = np.mean([expected_gain(p, n) for p, n in zip(problems, counts, strict=True)])
    found.believed.append(float(gain))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=positive, default=300, help="steps of a cell (default: 300)"
    )
    add_options(parser)
    parser.add_argument(
        "--policies", nargs="*", default=list(RECIPES), help="of measured_policies.py"
    )
    parser.add_argument("--model", help="also a language model: its folder; 32 prompts x 32")
    parser.add_argument("--data", help="questions for it, a file of JSON Lines")
    parser.add_argument("--allocator", default="min_variance")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    parser.add_argument("--output", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    truths = {name: policy(name, args) for name in args.policies}
    truths |= {f"simulated, {kind}": simulated(kind) for kind in ("hard", "tails", "flat", "easy")}
    if args.model:
        name = Path(args.model).name
        recipe = language_model(args.model, args.data)
        truths[name] = measured(name, recipe, 32, 32, again=args.again)
    rows = [
        {"policy": name, "target": target, "mode": mode, **steps.row()}
        for name, truth in track(truths.items(), "policies", console=Console(stderr=True))
        for mode in MODES
        for target, steps in play(truth, mode, args.steps, args.allocator).items()
    ]
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        "policy", "target", "mode", "true gain", "95%", "believed", "achievable", "captured"
    )
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("policy", "target", "mode")),
            f"{row['true_gain']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['believed_gain']:.2f}",
            f"{row['achievable']:.2f}",
            f"{100 * float(row['captured']):.0f}%",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
