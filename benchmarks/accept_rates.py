"""What ``prompt_mean`` does to the scale of a step where few completions are accepted.

``log_likelihood`` divides an accepted completion by its prompt's accept rate. Where accept rates are
known, the sum of weight times advantage over a step is 1 on average. Where they are estimated, it is the
truth over the estimate, which has no bound if estimates can collapse.

Whole cross_fit steps are played with the parts of the training loop: 16 prompts, 4 pilots and 8
completions each. All prompts have the same accept rate. Log-probabilities are unknown, or those of a
policy under which an accepted completion is one of a few and a rejected one is one of many.

    python benchmarks/accept_rates.py [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shared import positive

from dibs.allocation.allocators import solve
from dibs.allocation.cross_fit import (
    allocation_problems,
    assign_rollouts,
    cross_fit,
    missing_counts,
)
from dibs.allocation.posterior import fit_posterior
from dibs.config import Config
from dibs.config.load import load_config
from dibs.training.examples import weighted_examples
from dibs.types import Completion, Group, Prompt, PromptStats, Rollout

PROMPTS, PILOTS = 16, 4
RATES = (0.01, 0.02, 0.05, 0.5, 0.95)
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def drawn(counts: np.ndarray, rate: float, known: bool, rng: np.random.Generator) -> list[Group]:
    """A group of each prompt, all with one accept rate."""
    groups = []
    for i, count in enumerate(counts):
        prompt = Prompt(str(i), "", (0,), "")
        rollouts = []
        for accepted in rng.random(int(count)) < rate:
            share = rate if accepted else 1 - rate
            logprob = float(np.log(share) - rng.exponential(0.3 if accepted else 3.0))
            completion = Completion((1,), "", (logprob if known else 0.0,), finished=True)
            rollouts.append(Rollout(prompt, completion, float(accepted), "", bool(accepted)))
        groups.append(Group(prompt, tuple(rollouts)))
    return groups


def scale(config: Config, rate: float, known: bool, rng: np.random.Generator) -> float:
    """The sum of weight times advantage over a step."""
    pilots = drawn(np.full(PROMPTS, PILOTS), rate, known, rng)
    norms = [np.ones(PILOTS) for _ in pilots]
    estimate = cross_fit(pilots, norms)
    parts, problems = estimate.parts, allocation_problems(estimate, config)
    missing = missing_counts([solve(p, "min_variance") for p in problems], parts)
    fresh = drawn(np.sum(missing, axis=0), rate, known, rng)
    examples = weighted_examples(assign_rollouts(fresh, missing, parts), parts, problems, config)
    return sum(example.weight * example.advantage for example in examples)


def posterior_of(successes: int, prompts: int, pilots: int) -> float:
    """The accept rate of each prompt where all prompts have the same number of successes."""
    m = np.ones(prompts)
    stats = PromptStats(list(range(prompts)), m * pilots, m * successes, m)
    return float(fit_posterior(stats).accept_rate[0])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=positive, default=2000, help="steps of a row (default: 2000)"
    )
    parser.add_argument("--json", action="store_true", help="print an object")
    args = parser.parse_args()
    config = load_config(
        CONFIG,
        {
            "algorithm.objective": "log_likelihood",
            "algorithm.baseline": "none",
            "algorithm.estimator": "prompt_mean",
            "estimate.mode": "cross_fit",
            "estimate.num_pilots": str(PILOTS),
            "train.prompts_per_step": str(PROMPTS),
        },
    )
    rows = []
    cells = [(rate, known) for known in (False, True) for rate in RATES]
    for rate, known in track(cells, "steps", console=Console(stderr=True)):
        rng = np.random.default_rng(0)
        sums = np.array([scale(config, rate, known, rng) for _ in range(args.steps)])
        error = float(sums.std(ddof=1) / np.sqrt(len(sums))) if len(sums) > 1 else None
        rows.append(
            {
                "accept_rate": rate,
                "logprobs": "known" if known else "unknown",
                "mean": float(sums.mean()),
                "standard_error": error,
                "largest": float(sums.max()),
            }
        )
    extremes = {
        "0 of 64": posterior_of(0, PROMPTS, PILOTS),
        "64 of 64": posterior_of(PILOTS, PROMPTS, PILOTS),
    }
    if args.json:
        print(json.dumps({"rows": rows, "posterior": extremes}, indent=1))
        return
    table = Table("accept rate", "log-probabilities", "mean", "largest")
    for row in rows:
        table.add_row(
            str(row["accept_rate"]), row["logprobs"], f"{row['mean']:.2f}", f"{row['largest']:.1f}"
        )
    console = Console()
    console.print(table)
    for what, value in extremes.items():
        console.print(f"posterior accept rate after {what}: {value:.4f}")


if __name__ == "__main__":
    main()
