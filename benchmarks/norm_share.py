"""What counts lose where only some completions have their gradient norms measured.

Steps are played as in ``never_worse.py``, in mode online: 16 prompts and 8 completions a prompt, on
measured policies of the embedded task and on simulated prompts. The counts are decided by completions of
earlier visits, of which a share has norms; which, is drawn as an update draws it. The same completions
decide with every share.

With all norms, completions without an advantage are measured too; else one in 16 of them may be.
``gain`` is the variance of uniform counts over that of the chosen ones, summed over steps. ``kept`` is
the variance with all norms over that with the share: below 1, the share costs something. ``low`` and
``high`` are 95% of a bootstrap over steps.

    python benchmarks/norm_share.py [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
from measured_policies import RECIPES, Pilots, Truth, add_options, policy
from never_worse import PER_PROMPT, PER_STEP, TARGETS, simulated
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shared import positive

from dibs.allocation.allocators import solve, uniform
from dibs.allocation.history import History
from dibs.allocation.problem import Bounds, pose
from dibs.allocation.target import Target
from dibs.training.norm_sample import NormSample, choose_measured
from dibs.types import Group, PromptStats

SHARES = (1.0, 0.25, 0.125, 0.0625)
VISITS = (1, 4)


def measured(
    groups: Sequence[Group], norms: Sequence[np.ndarray], share: float, target: Target, seed: int
) -> list[np.ndarray]:
    """The norms that an update with this share measures, NaN for the others."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    equal = [np.ptp(group.rewards) == 0 for group in groups for _ in group.rollouts]
    examples = [
        # What has an advantage: accepted completions, or those of groups whose rewards differ.
        rollout.example(float(rollout.accepted if target.fits_accepted else not alike))
        for rollout, alike in zip(rollouts, equal, strict=True)
    ]
    sample = NormSample.of([rollout.accepted for rollout in rollouts], share)
    chosen = choose_measured(examples, [range(len(examples))], sample, shared=True, seed=(seed,))
    if share == 1:
        chosen[:] = True
    found = np.where(chosen, np.concatenate(norms), np.nan)
    return np.split(found, np.cumsum([len(own) for own in norms])[:-1])


def statistics(
    pilots: Pilots, chosen: Sequence[int], visits: int, target: Target, seed: int
) -> dict[float, PromptStats]:
    """What earlier visits tell of the chosen prompts, with each share of norms."""
    histories = {share: History(half_life=20.0) for share in SHARES}
    for visit in range(visits):
        groups, norms = pilots.draw(PER_PROMPT, chosen)
        for share, history in histories.items():
            known = measured(groups, norms, share, target, seed + visit)
            history.add(groups, known, step=visit)
    names = [str(i) for i in chosen]
    return {share: history.statistics(names, visits) for share, history in histories.items()}


def play(
    truth: Truth, target: Target, visits: int, steps: int, size: int
) -> list[dict[str, float]]:
    """A row for each share."""
    rng, pilots = np.random.default_rng(1), Pilots(truth, 1)
    squares = truth.sigma_squared(target)
    even: list[float] = []
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    for step in range(steps):
        chosen = rng.choice(len(squares), min(size, len(squares)), replace=False)
        known = statistics(pilots, chosen, visits, target, step * visits)
        for share, stats in known.items():
            problem = pose(stats, PER_PROMPT * len(chosen), target, bounds=Bounds(1))
            counts = solve(problem, "min_variance").counts
            found[share].append(float((squares[chosen] / counts).sum()))
        even.append(float((squares[chosen] / uniform(problem)).sum()))
    return [
        row(share, np.array(even), np.array(found[1.0]), np.array(found[share])) for share in SHARES
    ]


def row(share: float, even: np.ndarray, whole: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """Gain and kept share of the gain, from variances of steps."""
    draws = np.random.default_rng(0).multinomial(len(own), [1 / len(own)] * len(own), 1000)
    low, high = np.quantile((draws @ whole) / (draws @ own), (0.025, 0.975))
    return {
        "share": share,
        "gain": float(even.sum() / own.sum()),
        "kept": float(whole.sum() / own.sum()),
        "low": float(low),
        "high": float(high),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=positive, default=300, help="steps of a cell (default: 300)"
    )
    add_options(parser)
    parser.add_argument("--per-step", type=positive, default=PER_STEP, help="prompts of a step")
    parser.add_argument(
        "--policies", nargs="*", default=list(RECIPES), help="of measured_policies.py"
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    args = parser.parse_args()
    truths = {name: policy(name, args) for name in args.policies}
    truths |= {f"simulated, {kind}": simulated(kind) for kind in ("hard", "tails", "flat", "easy")}
    rows = [
        {"policy": name, "target": label, "visits": visits, **each}
        for name, truth in track(truths.items(), "policies", console=Console(stderr=True))
        for label, target in TARGETS.items()
        for visits in VISITS
        for each in play(truth, target, visits, args.steps, args.per_step)
    ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        "policy", "target", "visits", "gain", *(f"kept, {share:g}" for share in SHARES[1:])
    )
    for i in range(0, len(rows), len(SHARES)):
        whole, *others = rows[i : i + len(SHARES)]
        kept = (f"{r['kept']:.3f} ({r['low']:.3f}-{r['high']:.3f})" for r in others)
        where = (str(whole[key]) for key in ("policy", "target", "visits"))
        table.add_row(*where, f"{whole['gain']:.3f}", *kept)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
